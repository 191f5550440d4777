"""What the header of an image can say but hardly means: two places, the spacing of another unit, no spacing at all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from autoseg.raw.geometry import Geometry
from autoseg.raw.itk_files import sidecar
from autoseg.raw.nifti import Header
from autoseg.raw.problems import Problem

FINE, COARSE = 1e-3, 100.0  # mm; an image of 1 mm whose unit is said to be the metre has 1000 mm


def doubtful_place(header: Header, path: Path) -> Iterator[Problem]:
    """Yield a warning if a NIfTI header puts its image in two places."""
    second = header.second_place
    if second is None:
        return
    far = f"{second.distance:.2f} mm" if math.isfinite(second.distance) else ""
    where = f"by which corners are up to {far} away" if far else "which is no place at all"
    yield Problem(
        f"the header gives two places: the {second.used}, which is used, as by ITK, and the {second.other}, {where}; "
        "other programs may use that one",
        str(path),
        field=" and ".join(sorted(form.split()[0] for form in (second.used, second.other))),
        value=far,
        mend="find out which is right, and write the file again with that one in both",
        severity="warning",
    )


def doubtful_spacing(geometry: Geometry) -> Iterator[Problem]:
    """Yield a warning if the spacing of an image is that of no organ and no cell, or if nothing says what it is."""
    if geometry.physical:
        values = [spacing for spacing, size in zip(geometry.spacing, geometry.size, strict=True) if size > 1]
        if values and not FINE <= min(values) <= max(values) <= COARSE:
            shown = " x ".join(f"{value:g}" for value in values)
            yield Problem(
                f"the spacing is {shown} mm (z, y, x), where {FINE:g} to {COARSE:g} mm are usual: perhaps the unit "
                "of length is wrong (metres, micrometres)",
                str(geometry.source),
                field="spacing",
                value=shown,
                mend="write the file again with its spacing in mm; keep it if it is right, as in microscopy",
                severity="warning",
            )
    elif geometry.dims == 3 and not sidecar(geometry.source).is_file():
        yield Problem(
            "nothing says what spacing this stack has; 1 x 1 x 1 mm are taken",
            str(geometry.source),
            field="spacing",
            mend=f'write {sidecar(geometry.source).name} beside it: {{"spacing": [z, y, x]}} in mm',
            severity="warning",
        )
