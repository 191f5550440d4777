"""Whether networks and patches fit into this machine's memory, and patches into networks, told before any is made."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from autoseg.errors import UserError
from autoseg.machine import available_memory

if TYPE_CHECKING:
    from torch import nn

    from autoseg.plans import Configuration, NetworkSpec

BYTES = 4  # of a weight and of a voxel
MARGIN = 8  # how many times the weights of a spec's blocks a network may have
DRAWING = frozenset({torch.Tensor.normal_, torch.Tensor.uniform_})  # how weights get their first values


class _Undrawn(TorchFunctionMode):
    """Leaves tensors as they are that would be filled with random values.

    On the meta device that changes nothing, but torch loads its compiler for it, which takes seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in DRAWING else func(*args, **(kwargs or {}))


@contextmanager
def _meta_device() -> Iterator[None]:
    with torch.device("meta"), _Undrawn():
        yield


# Ways to have shapes without values: at once, and in seconds, but then also where a network names its device.
TRACINGS = (_meta_device, FakeTensorMode)


def check_network(kind: type[nn.Module], spec: NetworkSpec) -> None:
    """Raise UserError where the weights of `kind(spec)` are more than the memory that is free.

    Nothing is counted where `MARGIN` U-Nets of these blocks would fit, nor while only shapes are traced.
    """
    free = available_memory()
    if MARGIN * BYTES * spec.weights <= free or _only_shapes():
        return
    needed = weight_bytes(kind, spec)
    if needed is None:
        return
    if needed > free:
        raise UserError(
            f"the weights of {kind.__name__} with features {spec.features}, kernel_sizes {spec.kernel_sizes} and "
            f"blocks_encoder {spec.blocks_encoder} need {_gib(needed)}, and {_gib(free)} are free",
            where="network",
            mend="correct these fields of the plans, or use a machine with more memory",
        )


def weight_bytes(kind: type[nn.Module], spec: NetworkSpec) -> int | None:
    """Return the bytes of the weights of `kind(spec)` without allocating them; None where it cannot be traced."""
    for tracing in TRACINGS:
        try:
            with tracing():
                network = kind(spec)
        except UserError:
            raise
        except Exception:  # not to be traced so; where no way is left, building it tells
            continue
        return BYTES * sum(math.prod(parameter.shape) for parameter in network.parameters())
    return None


def check_patch(configuration: Configuration, kind: Any, *, where: str | Path, batch_size: int = 1) -> None:
    """Raise UserError where patches do not fit into the memory, or one does not fit the Architecture `kind`.

    `where`: the file of the plans. `batch_size`: how many patches are in main memory at once, with their logits.
    """
    _check_memory(configuration, where, batch_size)
    _check_multiple(configuration, kind, where)


def _check_memory(configuration: Configuration, where: str | Path, batch_size: int) -> None:
    spec, free = configuration.network, available_memory()
    needed = BYTES * batch_size * math.prod(spec.patch_size) * (spec.in_channels + spec.num_outputs)
    if needed > free:
        batch = "a patch" if batch_size == 1 else f"a batch of {batch_size} patches"
        fields = "this field" if batch_size == 1 else "this field or batch_size"
        raise UserError(
            f"field configurations.{configuration.name}.patch_size: {batch} {spec.patch_size} of {spec.in_channels} "
            f"channel(s) and {spec.num_outputs} output(s) needs {_gib(needed)}, and {_gib(free)} are free",
            where=where,
            mend=f"correct {fields} of the plans, or use a machine with more memory",
        )


def _check_multiple(configuration: Configuration, kind: Any, where: str | Path) -> None:
    spec = configuration.network
    if spec.dims not in kind.dims:  # building it tells
        return
    nearest = _nearest_multiple(kind, spec)
    # Some networks pad or crop by themselves, and take any patch.
    if nearest == spec.patch_size or _runs(kind, spec, spec.patch_size):
        return
    raise UserError(
        f"field configurations.{configuration.name}.patch_size: {spec.patch_size} is no multiple of "
        f"{kind.patch_multiple(spec)}, and {kind.__name__} takes nothing else",
        where=where,
        mend=f"write {list(nearest)}, which is the nearest, into this field and into network.patch_size",
    )


def _nearest_multiple(kind: Any, spec: NetworkSpec) -> tuple[int, ...]:
    """Return the nearest patch of the multiples that the class asks for."""
    for _ in range(2):  # of what it must be a multiple may depend on the patch
        steps = zip(spec.patch_size, kind.patch_multiple(spec), strict=True)
        spec = spec.model_copy(update={"patch_size": tuple(max(1, round(edge / step)) * step for edge, step in steps)})
    return spec.patch_size


def takes_patch(kind: Any, spec: NetworkSpec, patch: tuple[int, ...]) -> bool:
    """Return whether the network of a spec takes patches of another size than it was made for.

    Where it cannot be traced, the multiples that its class asks for count.
    """
    if patch == spec.patch_size or _runs(kind, spec, patch):
        return True
    is_multiple = all(edge % step == 0 for edge, step in zip(patch, kind.patch_multiple(spec), strict=True))
    return is_multiple and not _runs(kind, spec, spec.patch_size)


def _runs(kind: Any, spec: NetworkSpec, patch: tuple[int, ...]) -> bool:
    return any(_traced(kind, spec, patch, tracing) for tracing in TRACINGS)


def _traced(kind: Any, spec: NetworkSpec, patch: tuple[int, ...], tracing: Any) -> bool:
    try:
        with tracing(), torch.no_grad():
            logits = kind(spec).eval()(torch.empty(1, spec.in_channels, *patch))
        return tuple(logits.shape[2:]) == patch
    except Exception:  # whatever a network raises that was not made for this patch, or not for tracing
        return False


def _only_shapes() -> bool:
    probe = torch.empty(0)
    return probe.is_meta or isinstance(probe, FakeTensor)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
