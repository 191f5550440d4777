"""Start from another model's weights: tensors loaded, adapted or left fresh, each told in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.model_folder import MODEL_FILE, read_model
from autoseg.storage import read_json
from autoseg.training.checkpoint import WEIGHTS_FILE, load_weights, unwrapped
from autoseg.training.log import RUN_FILE, read_run
from autoseg.training.repeating import PRETRAIN, command_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TORCH_FILES = (".pt", ".pth", ".ckpt", ".bin")
WRAPPERS = ("state_dict", "model_state_dict", "model", "network_weights", "teacher")  # where others keep the weights
SUMMARY = "validation/summary.json"  # of a run folder: the scores by label name


@dataclass(frozen=True)
class Transfer:
    """What became of one tensor of the network: "loaded", "adapted" or "fresh", and why."""

    name: str
    status: str
    reason: str = ""


def find_weights(source: Path) -> Path:
    """Return the weights of a run folder, an experiment folder, a model folder, or the file itself."""
    if source.is_file():
        return source
    if (source / MODEL_FILE).is_file():
        member = next(member for member in read_model(source).members if member.in_ensemble)
        return source / next(iter(member.folds.values()))
    for candidate in (source / WEIGHTS_FILE, *sorted(source.glob(f"fold_*/{WEIGHTS_FILE}"))):
        if candidate.is_file():
            return candidate
    raise UserError("no weights found", where=source, mend="give a run folder, a model folder, or a file of weights")


def label_names(source: Path) -> tuple[str, ...] | None:
    """Return the label names, in order, of the model or run that the weights are of; None where nothing tells them."""
    if (source / MODEL_FILE).is_file():
        return read_model(source, verify=False).labels.names
    if source.is_file():
        return label_names(source.parent) if source.name == WEIGHTS_FILE else None
    for candidate in (source / SUMMARY, *sorted(source.glob(f"fold_*/{SUMMARY}"))):
        if candidate.is_file():
            return tuple(read_json(candidate).get("mean", {})) or None
    return None


def learnt_from_labels(source: Path) -> bool:
    """Return whether the weights are of something else than a run of `autoseg pretrain`, as far as it can be told."""
    folder = find_weights(source).parent
    return not (folder / RUN_FILE).is_file() or command_of(folder, read_run(folder)) != PRETRAIN


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file, or of a torch file that holds nothing but tensors and plain values.

    A torch file may keep them in an entry "state_dict" or the like, and name them as a data-parallel module does.
    """
    if path.suffix not in TORCH_FILES:
        try:
            return load_weights(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"not readable as safetensors: {error}", where=path) from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can raise anything
        reason = str(error).partition("\n")[0][:200]
        raise UserError(
            f"not readable as plain weights ({reason})",
            where=path,
            mend="if you trust who made it, save its state dict alone, best as .safetensors",
        ) from None
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    tensors = content if isinstance(content, Mapping) else {}
    found = {name.removeprefix("module."): t for name, t in tensors.items() if isinstance(t, torch.Tensor)}
    if not found:
        raise UserError("the file holds no named tensors", where=path, mend="give a state dict")
    return found


def load_pretrained(module: nn.Module, source: Path, *, labels: Sequence[str] | None = None) -> list[Transfer]:
    """Load what fits by name and shape into the unwrapped module and adapt what nearly fits; returns the table.

    Adapted are: the input channels of the stem (the sum over the old ones, shared equally), kernels of another size
    (linear interpolation), 2D kernels in a 3D network (spread over the new axis). Heads, which give an output per
    label, are loaded where they have the same size, and the `labels` of the network, if given, are those of the
    source, in the same order; a source that learnt without labels has no such heads. Everything else stays as
    initialised.
    """
    path = find_weights(source)
    refusal = _refusal_of_heads(source, labels)
    target, weights = unwrapped(module), read_weights(path)
    if isinstance(target, Architecture):
        weights = target.translate_weights(weights)
    state = target.state_dict()
    table = []
    stems, heads = _stems(target, weights), head_tensors(target)
    for name, current in state.items():
        if refusal is not None and name in heads and name in weights:
            table.append(Transfer(name, "fresh", refusal))
            continue
        value, transfer = _match(name, current, weights, may_adapt=name not in heads, is_stem=name in stems)
        table.append(transfer)
        if value is not None:
            state[name] = value.to(current.dtype)
    if not any(transfer.status == "loaded" for transfer in table):
        raise UserError(
            "no tensor of these weights fits the network", where=path, mend="use a model of the same architecture"
        )
    target.load_state_dict(state)
    return table


