"""The fingerprint of a data set: all that planning needs to know about it.

Per case and pooled, after cropping to the non-zero region: shapes, spacings, foreground intensities, frequencies of
the classes. Intensities are pooled with equal weight per case, as if each case gave the same number of random
foreground voxels; all voxels are used, so nothing is random.
Source of the rules: Isensee et al. 2021, Nature Methods 18, 203-211.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from autoseg.deadlines import file_bytes
from autoseg.errors import CaseError, CasesFailed, UserError
from autoseg.labels import Labels
from autoseg.plans import ChannelIntensities, Frozen, parse
from autoseg.preprocessing.alone import alone_in
from autoseg.preprocessing.crop import Cropped
from autoseg.preprocessing.decoded import DecodedCache, read_cropped
from autoseg.preprocessing.raw_checksums import RawChecksums, Taken
from autoseg.preprocessing.value_sketch import ValueSketch, pool
from autoseg.raw import Case, Dataset, open_dataset, place_of
from autoseg.storage import content_hash, read_json, write_json
from autoseg.workers import default_workers, run_cases
from autoseg.workspace import Workspace

log = logging.getLogger(__name__)

FINGERPRINT_FILE = "fingerprint.json"
FINGERPRINT_VERSION = 1
BYTES_PER_WORKER = 2 * 1024**3


class ClassFrequency(Frozen):
    """How often a class, a region, "background" or "ignore" occurs, after cropping."""

    name: str
    voxels: int
    cases: int  # in how many cases at all


class Fingerprint(Frozen):
    """What is known about a data set. Axes as in the files: (z, y, x), spacing in mm; lists run over `cases`."""

    format: Literal[1] = 1
    dataset_name: str
    num_cases: int
    cases: tuple[str, ...]
    channel_names: tuple[str, ...]
    spacings: tuple[tuple[float, float, float], ...]
    shapes_after_crop: tuple[tuple[int, int, int], ...]
    median_relative_size: float  # median over cases of voxels after / before cropping
    intensities: tuple[ChannelIntensities, ...]
    num_labels: int  # entries of `labels`: background, classes or regions, ignore
    class_frequencies: tuple[ClassFrequency, ...]
    failed: tuple[str, ...] = ()  # cases that could not be read and are not in `cases`
    input_hash: str

    def write(self, path: Path) -> None:
        """Write the fingerprint as JSON."""
        write_json(path, self.model_dump(mode="json"), sealed=True)

    @classmethod
    def read(cls, path: Path) -> Fingerprint:
        """Read a fingerprint from JSON; what does not fit is told by field and value."""
        return parse(cls, read_json(path), path)


def fingerprint(
    dataset: str | Path | Dataset,
    workspace: str | Path | Workspace | None = None,
    *,
    workers: int | None = None,
    restart: bool = False,
) -> Fingerprint:
    """Examine every training case, write fingerprint.json and return it; nothing is read again if nothing changed.

    The data set is given as for `open_dataset`, or open already; the workspace by its folder, None is the default one.
    The decoded cases stay in a cache for preprocessing. Without training cases the unlabelled ones are examined.
    Cases that fail are listed in the written fingerprint, which covers the others; then CasesFailed is raised.
    A damaged fingerprint.json is told and made anew.
    """
    workspace = place_of(workspace)
    dataset = open_dataset(dataset, workspace)
    cases = dataset.cases or dataset.unlabelled
    if not cases:
        raise UserError("the data set has no training cases", where=dataset.folder, mend="add images and labels")
    path = workspace.preprocessed_folder(dataset.name) / FINGERPRINT_FILE
    checksums = RawChecksums.of(workspace, dataset, restart=restart)
    if path.is_file() and not restart:
        known = _known(path)
        if known is not None and not known.failed:
            same = known.input_hash == _input_hash(dataset, checksums.identities(cases))
            checksums.write()
            if same:
                return known
    cache = DecodedCache.of(workspace, dataset.name)
    with alone_in(path.parent):
        if restart:
            cache.remove()
        context = _Context(dataset.labels, len(dataset.channel_names), checksums, _cache_folder(cache, cases))
        return _measured(dataset, cases, context, path, workers)


def _input_hash(dataset: Dataset, identities: Mapping[str, str]) -> str:
    return content_hash(FINGERPRINT_VERSION, dataset.name, dataset.channel_names, dict(identities))


def _known(path: Path) -> Fingerprint | None:
    try:
        return Fingerprint.read(path)
    except UserError as error:
        log.warning("the fingerprint is made anew: %s: %s", error.where or path, error.what)
        return None


def _measured(
    dataset: Dataset, cases: Sequence[Case], context: _Context, path: Path, workers: int | None
) -> Fingerprint:
    """Examine the cases and write their fingerprint to `path`."""
    results = run_cases(
        partial(_examine, context),
        cases,
        stage="fingerprint",
        workers=workers or default_workers(BYTES_PER_WORKER),
        progress="fingerprint",
        name_of=_case_id,
        size_of=lambda case: file_bytes((*case.images, case.label)),
    )
    facts: dict[str, _Facts] = {}
    failures: list[CaseError] = []
    try:
        for result in results:
            if result.error:
                failures.append(result.error)
            else:
                facts[result.case] = result.value
                context.checksums.note(result.value.files)
    except BaseException:  # what was read need not be read again, as its decoded copies
        context.checksums.write()
        raise
    if facts:
        found = _pooled(dataset, {case.id: facts[case.id] for case in cases if case.id in facts})
        found = found.model_copy(update={"failed": tuple(sorted(failure.case for failure in failures))})
        found.write(path)
        context.checksums.write()
    if failures:
        raise CasesFailed(failures, all_failed=not facts)
    return found


@dataclass(frozen=True)
class _Context:
    labels: Labels
    channels: int
    checksums: RawChecksums
    cache: Path | None  # None: the disk has no room for it


@dataclass(frozen=True)
class _Facts:
    """What one case contributes."""

    identity: str
    files: Taken
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    relative_size: float
    counts: np.ndarray  # voxels of each internal value, background first
    sketches: tuple[ValueSketch | None, ...]  # foreground intensities per channel; None without foreground


def _examine(context: _Context, case: Case) -> _Facts:
    """Examine one case, in a worker."""
    cache = None if context.cache is None else DecodedCache(context.cache)
    files = context.checksums.take(case)
    identity = context.checksums.identity(case, files)
    cropped = cache.read(case.id, identity) if cache else None
    if cropped is None:
        cropped = read_cropped(case, context.labels, context.channels)
        if cache:
            cache.write(case.id, cropped, identity)
    return _facts(cropped, context.labels, identity, files)


def _facts(cropped: Cropped, labels: Labels, identity: str, files: Taken) -> _Facts:
    shape = cropped.image.shape[1:]
    values = len(labels.foreground_values) + 1 + bool(labels.ignore)
    counts = np.bincount(cropped.label.ravel().astype(np.int64) + 1, minlength=values + 1)
    counts[1] += counts[0]  # background outside of the non-zero region is background
    foreground = cropped.label > 0 if cropped.labelled else cropped.label == 0
    any_foreground = bool(foreground.any())
    return _Facts(
        identity=identity,
        files=files,
        spacing=cropped.spacing,
        shape=shape,
        relative_size=float(np.prod(shape) / np.prod(cropped.shape_before_crop)),
        counts=counts[1:] if cropped.labelled else np.zeros(values, dtype=np.int64),
        sketches=tuple(ValueSketch.of(volume[foreground]) if any_foreground else None for volume in cropped.image),
    )


def _pooled(dataset: Dataset, facts: dict[str, _Facts]) -> Fingerprint:
    channels = list(zip(*(one.sketches for one in facts.values()), strict=True))
    if not any(channels[0]):
        raise UserError(
            "no label map has any foreground", where=dataset.folder, mend="check the label maps and their values"
        )
    return Fingerprint(
        dataset_name=dataset.name,
        num_cases=len(facts),
        cases=tuple(facts),
        channel_names=dataset.channel_names,
        spacings=tuple(one.spacing for one in facts.values()),
        shapes_after_crop=tuple(one.shape for one in facts.values()),
        median_relative_size=float(np.median([one.relative_size for one in facts.values()])),
        intensities=tuple(pool([sketch for sketch in channel if sketch is not None]) for channel in channels),
        num_labels=len(dataset.labels.values) + 1 + bool(dataset.labels.ignore),
        class_frequencies=_frequencies(dataset.labels, np.stack([one.counts for one in facts.values()])),
        input_hash=_input_hash(dataset, {case: one.identity for case, one in facts.items()}),
    )


def _frequencies(labels: Labels, counts: np.ndarray) -> tuple[ClassFrequency, ...]:
    """`counts` is (cases, internal values)."""
    groups = {"background": (0,)} | dict(zip(labels.names, labels.members, strict=True))
    if labels.ignore_index is not None:
        groups["ignore"] = (labels.ignore_index,)
    frequencies = []
    for name, values in groups.items():
        voxels = counts[:, list(values)].sum(axis=1)
        frequencies.append(ClassFrequency(name=name, voxels=int(voxels.sum()), cases=int((voxels > 0).sum())))
    return tuple(frequencies)


def _cache_folder(cache: DecodedCache, cases: tuple[Case, ...]) -> Path | None:
    """Return the folder of the cache, or None if the disk might not hold it."""
    paths = [path for case in cases for path in case.images]
    needed = sum(2 * path.stat().st_size for path in paths if path.is_file())
    existing = next(path for path in (cache.folder, *cache.folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if 2 * needed < free:
        return cache.folder
    log.warning(
        "the disk has %.1f GB free: decoded cases (about %.1f GB) are not kept, so preprocessing reads all files again",
        free / 1e9,
        needed / 1e9,
    )
    return None


def _case_id(case: Case) -> str:
    return case.id
