"""What a campaign will cost, told before anything is planned or trained (`--dry-run`)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autoseg.benchmarking.configuration import configuration_of, dims_of
from autoseg.benchmarking.matrix import Entry, distinct
from autoseg.benchmarking.question import Question
from autoseg.benchmarking.record import Record
from autoseg.errors import UserError
from autoseg.raw import Dataset, split_of
from autoseg.workspace import Workspace

START_SECONDS = 10.0  # of a process: imports, opening, writing
PLAN_SECONDS = 20.0
MEASURE_SECONDS = 25.0
WANTED_STEPS = 1500  # that the planner leaves in the time it plans for
UNKNOWN_STEP = 0.3  # seconds, where nothing else is known
VALIDATION_SHARE = 0.5  # of the training time, until a run has shown it


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
    disk_bytes: float
    rule: str  # where the seconds come from


def estimate(
    question: Question,
    record: Record,
    dataset: Dataset,
    folds: Sequence[str],
    splits: Sequence[Any],
    entries: Sequence[Entry],
    workspace: Workspace,
) -> Estimate:
    """Return what the runs on one data set will cost; reads only."""
    name = dataset.name
    served = _served(question, dataset, entries, workspace)
    recipe = record["datasets"].get(name, {}).get("recipe")
    if recipe is None and question.budget.equal == "steps":
        from autoseg.training.recipe import recipe_for

        recipe = recipe_for(int(question.budget.amount))
    if recipe is not None:
        served = distinct(served, recipe)[0]
    seconds, left, steps, rules = 0.0, 0, set(), set()
    for entry in served:
        train, count, rule = _training(question, record, name, entry)
        steps.add(count)
        rules.add(rule)
        for fold in folds:
            for seed in range(question.seeds):
                key = f"{name}/{entry.key}/fold_{fold}/seed_{seed}"
                if record["runs"].get(key, {}).get("status") != "finished":
                    left += 1
                    seconds += train + _beside(record, name, entry, train)
    planned = {key for key, plan in record["plans"].items() if "error" not in plan}
    architectures = {f"{name}/{entry.architecture.name}" for entry in served} - planned
    seconds += 0 if question.plans else PLAN_SECONDS * len(architectures)
    seconds += MEASURE_SECONDS * sum(f"{name}/{entry.key}" not in record["costs"] for entry in served)
    ids = [case.id for case in dataset.cases]
    validated = [case for fold in folds for case in split_of(list(splits), ids, fold)["val"]]
    labels = {case.id: case.label for case in dataset.cases if case.label is not None}
    maps = sum(labels[case].stat().st_size for case in validated if case in labels and labels[case].is_file())
    runs = len(served) * len(folds) * question.seeds
    return Estimate(
        dataset=name,
        entries=len(served),
        runs=runs,
        finished=runs - left,
        cases=len(validated),
        steps=steps.pop() if len(steps) == 1 else None,
        seconds=seconds,
        disk_bytes=float(left / max(1, len(folds)) * maps),
        rule="; ".join(sorted(rules)),
    )


def _served(question: Question, dataset: Dataset, entries: Sequence[Entry], workspace: Workspace) -> list[Entry]:
    """Return the entries whose network serves the data; without a fingerprint the first image's header tells."""
    dims = dims_of(configuration_of(question, dataset, workspace))
    return [entry for entry in entries if dims in entry.architecture.kind.dims]


def _training(question: Question, record: Record, dataset: str, entry: Entry) -> tuple[float, int | None, str]:
    """Return seconds and steps of training, and where they come from."""
    budget = question.budget
    costs: Mapping[str, Any] = record["costs"].get(f"{dataset}/{entry.key}", {})
    if "seconds" in costs:
        try:
            steps = budget.steps(costs)
        except UserError:
            return 0.0, None, "operations not countable"
        return steps * costs["seconds"], steps, "measured steps"
    if budget.equal == "time":
        return budget.amount, None, "the budget"
    if budget.equal == "flops":
        return UNKNOWN_STEP * 1000, None, f"1000 steps of {UNKNOWN_STEP:g} s, until steps are measured"
    seconds = question.seconds_to_plan_for()
    if seconds is None and question.gpu_memory is None and question.plans is None and question.device == "cpu":
        from autoseg.planning.budget import DEFAULT_BUDGET, MOST_FOLDS

        seconds = DEFAULT_BUDGET / MOST_FOLDS
    step = UNKNOWN_STEP if seconds is None else 0.9 * seconds / WANTED_STEPS
    return step * budget.amount, int(budget.amount), f"{step:.2g} s per step, until steps are measured"


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
        f"{one.dataset}: no winner is possible, as with {one.cases} cases no difference, however large, can pass the "
        f"correction for {comparisons} comparisons; more folds, or fewer methods in one campaign, would change that"
        for one in estimates
        if one.entries > 1 and smallest_p(one.cases) * comparisons >= LEVEL
    ]


def as_dict(estimates: Sequence[Estimate], jobs: int) -> dict[str, Any]:
    """Return all of it, for JSON: `hours` with so many runs at a time."""
    return {
        "datasets": [asdict(one) for one in estimates],
        "runs": sum(one.runs for one in estimates),
        "finished": sum(one.finished for one in estimates),
        "jobs": jobs,
        "hours": sum(one.seconds for one in estimates) / jobs / 3600,
        "disk_bytes": sum(one.disk_bytes for one in estimates),
        "warnings": undecidable(estimates),
    }
