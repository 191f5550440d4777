"""Where nnU-Net's trained models lie: a results folder, a data set's folder of them, or an exported zip file."""

from __future__ import annotations

import logging
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from autoseg.errors import UserError
from autoseg.interop.names import FOLD
from autoseg.storage import read_json

log = logging.getLogger(__name__)

LARGEST_ZIP = 2**36  # bytes of weights that a zip file may hold: 64 GiB
LARGEST_JSON = 2**28  # bytes of one JSON file
DESCRIPTIONS = ("plans.json", "dataset.json")
BLOCK = 2**20


@dataclass(frozen=True)
class Experiment:
    """A folder `TRAINER__PLANS__CONFIGURATION` of nnU-Net with the checkpoints of its folds."""

    folder: Path
    plans: dict[str, Any]
    description: dict[str, Any]  # dataset.json
    checkpoints: dict[str, Path]  # fold -> file

    @property
    def configuration_hint(self) -> str:
        """Return the configuration as the folder's name has it; the checkpoints know better."""
        return self.folder.name.rpartition("__")[2]

    @property
    def stem(self) -> str:
        """Return trainer and plans as the folder's name has them."""
        return self.folder.name.rpartition("__")[0]


@contextmanager
def opened(source: Path, checkpoint: str) -> Iterator[Path]:
    """Yield the folder to look into; a zip file is extracted, as far as needed, into one that vanishes afterwards."""
    if source.is_dir():
        yield source
    elif source.is_file() and zipfile.is_zipfile(source):
        with tempfile.TemporaryDirectory(prefix="autoseg-import-") as temporary:
            extract(source, Path(temporary), checkpoint)
            try:
                yield Path(temporary)
            except UserError as error:  # the user knows the zip file, not the folder that vanishes
                inside = None if error.where is None else error.where.replace(temporary, str(source))
                raise UserError(error.what, where=inside, mend=error.mend) from None
    elif source.exists():
        raise UserError(
            "neither a folder nor a zip file",
            where=source,
            mend="give a results folder of nnU-Net, or what nnUNetv2_export_model_to_zip wrote",
        )
    else:
        raise UserError("the folder or zip file does not exist", where=source)


def extract(source: Path, target: Path, checkpoint: str) -> None:
    """Extract plans, descriptions, checkpoints and post-processing of a zip file, and nothing else, into `target`.

    Nothing is extracted if any entry points outside of the folder, is a link, appears twice, or is too large.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            _check_entries(entries, source)
            wanted = [entry for entry in entries if _is_wanted(entry.filename, checkpoint)]
            _check_sizes(wanted, source, target)
            for entry in wanted:
                path = target / entry.filename
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as reader, path.open("xb") as writer:
                    _copy(reader, writer, entry.file_size, source)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zipfile.zlib.error) as error:
        raise UserError(f"the zip file cannot be read ({error})", where=source, mend="copy it again") from None


def _copy(reader: Any, writer: Any, size: int, source: Path) -> None:
    """Copy at most what the entry said it holds."""
    copied = 0
    while block := reader.read(BLOCK):
        copied += len(block)
        if copied > size:
            raise UserError("an entry holds more than it says", where=source, mend="do not use this file")
        writer.write(block)


def _check_entries(entries: Sequence[zipfile.ZipInfo], source: Path) -> None:
    seen = set()
    for entry in entries:
        path = PurePosixPath(entry.filename)
        outside = path.is_absolute() or ".." in path.parts or {"\\", ":", "\0"} & set(entry.filename)
        if outside or entry.filename != entry.orig_filename.replace("\\", "/") or not path.parts:
            raise UserError(f"the entry {entry.orig_filename!r} points outside", where=source, mend="do not use it")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise UserError(f"the entry {entry.filename!r} is a link", where=source, mend="do not use this file")
        if path in seen:
            raise UserError(f"the entry {entry.filename!r} appears twice", where=source, mend="do not use this file")
        seen.add(path)


def _check_sizes(entries: Sequence[zipfile.ZipInfo], source: Path, target: Path) -> None:
    for entry in entries:
        if entry.filename.endswith(".json") and entry.file_size > LARGEST_JSON:
            raise UserError(f"the entry {entry.filename!r} is too large", where=source, mend="do not use this file")
    total = sum(entry.file_size for entry in entries)
    if total > LARGEST_ZIP:
        raise UserError(
            f"the zip file holds {total / 2**30:.0f} GiB, at most {LARGEST_ZIP / 2**30:.0f} are taken",
            where=source,
            mend="extract it yourself and give the folder",
        )
    free = shutil.disk_usage(target).free
    if total * 1.02 > free:
        raise UserError(
            f"{total / 2**20:.0f} MiB are needed for the extracted file, {free / 2**20:.0f} MiB are free",
            where=target,
            mend="free some space",
        )


def _is_wanted(name: str, checkpoint: str) -> bool:
    path = PurePosixPath(name)
    in_fold = path.name == checkpoint and FOLD.fullmatch(path.parent.name) is not None
    return in_fold or path.name in (*DESCRIPTIONS, "postprocessing.json")


def find_experiments(folder: Path, checkpoint: str) -> list[Experiment]:
    """Return the experiments at `folder` or up to three levels below it, sorted by name."""
    for depth in range(4):
        found = [path.parent for path in sorted(folder.glob("/".join(["*"] * depth + ["plans.json"])))]
        found = [path for path in found if _folds(path)]
        if found:
            return [read_experiment(path, checkpoint) for path in found]
    raise UserError(
        "no trained model of nnU-Net v2: no folder with plans.json and fold_0, fold_1, ... or fold_all",
        where=folder,
        mend="give a folder like nnUNet_results/Dataset001_X/nnUNetTrainer__nnUNetPlans__3d_fullres",
    )


def read_experiment(folder: Path, checkpoint: str) -> Experiment:
    """Read the descriptions of one experiment and list its checkpoints."""
    checkpoints = {path.name.removeprefix("fold_"): path / checkpoint for path in _folds(folder)}
    plans, description = (read_json(folder / name) for name in DESCRIPTIONS)
    for name, content in zip(DESCRIPTIONS, (plans, description), strict=True):
        if not isinstance(content, dict):
            raise UserError("the file does not hold a JSON object", where=folder / name)
    return Experiment(folder, plans, description, {fold: p for fold, p in checkpoints.items() if p.is_file()})


def _folds(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("fold_*")) if FOLD.fullmatch(path.name)]
