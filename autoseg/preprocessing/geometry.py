"""Which spacing, which shape, which axis apart: the decisions behind every resampling.

Spacings are in mm, in the order of the array axes (z, y, x).
"""

from __future__ import annotations

from collections.abc import Sequence

from autoseg.plans import Configuration

ANISOTROPY = 3.0  # an axis whose spacing is more than this many times the finest one is treated apart


def separate_axis(current_spacing: Sequence[float], new_spacing: Sequence[float]) -> int | None:
    """Return the one coarse axis that is resampled by nearest neighbour instead of by splines, or None.

    The current spacing decides if it is anisotropic, else the new one. Two equally coarse axes are not separated.
    """
    for spacing in (current_spacing, new_spacing):
        if max(spacing) / min(spacing) > ANISOTROPY:
            coarse = [axis for axis, value in enumerate(spacing) if value == max(spacing)]
            return coarse[0] if len(coarse) == 1 else None
    return None


def new_shape(
    shape: Sequence[int], current_spacing: Sequence[float], new_spacing: Sequence[float]
) -> tuple[int, int, int]:
    """Return the shape of a volume at another spacing: round(current / new x size), half to even, at least 1."""
    sizes = zip(current_spacing, new_spacing, shape, strict=True)
    return tuple(max(1, round(old / new * size)) for old, new, size in sizes)


def target_spacing(configuration: Configuration, spacing: Sequence[float]) -> tuple[float, float, float]:
    """Return the spacing (transposed axes) a case is resampled to: a 2D configuration keeps the slices of the case."""
    if configuration.dims == 2:
        return (float(spacing[0]), *configuration.spacing)
    return configuration.spacing
