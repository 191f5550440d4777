"""What a campaign will cost, told before anything is planned or trained (`--dry-run`)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autoseg.benchmarking.configuration import configuration_of, dims_of
from autoseg.benchmarking.foreseeing import UNCOUNTED, foresee
from autoseg.benchmarking.matrix import Entry, distinct
from autoseg.benchmarking.question import Question
from autoseg.benchmarking.record import Record
from autoseg.raw import Dataset, read_geometry, split_of
from autoseg.workspace import Workspace

START_SECONDS = 10.0  # of a process: imports, opening, writing
PLAN_SECONDS = 20.0
MEASURE_SECONDS = 25.0
VALIDATION_SHARE = 0.5  # of the training time, until a run has shown it
WEIGHT_BYTES = 4  # of a parameter
RUN_BYTES = 16  # of a parameter of a run under way: weights twice, and two moments of the optimiser
STORED_BYTES = 2  # of a voxel of one channel, half precision
SAMPLED_CASES = 10  # whose headers are read


@dataclass(frozen=True)
class Method:
    """What the runs of one method on a data set will be."""

    method: str
    runs: int
    finished: int
    steps: int | None  # of a run; None: known only once steps are measured, at the start
    train_seconds: float  # of a run
    seconds: float  # of processes, for the runs that are left
    rule: str  # where steps and seconds come from


@dataclass(frozen=True)
class Estimate:
    """Costs of one data set's part of a campaign."""

    dataset: str
    entries: int
    runs: int
    finished: int
    cases: int  # validated in all folds together
    steps: int | None  # of a run; None: differs, or is measured at the start
    seconds: float  # of processes, for what is left
    disk_bytes: float  # in the end: label maps, weights that are kept, preprocessed data
    rule: str  # where the seconds come from
    methods: tuple[Method, ...] = ()
    threads: int = 1  # of a run, on a CPU
    jobs: int = 1  # runs at a time
    run_bytes: float | None = None  # weights and optimiser state of the largest run; None: not known before planning
    units: int | None = None  # independent ones among the cases: patients, where they are grouped; None: all are


def estimate(
    question: Question,
    record: Record,
    dataset: Dataset,
    folds: Sequence[str],
    splits: Sequence[Any],
    entries: Sequence[Entry],
    workspace: Workspace,
    *,
    threads: int = 1,
    jobs: int = 1,
    keep_weights: bool = False,
) -> Estimate:
    """Return what the runs on one data set will cost; reads only."""
    name, configuration = dataset.name, configuration_of(question, dataset, workspace)
    served = _served(question, record, name, configuration, entries)
    methods, sizes = [], []
    for entry in served:
        run = foresee(question, record, dataset, configuration, entry, workspace, threads)
        keys = [f"{name}/{entry.key}/fold_{fold}/seed_{seed}" for fold in folds for seed in range(question.seeds)]
        left = sum(record["runs"].get(key, {}).get("status") != "finished" for key in keys)
        seconds = left * (run.seconds + _beside(record, name, entry, run.seconds)) if run.rule != UNCOUNTED else 0.0
        methods.append(Method(entry.name, len(keys), len(keys) - left, run.steps, run.seconds, seconds, run.rule))
        sizes.append((left, run.parameters))
    planned = {key for key, plan in record["plans"].items() if "error" not in plan}
    architectures = {f"{name}/{entry.architecture.name}" for entry in served} - planned
    seconds = sum(method.seconds for method in methods)
    seconds += 0 if question.plans else PLAN_SECONDS * len(architectures)
    seconds += MEASURE_SECONDS * sum(f"{name}/{entry.key}" not in record["costs"] for entry in served)
    ids = [case.id for case in dataset.cases]
    validated = [case for fold in folds for case in split_of(list(splits), ids, fold)["val"]]
    groups = {case.id: f"group {case.group}" for case in dataset.cases if case.group is not None}
    left = sum(method.runs - method.finished for method in methods)
    disk = left / max(1, len(folds)) * label_bytes(dataset, validated)
    disk += store_bytes(question, record, dataset, workspace) if left else 0.0
    disk += sum(count * WEIGHT_BYTES * (found or 0) for count, found in sizes) if keep_weights else 0.0
    steps = {method.steps for method in methods}
    known = [found for count, found in sizes if count]
    return Estimate(
        dataset=name,
        entries=len(served),
        runs=sum(method.runs for method in methods),
        finished=sum(method.finished for method in methods),
        cases=len(validated),
        steps=steps.pop() if len(steps) == 1 else None,
        seconds=seconds,
        disk_bytes=float(disk),
        rule="; ".join(sorted({method.rule for method in methods})),
        methods=tuple(methods),
        threads=threads,
        jobs=jobs,
        units=len({groups.get(case, f"case {case}") for case in validated}),
        run_bytes=None if None in known else float(RUN_BYTES * max(known, default=0)),  # type: ignore[type-var]
    )


