"""Whether the label maps that a data set asks for can be written: by the format, the values, and the axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from autoseg.labels import Labels
from autoseg.raw.geometry import Geometry
from autoseg.raw.itk_files import PICTURES, TIFFS, highest_value
from autoseg.raw.problems import Problem
from autoseg.raw.truncation import JPEGS


def unwritable_labels(ending: str, labels: Labels, file: Path) -> Iterator[Problem]:
    """Yield why label maps with this file ending cannot hold the declared values; it would show after training only."""
    if ending.lower().endswith(JPEGS):
        yield Problem(
            f"label maps would be written as {ending}, which loses their values",
            str(file),
            field="file_ending",
            value=ending,
            mend="store label maps, and in nnU-Net's layout images, as .png or .nii.gz, and write that as file_ending",
        )
    elif ending.lower().endswith(PICTURES + TIFFS):
        highest = highest_value(ending)
        for name, values in {"background": (labels.background,), **labels.values}.items():
            beyond = [value for value in values if not 0 <= value <= highest]
            if beyond:
                yield Problem(
                    f"value {beyond[0]} cannot be written: label maps in {ending} hold 0 to {highest}",
                    str(file),
                    field=f"labels.{name}",
                    value=str(beyond[0]),
                    mend="give the structure another value, in all label maps, too, or store label maps as .nii.gz",
                )


def unwritable_volumes(ending: str, grids: Mapping[str, Geometry], file: Path) -> Iterator[Problem]:
    """Yield that label maps of volumes, of these grids by case, cannot be written as pictures."""
    volumes = sorted(case for case, grid in grids.items() if grid.size[0] > 1)
    if volumes and ending.lower().endswith(PICTURES) and not ending.lower().endswith(JPEGS):  # which are told of anyway
        yield Problem(
            f"{len(volumes)} image(s) are volumes, such as that of case {volumes[0]}, whose label maps cannot be "
            f"written as {ending}",
            str(file),
            field="file_ending",
            value=ending,
            mend='write "file_ending": ".nii.gz"',
        )