def _refusal_of_heads(source: Path, labels: Sequence[str] | None) -> str | None:
    """Return why no head of the source is taken, None where they may be."""
    if not learnt_from_labels(source):
        return "learnt without labels"
    known = None if labels is None else label_names(source)
    return None if known is None or known == tuple(labels or ()) else "other labels"


def _stems(network: nn.Module, weights: Mapping[str, torch.Tensor]) -> frozenset[str]:
    """Return the names of the kernels that take the image, in this network and in the one of the weights."""
    kernels = {f"{name}.weight": module.weight for name, module in _modules(network, CONVOLUTIONS)}
    first = next(iter(kernels), None)
    if first is None or first not in weights or weights[first].ndim < 3:
        return frozenset()
    spec, inputs_before = getattr(network, "spec", None), weights[first].shape[1]
    inputs = kernels[first].shape[1] if spec is None else spec.in_channels
    same_role = {name for name, kernel in kernels.items() if kernel.shape[1] == inputs and name in weights}
    return frozenset(name for name in same_role if weights[name].shape[1:2] == (inputs_before,))


def head_tensors(network: nn.Module) -> frozenset[str]:
    """Return the names of the tensors that have one entry per output, or one per output and voxel of a token.

    They are the 1x1 convolutions to the outputs, and the last convolution, of whatever size; of a network without
    convolutions behind it the last linear layer.
    """
    spec, found = getattr(network, "spec", None), _modules(network, (*CONVOLUTIONS, *TRANSPOSED))
    outputs = found[-1][1].out_channels if spec is None and found else getattr(spec, "num_outputs", None)
    heads = [name for name, module in found if module.out_channels == outputs and set(module.kernel_size) == {1}]
    heads += [name for name, module in found[1:][-1:] if module.out_channels == outputs]
    layers = [] if spec is None else _modules(network, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear))
    heads += [n for n, module in layers[-1:] if isinstance(module, nn.Linear) and module.out_features % outputs == 0]
    return frozenset(f"{name}.{part}" for name in heads for part in ("weight", "bias"))


def _modules(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in network.named_modules() if isinstance(module, kinds)]


def _match(
    name: str,
    current: torch.Tensor,
    weights: Mapping[str, torch.Tensor],
    *,
    may_adapt: bool,
    is_stem: bool,
) -> tuple[torch.Tensor | None, Transfer]:
    if name not in weights:
        return None, Transfer(name, "fresh", "not in the pretrained weights")
    value = weights[name]
    if value.shape == current.shape:
        return value, Transfer(name, "loaded")
    reason = f"{tuple(value.shape)} -> {tuple(current.shape)}"
    adapted = _adapt(value.float(), current, inputs=is_stem) if may_adapt else None
    if adapted is None:
        return None, Transfer(name, "fresh", reason)
    return adapted, Transfer(name, "adapted", reason)


def _adapt(value: torch.Tensor, current: torch.Tensor, *, inputs: bool) -> torch.Tensor | None:
    """Adapt a convolution kernel (out, in, *kernel) to another kernel size and, with `inputs`, number of inputs."""
    if value.ndim < 3 or current.ndim < 3 or value.shape[0] != current.shape[0]:
        return None
    if value.shape[1] != current.shape[1] and not inputs:
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
