"""Resampling of images as one small matrix per axis: the values of scipy's and skimage's splines, many times faster.

Interpolation on a regular grid is separable, so a volume is resampled by up to three matrix products. The B-spline
prefilter is folded into the matrix. Each row of it is a narrow band, which is used by working in blocks of rows.
Source: Unser, Splines: a perfect fit for signal and image processing, 1999; edge rule as in skimage.transform.resize.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from autoseg.preprocessing.geometry import separate_axis

if TYPE_CHECKING:
    import torch

ROWS_PER_BLOCK = 32
NEGLIGIBLE = 1e-7  # weights below this are lost in float32 anyway


@lru_cache(maxsize=128)
def spline_matrix(n_in: int, n_out: int, order: int) -> np.ndarray:
    """Return the float32 matrix (n_out, n_in) that resamples one axis by a spline of order 0, 1 or 3.

    Pixel centres lie at half-integers; beyond the border the outermost value continues. Cached and read-only.
    """
    matrix = np.zeros((n_out, n_in), dtype=np.float32)
    if order == 0:
        matrix[np.arange(n_out), nearest_indices(n_in, n_out)] = 1
    elif order == 1:
        low, high, weight = linear_neighbours(n_in, n_out)
        np.add.at(matrix, (np.arange(n_out), low), 1 - weight)
        np.add.at(matrix, (np.arange(n_out), high), weight)
    elif order != 3:
        raise ValueError(f"order must be 0, 1 or 3, got {order}")
    elif n_in == 1:
        matrix[:] = 1
    else:  # the response to every unit vector: exact, since the operation is linear
        from scipy import ndimage

        for column, unit in enumerate(np.eye(n_in)):
            matrix[:, column] = ndimage.zoom(unit, n_out / n_in, order=3, mode="nearest", grid_mode=True)
    matrix.flags.writeable = False
    return matrix


def nearest_indices(n_in: int, n_out: int) -> np.ndarray:
    """Return for every output voxel of an axis the nearest input voxel; halves go up.

    The operations are those of scipy, so that also their rounding is the same.
    """
    coordinate = (n_in / n_out) * (np.arange(n_out) + 0.5) - 0.5
    return np.clip(np.floor(coordinate + 0.5).astype(np.int64), 0, n_in - 1)


def linear_neighbours(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for every output voxel of an axis its lower and upper input voxel and the weight of the upper one."""
    coordinate = np.clip((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5, 0, n_in - 1)
    low = np.floor(coordinate).astype(np.int64)
    return low, np.minimum(low + 1, n_in - 1), coordinate - low


@dataclass(frozen=True)
class Resampler:
    """Resamples volumes (Z, Y, X) of one shape to another; `orders` per axis; `axis` is treated apart (see `between`).

    Unless an order is 1 or less, values are clipped to the range of the input, or of each slice along `axis`.
    """

    shape: tuple[int, int, int]
    new_shape: tuple[int, int, int]
    orders: tuple[int, int, int]
    axis: int | None = None

    @classmethod
    def between(
        cls,
        shape: Sequence[int],
        new_shape: Sequence[int],
        *,
        current_spacing: Sequence[float],
        new_spacing: Sequence[float],
        order: int = 3,
        order_z: int = 0,
    ) -> Resampler:
        """Return the resampler for these spacings: a single coarse axis gets `order_z`, the others `order`."""
        axis = separate_axis(current_spacing, new_spacing)
        orders = tuple(order_z if index == axis else order for index in range(3))
        return cls(tuple(map(int, shape)), tuple(map(int, new_shape)), orders, axis)

    @property
    def changed(self) -> tuple[int, ...]:
        """Return the axes whose size changes; the others are left alone, which is exact."""
        return tuple(axis for axis in range(3) if self.shape[axis] != self.new_shape[axis])

    def __call__(self, volume: np.ndarray) -> np.ndarray:
        """Return the resampled float32 volume (Z, Y, X); a copy if nothing changes."""
        if not self.changed:
            return volume.astype(np.float32, copy=True)
        return self._run(volume.astype(np.float32, copy=False), _apply_array, np.clip)

    def tensor(self, volume: torch.Tensor) -> torch.Tensor:
        """Return the resampled volume as a tensor on the same device; computed in float32."""
        import torch

        return self._run(volume.to(torch.float32), _apply_tensor, torch.clamp)

    def _run(self, volume: Any, apply: Callable[..., Any], clip: Callable[..., Any]) -> Any:
        apart = self.axis if self.axis in self.changed else None
        smooth = self._cheapest_order([axis for axis in self.changed if axis != apart])
        if apart is not None and self.new_shape[apart] < self.shape[apart]:
            volume, apart = apply(volume, self._matrix(apart), apart), None
        if any(self.orders[axis] > 1 for axis in smooth):
            low, high = _limits(volume, self.axis)
            for axis in smooth:
                volume = apply(volume, self._matrix(axis), axis)
            volume = clip(volume, low, high, out=volume)
        else:
            for axis in smooth:
                volume = apply(volume, self._matrix(axis), axis)
        return volume if apart is None else apply(volume, self._matrix(apart), apart)

    def _matrix(self, axis: int) -> tuple[int, int, int]:
        return self.shape[axis], self.new_shape[axis], self.orders[axis]

    def _cheapest_order(self, axes: list[int]) -> tuple[int, ...]:
        def cost(order: tuple[int, ...]) -> int:
            shape, total = list(self.shape), 0
            for axis in order:
                total += int(np.prod(shape)) * self.new_shape[axis]
                shape[axis] = self.new_shape[axis]
            return total

        return min(permutations(axes), key=cost)


def resample_image(
    data: np.ndarray,
    new_shape: Sequence[int],
    *,
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    order: int = 3,
    order_z: int = 0,
    device: Any = None,
) -> np.ndarray:
    """Resample an image (C, Z, Y, X) to `new_shape` (Z, Y, X) and return it as float32.

    Data of the right shape are returned untouched. With a torch `device` the matrix products run there.
    """
    if tuple(data.shape[1:]) == tuple(new_shape):
        return data.astype(np.float32, copy=False)
    resampler = Resampler.between(
        data.shape[1:],
        new_shape,
        current_spacing=current_spacing,
        new_spacing=new_spacing,
        order=order,
        order_z=order_z,
    )
    resampled = np.empty((len(data), *resampler.new_shape), dtype=np.float32)
    for channel, volume in enumerate(data):
        if device is None:
            resampled[channel] = resampler(volume)
        else:
            import torch

            resampled[channel] = resampler.tensor(torch.as_tensor(volume, device=device)).cpu().numpy()
    return resampled


def _limits(volume: Any, axis: int | None) -> tuple[Any, Any]:
    """Smallest and largest value of the volume, or of each slice along `axis` in a shape that broadcasts."""
    if axis is None:
        return volume.min(), volume.max()
    others = tuple(index for index in range(3) if index != axis)
    if isinstance(volume, np.ndarray):
        return volume.min(axis=others, keepdims=True), volume.max(axis=others, keepdims=True)
    return volume.amin(dim=others, keepdim=True), volume.amax(dim=others, keepdim=True)


@lru_cache(maxsize=128)
def _blocks(n_in: int, n_out: int, order: int) -> tuple[tuple[slice, slice, np.ndarray], ...]:
    """Split the matrix of an axis into (output rows, input columns, weights), without the zeros beside the band."""
    matrix = spline_matrix(n_in, n_out, order)
    blocks = []
    for start in range(0, n_out, ROWS_PER_BLOCK):
        rows = matrix[start : start + ROWS_PER_BLOCK]
        used = np.flatnonzero((np.abs(rows) > NEGLIGIBLE).any(axis=0))
        columns = slice(int(used[0]), int(used[-1]) + 1)
        blocks.append((slice(start, start + len(rows)), columns, np.ascontiguousarray(rows[:, columns])))
    return tuple(blocks)


def _apply_array(volume: np.ndarray, matrix: tuple[int, int, int], axis: int) -> np.ndarray:
    """Multiply one axis of a volume by its matrix."""
    n_in, n_out, order = matrix
    if order == 0:
        return np.take(volume, nearest_indices(n_in, n_out), axis=axis)
    shape = volume.shape
    result = np.empty((*shape[:axis], n_out, *shape[axis + 1 :]), dtype=np.float32)
    if axis == 2:
        source, target = volume.reshape(-1, n_in), result.reshape(-1, n_out)
        for rows, columns, weights in _blocks(*matrix):
            np.matmul(source[:, columns], weights.T, out=target[:, rows])
        return result
    before = int(np.prod(shape[:axis]))
    source, target = volume.reshape(before, n_in, -1), result.reshape(before, n_out, -1)
    for rows, columns, weights in _blocks(*matrix):
        np.matmul(weights, source[:, columns], out=target[:, rows])
    return result


def _apply_tensor(volume: torch.Tensor, matrix: tuple[int, int, int], axis: int) -> torch.Tensor:
    import torch

    n_in, n_out, order = matrix
    if order == 0:
        return volume.index_select(axis, torch.as_tensor(nearest_indices(n_in, n_out), device=volume.device))
    weights = torch.tensor(spline_matrix(*matrix), device=volume.device)
    return torch.movedim(torch.tensordot(weights, volume, dims=([1], [axis])), 0, axis)
