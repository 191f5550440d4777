"""The stages of a network from a plan's: image, patch embedding, mergings; kernels along coarse axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from autoseg.errors import UserError
from autoseg.plans import NetworkSpec

LARGEST = 4  # edge of a patch that becomes one token


def patch_strides(spec: NetworkSpec, stages: int, *, joins: bool = True, smallest: int = 0) -> dict[str, Any]:
    """Return `strides` and `kernel_sizes` of the image, then of at most `stages` grids of tokens.

    The first grid has the plan's first stride; with `joins` also the next ones while that makes patches of at most 4 on
    every axis, and of 4 only on axes with `smallest` voxels in the planned patch. Done twice it changes nothing.
    """
    strides, kernels = list(spec.strides), list(spec.kernel_sizes)
    while joins and len(strides) > 2:
        joined = tuple(a * b for a, b in zip(strides[1], strides[2], strict=True))
        short = any(a == LARGEST and edge < smallest for a, edge in zip(joined, spec.patch_size, strict=True))
        if max(joined) > LARGEST or short:
            break
        strides[1:3] = [joined]
        del kernels[1]
    return {"strides": tuple(strides[: stages + 1]), "kernel_sizes": tuple(kernels[: stages + 1])}


def strides_from_patch(spec: NetworkSpec, stages: int, patch: Sequence[int] | None) -> dict[str, Any]:
    """Return `strides` and `kernel_sizes` as `patch_strides` does, the first grid by patches of this size.

    None: the plan's first two strides, where that leaves two stages and makes patches of at most 4 on every axis, else
    its first. Done again with the patch that it gave, `strides[1]`, it changes nothing. A UserError if the plan's
    strides do not make such a patch.
    """
    strides, made = spec.strides, [(1,) * spec.dims]
    for stride in strides[1:]:
        made.append(tuple(math.prod(pair) for pair in zip(made[-1], stride, strict=True)))
    if patch is None:
        count = 2 if len(strides) > 3 and max(made[2]) <= LARGEST else 1
    elif tuple(patch) in made[1:]:
        count = made.index(tuple(patch), 1)
    else:
        possible = ", ".join(map(str, made[1:]))
        raise UserError(
            f"the plan's strides make no patches of {tuple(patch)}", where="network.options", mend=f"one of: {possible}"
        )
    kernels = spec.kernel_sizes
    return {
        "strides": (strides[0], made[count], *strides[count + 1 :])[: stages + 1],
        "kernel_sizes": (kernels[0], *kernels[count:])[: stages + 1],
    }


def grids(spec: NetworkSpec) -> list[tuple[int, ...]]:
    """Return the shape of the planned patch in every stage of `spec.strides`."""
    found, shape = [], spec.patch_size
    for stride in spec.strides:
        shape = tuple(edge // step for edge, step in zip(shape, stride, strict=True))
        found.append(shape)
    return found


def resolution_kernels(strides: Sequence[tuple[int, ...]], *, levels: int = 2) -> tuple[tuple[int, ...], ...]:
    """Return kernels of 3, but 1 at the first levels along axes that neither a pooling so far nor the next one changes.

    With two levels these are the resolution modes of Wang et al. 2023, MIS-FM, arXiv:2306.16925.
    """
    kernels = []
    for level in range(len(strides)):
        pools = level < levels and level + 1 < len(strides) and max(strides[level + 1]) > 1
        axes = zip(*strides[: level + 2], strict=True)
        kernels.append(tuple(1 if pools and max(axis) == 1 else 3 for axis in axes))
    return tuple(kernels)
