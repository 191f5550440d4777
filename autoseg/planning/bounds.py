"""What a plan cannot hold of a data set, told by field and value instead of by whatever a search makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from autoseg.plan_bounds import Spacing, StoredSpacing
from autoseg.plans import Frozen, faults_told


class Measured(Frozen):
    """The spacings of the cases, mm."""

    spacings: tuple[tuple[StoredSpacing, StoredSpacing, StoredSpacing], ...]


class Target(Frozen):
    """The spacing that they are resampled to, mm."""

    target_spacing: tuple[Spacing, Spacing, Spacing]


@contextmanager
def within_bounds(frame: Any) -> Iterator[None]:
    """Raise UserError where the data of a `planner.Frame`, or what is planned inside, lie outside of a plan's bounds.

    Spacings come first: they would end as patches without a voxel, or in a search that times steps for minutes.
    """
    name = frame.fingerprint.dataset_name
    mend = "correct spacing (mm), size, channels or labels of the images, or leave out those where they are wrong"
    with faults_told(f"the plans of {name}", mend=mend):
        Measured(spacings=tuple(frame.fingerprint.spacings))
        Target(target_spacing=tuple(frame.target.tolist()))
        yield