def _served(
    question: Question, record: Record, dataset: str, configuration: str, entries: Sequence[Entry]
) -> list[Entry]:
    """Return the entries that will be run: their network serves the data, and they are not twins of others."""
    dims = dims_of(configuration)
    served = [entry for entry in entries if dims in entry.architecture.kind.dims]
    recipe = record["datasets"].get(dataset, {}).get("recipe")
    if recipe is None and question.budget.equal == "steps":
        from autoseg.training.recipe import recipe_for

        recipe = recipe_for(int(question.budget.amount))
    return served if recipe is None else distinct(served, recipe)[0]


def label_bytes(dataset: Dataset, cases: Sequence[str]) -> int:
    """Return the bytes of the label maps of cases, which those predicted will have, too."""
    labels = {case.id: case.label for case in dataset.cases if case.label is not None}
    return sum(labels[case].stat().st_size for case in cases if case in labels and labels[case].is_file())


def store_bytes(question: Question, record: Record, dataset: Dataset, workspace: Workspace) -> float:
    """Return the most that preprocessed data which are not there yet will take: one store, not resampled or packed."""
    stores = {plan["store"] for key, plan in record["plans"].items() if key.startswith(f"{dataset.name}/")
              and "error" not in plan}  # fmt: skip
    if question.plans is not None or (
        stores and all(workspace.store_folder(dataset.name, one).is_dir() for one in stores)
    ):
        return 0.0
    cases = dataset.cases[:: max(1, len(dataset.cases) // SAMPLED_CASES)]
    voxels = [math.prod(read_geometry(case.images[0]).size) for case in cases]
    each = statistics.mean(voxels) * (STORED_BYTES * len(dataset.channel_names) + 1)
    return each * (len(dataset.cases) + len(dataset.unlabelled)) * max(1, len(stores))


def _beside(record: Record, dataset: str, entry: Entry, train: float) -> float:
    """Return the seconds of a run beside training: as its other runs took, else by rule."""
    known = [
        run["seconds"] - run["train_seconds"]
        for run in record["runs"].values()
        if run.get("status") == "finished" and (run["dataset"], run["entry"]) == (dataset, entry.key)
    ]
    return statistics.mean(known) if known else START_SECONDS + VALIDATION_SHARE * train


def undecidable(estimates: Sequence[Estimate]) -> list[str]:
    """Return a warning per data set that has too few cases for any winner among so many methods."""
    from autoseg.benchmarking.statistics import smallest_p
    from autoseg.benchmarking.verdict import LEVEL

    comparisons = sum(one.entries * (one.entries - 1) // 2 for one in estimates)
    return [
        f"{one.dataset}: no winner is possible, as with {_counted(one)} no difference, however large, can pass the "
        f"correction for {comparisons} comparisons; more folds, or fewer methods in one campaign, would change that"
        for one in estimates
        if one.entries > 1 and smallest_p(_units(one)) * comparisons >= LEVEL
    ]


def _units(one: Estimate) -> int:
    return one.cases if one.units is None else one.units


def _counted(one: Estimate) -> str:
    return f"{one.cases} cases" if _units(one) == one.cases else f"{_units(one)} groups of {one.cases} cases"


def as_dict(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """Return all of it, for JSON: `hours` with `jobs` runs at a time, `run_bytes` on disk while they are trained."""
    jobs = max((one.jobs for one in estimates), default=1)
    running = [one.run_bytes for one in estimates]
    return {
        "datasets": [asdict(one) for one in estimates],
        "runs": sum(one.runs for one in estimates),
        "finished": sum(one.finished for one in estimates),
        "jobs": jobs,
        "threads": max((one.threads for one in estimates), default=1),
        "hours": sum(one.seconds for one in estimates) / jobs / 3600,
        "processor_hours": sum(one.seconds * one.threads for one in estimates) / 3600,
        "disk_bytes": sum(one.disk_bytes for one in estimates),
        "run_bytes": None if None in running else jobs * max(running, default=0.0),
        "warnings": undecidable(estimates),
    }
