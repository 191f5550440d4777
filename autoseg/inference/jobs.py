"""The cases of a folder with the files that are written for them, no two of them the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoseg.errors import UserError
from autoseg.raw import Case, probability_ending
from autoseg.raw.images import ending_of
from autoseg.raw.names import on_disk
from autoseg.raw.truncation import JPEGS


@dataclass(frozen=True)
class Job:
    """One case with everything that is written for it."""

    case: Case
    label: Path
    probabilities: Path | None
    uncertainty: Path | None

    @property
    def outputs(self) -> list[Path]:
        """Return the files that are written."""
        return [path for path in (self.label, self.probabilities, self.uncertainty) if path is not None]


def make_job(case: Case, output: Path, save_probabilities: bool, uncertainty: bool) -> Job:
    """Return what is written for a case into the folder `output`."""
    ending = _ending(case)
    return Job(
        case=case,
        label=output / f"{case.id}{ending}",
        probabilities=output / f"{case.id}_probabilities{probability_ending(ending)}" if save_probabilities else None,
        uncertainty=output / f"{case.id}_uncertainty.nii.gz" if uncertainty else None,
    )


def require_own_files(jobs: Sequence[Job], inputs: Path) -> None:
    """Refuse jobs that would write one file twice, on any system's disk, or write over an image."""
    owners: dict[str, str] = {}
    for job in jobs:
        for path in job.outputs:
            owner = owners.setdefault(on_disk(path.name), job.case.id)
            if owner != job.case.id:
                raise UserError(
                    f"cases {owner} and {job.case.id} would both be written to {path.name}",
                    where=inputs,
                    mend="rename the images of one of them, or put it into another folder and predict that alone",
                )
    images = {path.resolve() for job in jobs for path in job.case.images}
    for path in (path for job in jobs for path in job.outputs if path.resolve() in images):
        raise UserError("the prediction would replace this image", where=path, mend="choose another output folder")


def _ending(case: Case) -> str:
    """Return the ending of the label map: the image's own, but NIfTI for DICOM series and PNG for lossy pictures."""
    ending = ending_of(case.images[0])
    if case.images[0].is_dir() or ending is None:
        return ".nii.gz"
    return ".png" if ending.lower() in JPEGS else ending
