"""Checkpoints: everything a run needs to go on as if never stopped. Tensors and plain values only."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError  # what torch raises; nothing here unpickles
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from autoseg.errors import UserError
from autoseg.storage import write_bytes
from autoseg.training.log import RUN_FILE, check_weights, read_run

STATE_FILE = "state.pt"
WEIGHTS_FILE = "weights.safetensors"
_MAGIC = b"autoseg-state-1\n"


@dataclass
class Progress:
    """How far a run is; `elapsed` is training time in seconds, the clock of a time budget."""

    step: int = 0
    elapsed: float = 0.0
    worked: float = 0.0  # the same in seconds of `training.clock.work_clock`
    ema_dice: float | None = None
    blind_validations: int = 0  # consecutive validations that found no foreground
    finished: bool = False
    last_validation: float = 0.0  # progress at the last validation
    budget: float | None = None  # training seconds of the whole run, where a time budget decides
    budget_asked: float | None = None  # the seconds that the start asked for, from which `budget` came


@dataclass(frozen=True)
class State:
    """The trained modules, optimisers and scaler of a run, and its progress."""

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    progress: Progress
    extra: dict[str, Any] = field(default_factory=dict)


def save_state(folder: Path, state: State) -> None:
    """Write `state.pt` atomically, behind a checksum that `load_state` verifies."""
    buffer = io.BytesIO()
    torch.save(
        {
            "modules": {name: plain_state(module) for name, module in state.modules.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in state.optimizers.items()},
            "progress": asdict(state.progress),
            "extra": state.extra,
        },
        buffer,
    )
    content = buffer.getvalue()
    write_bytes(folder / STATE_FILE, _MAGIC + hashlib.sha256(content).digest() + content)


def load_state(folder: Path, state: State) -> None:
    """Put the checkpoint of `folder` into `state`; a damaged file is a UserError that names it."""
    path = folder / STATE_FILE
    body = _checked(path.read_bytes())
    if body is None:
        raise UserError("the checkpoint is damaged", where=path, mend="start this run anew with --restart")
    try:
        loaded = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except UnpicklingError:  # the checksum is right, so this is how it was written
        raise UserError(
            "the checkpoint holds more than tensors and plain values, so it was not read",
            where=path,
            mend="start this run anew with --restart, and do not use the file",
        ) from None
    if set(loaded["modules"]) != set(state.modules) or set(loaded["optimizers"]) != set(state.optimizers):
        raise UserError(
            "the checkpoint belongs to another trainer or other settings",
            where=path,
            mend="use --restart to discard it",
        )
    try:
        for name, module in state.modules.items():
            unwrapped(module).load_state_dict(loaded["modules"][name])
        for name, optimizer in state.optimizers.items():
            optimizer.load_state_dict(loaded["optimizers"][name])
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the checkpoint does not fit the network of this run: {str(error)[:300]}",
            where=path,
            mend="use the settings of the first start, or --restart to discard the checkpoint",
        ) from None
    for name, value in loaded["progress"].items():
        setattr(state.progress, name, value)
    state.extra.update(loaded["extra"])


def is_sound_state(folder: Path) -> bool:
    """Return whether `folder` holds a checkpoint as it was written."""
    path = folder / STATE_FILE
    return path.is_file() and _checked(path.read_bytes()) is not None


def _checked(content: bytes) -> bytes | None:
    """Return what lies behind the checksum of a checkpoint, None where that is not what was written."""
    body = content[len(_MAGIC) + 32 :]
    sound = content.startswith(_MAGIC) and hashlib.sha256(body).digest() == content[len(_MAGIC) : len(_MAGIC) + 32]
    return body if sound else None


def save_weights(folder: Path, module: nn.Module) -> str:
    """Write the predicting module's weights as safetensors; returns their SHA-256 digest.

    A module's `weights_metadata`, texts by name, become the file's.
    """
    tensors = {name: tensor.contiguous().cpu() for name, tensor in plain_state(module).items()}
    content = save(_without_sharing(tensors), getattr(unwrapped(module), "weights_metadata", None))
    write_bytes(folder / WEIGHTS_FILE, content)
    return hashlib.sha256(content).hexdigest()


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read safetensors weights; those of a run must be the ones that its record knows."""
    if path.name == WEIGHTS_FILE and (path.parent / RUN_FILE).is_file():
        check_weights(path, read_run(path.parent))
    return load_file(path)


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module itself, without the wrappers of Fabric, DDP and torch.compile."""
    while True:
        for name in ("_orig_mod", "_forward_module", "module"):
            inner = module._modules.get(name)
            if inner is not None and type(module).__module__.startswith(("torch.", "lightning")):
                module = inner
                break
        else:
            return module


def plain_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict of the unwrapped module."""
    return unwrapped(module).state_dict()


def _without_sharing(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy tensors that share memory with an earlier one: safetensors stores every tensor on its own."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return separate
