"""Start from another model's weights: tensors loaded, adapted or left fresh, each told in a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from autoseg.errors import UserError
from autoseg.model_folder import MODEL_FILE, read_model
from autoseg.training.checkpoint import WEIGHTS_FILE, load_weights, unwrapped


@dataclass(frozen=True)
class Transfer:
    """What became of one tensor of the network: "loaded", "adapted" or "fresh", and why."""

    name: str
    status: str
    reason: str = ""


def find_weights(source: Path) -> Path:
    """Return the weights of a run folder, an experiment folder, a model folder, or the safetensors file itself."""
    if source.is_file():
        return source
    if (source / MODEL_FILE).is_file():
        member = next(member for member in read_model(source).members if member.in_ensemble)
        return source / next(iter(member.folds.values()))
    for candidate in (source / WEIGHTS_FILE, *sorted(source.glob(f"fold_*/{WEIGHTS_FILE}"))):
        if candidate.is_file():
            return candidate
    raise UserError("no weights found", where=source, mend="give a run folder, a model folder, or a .safetensors file")


def load_pretrained(module: nn.Module, source: Path) -> list[Transfer]:
    """Load what fits by name and shape into the unwrapped module and adapt what nearly fits; returns the table.

    Adapted are: input channels (the sum over the old ones, shared equally), kernels of another size (linear
    interpolation), 2D kernels in a 3D network (spread over the new axis). Everything else stays as initialised.
    """
    path = find_weights(source)
    try:
        weights = load_weights(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"not readable as safetensors: {error}", where=path) from None
    target = unwrapped(module)
    state = target.state_dict()
    table = []
    for name, current in state.items():
        value, transfer = _match(name, current, weights)
        table.append(transfer)
        if value is not None:
            state[name] = value.to(current.dtype)
    if not any(transfer.status == "loaded" for transfer in table):
        raise UserError(
            "no tensor of these weights fits the network", where=path, mend="use a model of the same architecture"
        )
    target.load_state_dict(state)
    return table


def _match(
    name: str, current: torch.Tensor, weights: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor | None, Transfer]:
    if name not in weights:
        return None, Transfer(name, "fresh", "not in the pretrained weights")
    value = weights[name]
    if value.shape == current.shape:
        return value, Transfer(name, "loaded")
    reason = f"{tuple(value.shape)} -> {tuple(current.shape)}"
    adapted = _adapt(value.float(), current)
    if adapted is None:
        return None, Transfer(name, "fresh", reason)
    return adapted, Transfer(name, "adapted", reason)


def _adapt(value: torch.Tensor, current: torch.Tensor) -> torch.Tensor | None:
    """Adapt a convolution kernel (out, in, *kernel) to another number of inputs or another kernel size."""
    if value.ndim < 3 or current.ndim < 3 or value.shape[0] != current.shape[0]:
        return None
    if value.ndim == current.ndim - 1:
        depth = current.shape[2]
        value = value.unsqueeze(2).expand(-1, -1, depth, *value.shape[2:]) / depth
    if value.ndim != current.ndim:
        return None
    if value.shape[1] != current.shape[1]:
        # Equal channels then give what they gave before: the sum over the old ones, shared equally among the new.
        value = value.sum(1, keepdim=True).expand(-1, current.shape[1], *value.shape[2:]) / current.shape[1]
    if value.shape[2:] != current.shape[2:]:
        if value.ndim not in (4, 5):
            return None
        mode = "trilinear" if value.ndim == 5 else "bilinear"
        total = value.sum(tuple(range(2, value.ndim)), keepdim=True)
        value = nn.functional.interpolate(value, current.shape[2:], mode=mode)
        new_total = value.sum(tuple(range(2, value.ndim)), keepdim=True)
        value = torch.where(new_total.abs() > 1e-6, value * (total / new_total), value)
    return value


def table_text(table: list[Transfer]) -> str:
    """Return the table as text: counts first, then every tensor that was not simply loaded."""
    counts = {status: sum(row.status == status for row in table) for status in ("loaded", "adapted", "fresh")}
    lines = [", ".join(f"{count} tensors {status}" for status, count in counts.items())]
    lines += [f"  {row.status:8} {row.name}  {row.reason}" for row in table if row.status != "loaded"]
    return "\n".join(lines)
