"""The stages of a hierarchical transformer from a plan's: image, patch embedding, mergings."""

from __future__ import annotations

from typing import Any

from autoseg.plans import NetworkSpec

LARGEST = 4  # edge of a patch that becomes one token


def patch_strides(spec: NetworkSpec, stages: int, *, joins: bool) -> dict[str, Any]:
    """Return `strides` and `kernel_sizes` of the image, then of at most `stages` grids of tokens.

    The first grid has the plan's first stride, or with `joins` the first two where that makes patches of at most 4 on
    every axis, as the published networks have it. Done twice it changes nothing if `joins` is false the second time or
    the patches have that size.
    """
    strides, kernels = list(spec.strides), list(spec.kernel_sizes)
    if joins and len(strides) > 2:
        joined = tuple(a * b for a, b in zip(strides[1], strides[2], strict=True))
        if max(joined) <= LARGEST:
            strides[1:3] = [joined]
            del kernels[1]
    return {"strides": tuple(strides[: stages + 1]), "kernel_sizes": tuple(kernels[: stages + 1])}


def grids(spec: NetworkSpec) -> list[tuple[int, ...]]:
    """Return the shape of the planned patch in every stage of `spec.strides`."""
    found, shape = [], spec.patch_size
    for stride in spec.strides:
        shape = tuple(edge // step for edge, step in zip(shape, stride, strict=True))
        found.append(shape)
    return found
