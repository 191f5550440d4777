"""Whether a network and its patch fit into this machine's memory, told before anything is allocated."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from autoseg.errors import UserError
from autoseg.machine import available_memory

if TYPE_CHECKING:
    from torch import nn

    from autoseg.plans import Configuration, NetworkSpec

BYTES = 4  # of a weight and of a voxel
MARGIN = 8  # how many times the weights of a spec's blocks a network may have


def check_network(kind: type[nn.Module], spec: NetworkSpec) -> None:
    """Raise UserError where the weights of `kind(spec)` are more than the memory that is free.

    Nothing is counted where `MARGIN` U-Nets of these blocks would fit, nor while only shapes are traced.
    """
    free = available_memory()
    if MARGIN * BYTES * spec.weights <= free or isinstance(torch.empty(0), FakeTensor):
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
    try:
        with FakeTensorMode():
            network = kind(spec)
    except UserError:
        raise
    except Exception:  # not to be traced: building it tells
        return None
    return BYTES * sum(math.prod(parameter.shape) for parameter in network.parameters())


def check_patch(configuration: Configuration) -> None:
    """Raise UserError where one patch and its logits are more than the memory that is free."""
    spec, free = configuration.network, available_memory()
    needed = BYTES * math.prod(spec.patch_size) * (spec.in_channels + spec.num_outputs)
    if needed > free:
        raise UserError(
            f"field configurations.{configuration.name}.patch_size: a patch {spec.patch_size} of {spec.in_channels} "
            f"channel(s) and {spec.num_outputs} output(s) needs {_gib(needed)}, and {_gib(free)} are free",
            mend="correct this field of the plans, or use a machine with more memory",
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
