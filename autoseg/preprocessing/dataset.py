"""Preprocessing of a whole data set: every case into the store of every configuration, in parallel, resumable."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

from autoseg.deadlines import file_bytes
from autoseg.errors import CasesFailed, UserError
from autoseg.labels import Labels
from autoseg.plans import Configuration, Plans
from autoseg.preprocessing.alone import alone_in
from autoseg.preprocessing.case import preprocess_cropped
from autoseg.preprocessing.decoded import DecodedCache, read_cropped
from autoseg.preprocessing.locations import class_locations
from autoseg.preprocessing.raw_checksums import RawChecksums, Taken
from autoseg.raw import Case, Dataset, open_dataset, place_of
from autoseg.storage import content_hash
from autoseg.store import CaseStore
from autoseg.workers import available_cores, default_workers, run_cases
from autoseg.workspace import Workspace

log = logging.getLogger(__name__)

STORE_VERSION = 1  # part of every hash: a change of what is computed makes all stores anew
COMPRESSED_SHARE = 0.8  # of the size of float16 data, an upper estimate for noisy images


@dataclass(frozen=True)
class _Context:
    """What is the same for every case."""

    labels: Labels
    channels: int
    plans: Plans
    cache: Path
    checksums: RawChecksums


@dataclass(frozen=True)
class _Task:
    """One case and the stores that lack it."""

    case: Case
    targets: tuple[tuple[Path, Configuration], ...]


def preprocess(
    dataset: str | Path | Dataset,
    plans: Plans,
    workspace: str | Path | Workspace | None = None,
    configurations: Sequence[str] | None = None,
    *,
    workers: int | None = None,
    restart: bool = False,
) -> tuple[Path, ...]:
    """Write the stores of some configurations (default: all of the plans), for all training and unlabelled cases.

    Returns the folders of the stores; configurations that want the same data share one. The data set is given as for
    `open_dataset`, or open already; the workspace by its folder, None is the default one.
    Each case is read once for all configurations. Cases that are complete and undamaged, for unchanged files and
    settings, are left alone unless `restart`. Raises CasesFailed after all other cases are done, UserError if the disk
    is too small or another command is preprocessing this data set.
    """
    workspace = place_of(workspace)
    dataset = open_dataset(dataset, workspace)
    chosen = _distinct([plans.configuration(name) for name in configurations or plans.configurations], plans)
    with alone_in(workspace.preprocessed_folder(dataset.name)):
        return _fill(dataset, plans, workspace, chosen, workers, restart)


def _fill(
    dataset: Dataset,
    plans: Plans,
    workspace: Workspace,
    chosen: Sequence[Configuration],
    workers: int | None,
    restart: bool,
) -> tuple[Path, ...]:
    """Bring the stores of the chosen configurations up to date; returns their folders."""
    folders = [workspace.store_folder(dataset.name, one.data_identifier) for one in chosen]
    stores = [CaseStore(folder) for folder in folders]
    for store in stores:
        store.drop_unreadable()
    cases = (*dataset.cases, *dataset.unlabelled)
    checksums = RawChecksums.of(workspace, dataset, restart=restart)
    tasks = _tasks(cases, checksums, plans, stores, chosen, restart)
    cache = DecodedCache.of(workspace, dataset.name)
    if tasks:
        _check_disk(tasks, plans, workspace.preprocessed_folder(dataset.name))
        for store in stores:
            store.discard(task.case.id for task in tasks if store.folder in [target[0] for target in task.targets])
    context = _Context(dataset.labels, len(dataset.channel_names), plans, cache.folder, checksums)
    results = run_cases(
        partial(_process, context),
        tasks,
        stage="preprocessing",
        workers=workers or default_workers(_memory_per_case(chosen, plans)),
        progress="preprocessing" if tasks else None,
        name_of=_case_id,
        size_of=lambda task: file_bytes((*task.case.images, task.case.label)),
    )
    failures = []
    try:
        for result in results:
            if result.error:
                failures.append(result.error)
            else:
                checksums.note(result.value)
        checksums.forget_others(cases)
    finally:
        checksums.write()
    wanted = {case.id for case in cases}
    for store in (CaseStore(folder) for folder in folders):
        if not store.sealed or set(store.cases) - wanted:
            store.seal(wanted)
    if failures:
        raise CasesFailed(failures, all_failed=len(failures) == len(cases))
    cache.remove()
    before = f", {len(cases) - len(tasks)} were complete already" if len(tasks) < len(cases) else ""
    log.info("preprocessed %d case(s)%s", len(tasks), before)
    return tuple(folders)


def _tasks(
    cases: Sequence[Case],
    checksums: RawChecksums,
    plans: Plans,
    stores: Sequence[CaseStore],
    chosen: Sequence[Configuration],
    restart: bool,
) -> list[_Task]:
    """Return what is to be done; nothing for cases that the stores have, undamaged, from the same content."""
    stored = set() if restart else {case for store in stores for case in store.cases}
    identities = checksums.identities(case for case in cases if case.id in stored)  # other cases' by the worker

    def missing(case: Case) -> _Task:
        """Return a case with the stores that lack it."""
        identity = identities.get(case.id)
        targets = [
            (store.folder, one)
            for store, one in zip(stores, chosen, strict=True)
            if identity is None or not store.is_complete(case.id, input_hash(identity, case, plans, one))
        ]
        return _Task(case, tuple(targets))

    with ThreadPoolExecutor(available_cores()) as readers:  # who compute checksums, without the interpreter's lock
        return [task for task in readers.map(missing, cases) if task.targets]


def input_hash(identity: str, case: Case, plans: Plans, configuration: Configuration) -> str:
    """Return the identity of what a stored case is made from: its raw files, by `RawChecksums`, and the settings."""
    return content_hash(identity, case.annotated, store_key(configuration, plans))


def _process(context: _Context, task: _Task) -> Taken:
    """Preprocess one case for its targets, in a worker; returns the states of its files."""
    taken = context.checksums.take(task.case)
    identity = context.checksums.identity(task.case, taken)
    cropped = DecodedCache(context.cache).read(task.case.id, identity)
    if cropped is None:
        cropped = read_cropped(task.case, context.labels, context.channels)
    for folder, configuration in task.targets:
        preprocessed = preprocess_cropped(cropped, plans=context.plans, configuration=configuration)
        locations = class_locations(preprocessed.label, context.labels) if preprocessed.labelled else {}
        CaseStore(folder).write(
            task.case.id,
            preprocessed,
            locations,
            annotated=annotated_values(task.case, context.labels),
            input_hash=input_hash(identity, task.case, context.plans, configuration),
            patch_size=configuration.patch_size,
        )
    return taken


def annotated_values(case: Case, labels: Labels) -> tuple[int, ...] | None:
    """Return the internal foreground values that were annotated in a case: None for all, none without a label map."""
    if case.label is None:
        return ()
    if case.annotated is None:
        return None
    members = dict(zip(labels.names, labels.members, strict=True))
    unknown = sorted(set(case.annotated) - set(members) - {"background"})
    if unknown:
        raise UserError(
            f"the annotated classes {unknown} are not among the labels",
            where=f"case {case.id}",
            mend=f"choose from: {', '.join(members)}",
        )
    return tuple(sorted({value for name in case.annotated for value in members.get(name, ())}))


def _distinct(chosen: Sequence[Configuration], plans: Plans) -> list[Configuration]:
    """One configuration per store; two that share a store must want the same data."""
    by_store: dict[str, Configuration] = {}
    for one in chosen:
        first = by_store.setdefault(one.data_identifier, one)
        if store_key(first, plans) != store_key(one, plans):
            raise UserError(
                f"configurations {first.name} and {one.name} share the store {one.data_identifier!r} but not the "
                "settings of preprocessing",
                where=f"plans {plans.plans_name}",
                mend="give one of them another data_identifier",
            )
    return list(by_store.values())


def store_key(configuration: Configuration, plans: Plans) -> str:
    """Hash of everything in the plans that the stored data depend on; patch sizes only shape the files."""
    uses_intensities = "ct" in configuration.normalization
    return content_hash(
        STORE_VERSION,
        configuration.spacing,
        configuration.normalization,
        configuration.use_mask,
        plans.transpose_forward,
        plans.intensities if uses_intensities else None,
    )


def _voxels(configuration: Configuration, plans: Plans) -> float:
    """Voxels of a typical preprocessed case."""
    slices = plans.original_median_shape[0] if configuration.dims == 2 else 1
    return prod(configuration.median_shape) * slices


def _memory_per_case(chosen: Sequence[Configuration], plans: Plans) -> int:
    """Peak memory in bytes of a case three times the typical size: raw, normalised, resampled, labels."""
    channels = len(plans.channel_names)
    raw = prod(plans.original_median_shape) * (12 * channels + 8)
    return int(3 * (raw + max(_voxels(one, plans) for one in chosen) * (8 * channels + 12)))


def _check_disk(tasks: Sequence[_Task], plans: Plans, folder: Path) -> None:
    per_voxel = COMPRESSED_SHARE * 2 * len(plans.channel_names) + 0.1
    needed = sum(_voxels(target[1], plans) * per_voxel for task in tasks for target in task.targets)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"preprocessing needs about {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free",
            where=folder,
            mend="free some space, choose a workspace on another disk, or preprocess fewer configurations",
        )


def _case_id(task: _Task) -> str:
    return task.case.id
