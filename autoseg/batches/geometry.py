"""How large a patch is cut before augmentation, and how far it may be turned. Source: nnU-Net v2 (Apache-2.0)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

ANISOTROPIC_PATCH = 3.0  # a 3D patch whose longest axis exceeds the first by more is turned in plane only
ELONGATED_SLICE = 1.5  # a 2D patch more elongated than this is turned by 15 degrees at most
LARGEST_ZOOM = 0.85  # nnU-Net's factor for the larger patch; it is not the inverse of the scaling range
FULL_TURN, SMALL_TURN, VOLUME_TURN = math.pi, math.radians(15), math.radians(30)


def turns_in_plane_only(patch_size: Sequence[int]) -> bool:
    """Tell whether a 3D patch is so flat that its slices are warped as channels of a 2D image ("dummy 2D")."""
    return len(patch_size) == 3 and max(patch_size) / patch_size[0] > ANISOTROPIC_PATCH


def rotation_limit(patch_size: Sequence[int]) -> float:
    """Return the largest rotation angle in radians, in either direction, for each rotation axis."""
    if len(patch_size) == 2:
        return SMALL_TURN if max(patch_size) / min(patch_size) > ELONGATED_SLICE else FULL_TURN
    return FULL_TURN if turns_in_plane_only(patch_size) else VOLUME_TURN


def initial_patch_size(patch_size: Sequence[int], *, rotation: float | None = None) -> tuple[int, ...]:
    """Return the size of the patch that is cut before augmentation, for the final `patch_size` (2 or 3 axes).

    The element-wise maximum of the patch and of the patch vector turned by the largest angle (`rotation` in radians,
    capped at 90 degrees; by default the limit for this patch) about one axis at a time, divided by 0.85, truncated.
    Of a flat 3D patch the first axis is kept.
    """
    return _initial_patch_size(tuple(patch_size), rotation_limit(patch_size) if rotation is None else abs(rotation))


@lru_cache
def _initial_patch_size(patch_size: tuple[int, ...], rotation: float) -> tuple[int, ...]:
    limit = min(rotation, math.pi / 2)
    final = np.asarray(patch_size, dtype=float)
    largest = final.copy()
    for matrix in _single_turns(limit, len(final)):
        largest = np.maximum(largest, np.abs(matrix.T @ final))
    size = [int(value) for value in largest / LARGEST_ZOOM]
    if turns_in_plane_only(patch_size):
        size[0] = patch_size[0]
    return tuple(size)


def rotation_matrix(angles: Sequence[float]) -> np.ndarray:
    """Return Rz Ry Rx for three angles about the axes 0, 1, 2, or the plane rotation for one angle (radians)."""
    if len(angles) == 1:
        return _plane_rotation(angles[0])
    about_x, about_y, about_z = (_volume_rotation(axis, angle) for axis, angle in enumerate(angles))
    return about_z @ about_y @ about_x


def _single_turns(angle: float, axes: int) -> list[np.ndarray]:
    if axes == 2:
        return [_plane_rotation(angle)]
    return [_volume_rotation(axis, angle) for axis in range(3)]


def _plane_rotation(angle: float) -> np.ndarray:
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]])


def _volume_rotation(axis: int, angle: float) -> np.ndarray:
    """Rotate about one of three axes, counter-clockwise in the right-handed frame (0, 1, 2)."""
    first, second = [(1, 2), (2, 0), (0, 1)][axis]
    cosine, sine = math.cos(angle), math.sin(angle)
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = cosine
    matrix[first, second], matrix[second, first] = -sine, sine
    return matrix
