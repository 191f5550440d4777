"""What a stream of patches is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from autoseg.batches.augmentation.parameters import Level
from autoseg.batches.geometry import initial_patch_size
from autoseg.errors import UserError


@dataclass(frozen=True)
class StreamSettings:
    """Size, number and treatment of patches."""

    patch_size: tuple[int, ...]  # final patch; two axes: slices of volumes
    batch_size: int
    foreground_fraction: float = 0.33  # share of samples, the last ones of a batch, that are centred on foreground
    augmentation: Level = "full"
    mirror_axes: tuple[int, ...] | None = None  # axes of the patch that may be mirrored; None: all
    computed_channels: tuple[int, ...] = ()  # made from the image before; augmentation moves them, keeps their values

    def __post_init__(self) -> None:
        if len(self.patch_size) not in (2, 3) or min(self.patch_size) < 1:
            raise UserError(f"patch_size must have 2 or 3 positive entries, got {self.patch_size}")
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 0 <= self.foreground_fraction <= 1:
            raise UserError(f"foreground_fraction must lie in 0..1, got {self.foreground_fraction}")
        if self.augmentation not in get_args(Level):
            raise UserError(f"augmentation must be one of {', '.join(get_args(Level))}, got {self.augmentation!r}")
        unknown = [axis for axis in self.mirror_axes or () if not 0 <= axis < len(self.patch_size)]
        if unknown:
            raise UserError(f"mirror_axes {unknown} are no axes of a patch with {len(self.patch_size)} axes")

    @property
    def allowed_mirror_axes(self) -> tuple[int, ...]:
        """Return the axes that may be mirrored."""
        return tuple(range(len(self.patch_size))) if self.mirror_axes is None else self.mirror_axes

    @property
    def initial_patch_size(self) -> tuple[int, ...]:
        """Return the size of the patch that is placed in the image: larger when it may be rotated."""
        return initial_patch_size(self.patch_size) if self.augmentation in ("full", "spatial") else self.patch_size
