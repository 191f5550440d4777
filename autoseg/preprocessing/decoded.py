"""Raw cases read, checked against each other and cropped; and a cache of them, so that every file is read once.

The fingerprint leaves the cases here; preprocessing takes them and removes the folder.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autoseg.errors import UserError
from autoseg.labels import Labels
from autoseg.plans import Frozen, parse
from autoseg.preprocessing.crop import Cropped, crop
from autoseg.raw import Case, label_grid_error, read_image, read_label
from autoseg.storage import file_hash, read_json, write_bytes, write_json
from autoseg.store.arrays import compress, damaged, native, read_array, smallest_label
from autoseg.store.layout import stem
from autoseg.workspace import Workspace

log = logging.getLogger(__name__)


def read_cropped(case: Case, labels: Labels, channels: int) -> Cropped:
    """Read a case and crop it to its non-zero region.

    Raises: UserError for a label map on another grid, whose labels would stand at the wrong places, and for voxels that
    are not finite, which would spoil the statistics of all cases.
    """
    image = read_image(case.images, channels=channels)
    _check_finite(image.data, case.images)
    label = None
    if case.label is not None:
        raw, grid = read_label(case.label)
        if (error := label_grid_error(image.geometry, grid, case.label)) is not None:
            raise error
        label = labels.to_internal(raw, where=str(case.label))
    return crop(image.data, label, image.geometry.spacing)


def _check_finite(data: np.ndarray, files: Sequence[Path]) -> None:
    for channel, volume in enumerate(data):
        if np.isfinite(volume.sum(dtype=np.float64)):
            continue
        count = volume.size - int(np.isfinite(volume).sum())
        if count:  # else finite values whose sum is not
            raise UserError(
                f"channel {channel} holds {count} voxel(s) that are not finite (NaN or infinite)",
                where=files[channel] if len(files) == len(data) else files[0],
                mend="replace them, for example by the value of the background",
            )


class DecodedCache:
    """A folder of cropped cases; a case without its record, written last, does not exist."""

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def of(cls, workspace: Workspace, dataset_name: str) -> DecodedCache:
        """Return the cache of a data set."""
        return cls(workspace.preprocessed_folder(dataset_name) / "decoded")

    def write(self, case: str, cropped: Cropped, input_hash: str) -> None:
        """Store a case, in the smallest integer type that keeps every value."""
        contents = compress(native(cropped.image)), compress(smallest_label(cropped.label))
        for path, content in zip(self._files(case), contents, strict=True):
            write_bytes(path, content)
        record = _Record(
            input_hash=input_hash,
            checksums=tuple(hashlib.sha256(content).hexdigest() for content in contents),
            labelled=cropped.labelled,
            spacing=cropped.spacing,
            shape_before_crop=cropped.shape_before_crop,
            box=cropped.box,
        )
        write_json(self._record_file(case), record.model_dump(mode="json"), sealed=True)

    def read(self, case: str, input_hash: str) -> Cropped | None:
        """Return a case, or None if it is not here, was made from other inputs, or is damaged."""
        if not self._record_file(case).is_file():
            return None
        try:
            record: _Record = parse(_Record, read_json(self._record_file(case)), self._record_file(case))
            if record.input_hash != input_hash:
                return None
            pairs = zip(self._files(case), record.checksums, strict=True)
            image, label = (_read_intact(path, checksum) for path, checksum in pairs)
        except UserError as error:
            log.warning("case %s is read again, since its decoded copy cannot be used: %s", case, error.what)
            return None
        return Cropped(image, label, record.labelled, record.spacing, record.shape_before_crop, record.box)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self, case: str) -> tuple[Path, Path]:
        return self.folder / f"{stem(case)}.image.b2nd", self.folder / f"{stem(case)}.label.b2nd"

    def _record_file(self, case: str) -> Path:
        return self.folder / f"{stem(case)}.json"


class _Record(Frozen):
    input_hash: str
    checksums: tuple[str, str]  # SHA-256 of image and label map
    labelled: bool
    spacing: tuple[float, float, float]
    shape_before_crop: tuple[int, int, int]
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def _read_intact(path: Path, checksum: str) -> np.ndarray:
    if not path.is_file() or file_hash(path) != checksum:
        raise damaged(path, "it does not match its checksum")
    return read_array(path)
