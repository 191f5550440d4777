"""`benchmark`: from the question to runs, tables and a page."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoseg.benchmarking.children import Outcome, Task
from autoseg.benchmarking.configuration import configuration_of, dims_of, tell_forms
from autoseg.benchmarking.cores import threads_and_jobs, threads_of_a_run
from autoseg.benchmarking.estimating import Estimate, estimate
from autoseg.benchmarking.inputs import folds_compared
from autoseg.benchmarking.judging import conclude
from autoseg.benchmarking.lock import alone
from autoseg.benchmarking.matrix import Entry, Run, competitors, distinct, in_words, runs_of
from autoseg.benchmarking.preparing import (
    Field,
    Means,
    entry_code,
    make_field,
    measure_all,
    plan_all,
    request_of,
    write_recipe,
)
from autoseg.benchmarking.question import Question
from autoseg.benchmarking.record import RECIPES, Record
from autoseg.benchmarking.tables import scores_file, scores_of, unscored_in_words, write_tables
from autoseg.benchmarking.told import tell_new
from autoseg.benchmarking.verdict import Overall, Verdict
from autoseg.errors import UserError
from autoseg.raw import Dataset, make_splits, open_dataset, place_of
from autoseg.storage import content_hash
from autoseg.workspace import Workspace

LOST = "lost"  # instead of a checksum: what a run was made from counts for nothing, its scores are gone
PASSING = ("status", "error", "restart")  # of a run's record, what its next try writes anew
WATCHING = {"observed_cases": 0, "stop_on_collapse": False}  # a run costs what it trains, and ends with its budget
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Benchmark:
    """What came of a campaign: its folder, its record, the verdict on every data set and over all of them."""

    folder: Path
    record: Record
    verdicts: tuple[Verdict, ...]
    overall: tuple[Overall, ...]
    asked: tuple[str, ...]  # keys of the runs that this call was for; the record may hold more

    @property
    def failures(self) -> dict[str, str]:
        """Return {run or network: why it failed, wholly or on some cases} of what was asked for."""
        found = {key: self.record["runs"].get(key, {}) for key in self.asked}
        failed = {key: run["error"] for key, run in found.items() if "error" in run}
        return failed | {key: unscored_in_words(run) for key, run in found.items() if run.get("unscored")}


def benchmark(
    question: Question,
    *,
    name: str | None = None,
    output: Path | None = None,
    workspace: str | Path | Workspace | None = None,
    jobs: int | None = None,
    workers: int | None = None,
    restart: bool = False,
    keep_weights: bool = False,
    deterministic: bool = False,
) -> Benchmark:
    """Carry out a campaign, or go on with it; returns what came of it, failed runs included.

    `jobs` runs go on at a time, each with its share of the cores; without it, one per device. Runs that are finished
    with the same plan, settings and seed are not done again, unless `restart`. Raises UserError for wrong use,
    Interrupted after Ctrl-C.
    """
    place = place_of(workspace)
    name, folder = _place(question, name, output, place)
    devices = tuple(question.device.split(","))
    jobs = jobs or len(devices)
    entries, broken = competitors(question, place.root)
    references = [_lasting(reference, place) for reference in question.datasets]
    datasets = [open_dataset(reference, place) for reference in references]
    for dataset in datasets:  # what cannot be compared leaves no record behind
        folds_compared(question.folds, dataset, make_splits(dataset, workspace=place))
        tell_forms(dataset.name, dims_of(configuration_of(question, dataset, place)), entries)
    with alone(folder):
        record = Record.open(folder, name, question.fixed(), threads=threads_of_a_run(jobs, question.device))
        if restart:
            record.clear(threads=threads_of_a_run(jobs, question.device))
        threads, jobs = threads_and_jobs(record, jobs, question.device)
        means = Means(place, record, jobs, threads, devices, workers, keep_weights, deterministic)
        record.content["runs"] = {key: _checked(record, run) for key, run in record["runs"].items() if "dataset" in run}
        for missing, reason in broken.items():
            log.warning("%s is left out: %s", missing, reason)
            record.put("runs", missing, {"error": reason})
        try:
            asked = _work(question, dict(zip(references, datasets, strict=True)), entries, means)
        finally:
            verdicts, overall = conclude(record)
    return Benchmark(folder, record, tuple(verdicts), tuple(overall), (*broken, *asked))


def dry_run(
    question: Question,
    *,
    name: str | None = None,
    output: Path | None = None,
    workspace: str | Path | Workspace | None = None,
    jobs: int | None = None,
    keep_weights: bool = False,
) -> list[Estimate]:
    """Return what a campaign will cost per data set, with `jobs` runs at a time; plans, trains and writes nothing."""
    place = place_of(workspace)
    name, folder = _place(question, name, output, place)
    entries, broken = competitors(question, place.root)
    for missing, reason in broken.items():
        log.warning("%s is left out: %s", missing, reason)
    jobs = jobs or len(question.device.split(","))
    record = Record.open(folder, name, question.fixed(), threads=threads_of_a_run(jobs, question.device))
    threads, jobs = threads_and_jobs(record, jobs, question.device)
    record.content["runs"] = {key: _checked(record, run) for key, run in record["runs"].items() if "dataset" in run}
    more: dict[str, Any] = {"threads": threads, "jobs": jobs, "keep_weights": keep_weights}
    found = []
    for reference in question.datasets:
        dataset = open_dataset(_lasting(reference, place), place)
        splits = make_splits(dataset, workspace=place)
        folds = folds_compared(question.folds, dataset, splits)
        tell_forms(dataset.name, dims_of(configuration_of(question, dataset, place)), entries)
        found.append(estimate(question, record, dataset, folds, splits, entries, place, **more))
    return found


def _place(question: Question, name: str | None, output: Path | None, place: Workspace) -> tuple[str, Path]:
    name = checked_name(name or default_name(question))
    return name, (output or place.root / "benchmarks" / name).resolve()


def _work(question: Question, datasets: Mapping[str, Dataset], entries: Sequence[Entry], means: Means) -> list[str]:
    """Plan, measure and run whatever is not done yet; returns the keys of all runs that were asked for."""
    record = means.record
    for reference, dataset in datasets.items():
        kept = record["datasets"].get(dataset.name, {}).get("reference", reference)
        if kept != reference or [other.name for other in datasets.values()].count(dataset.name) > 1:
            raise UserError(
                f"two data sets of one campaign are called {dataset.name}", where=reference,
                mend="rename one, or compare on it in another campaign (--name)",
            )  # fmt: skip
    fields = [make_field(question, dataset, reference, means) for reference, dataset in datasets.items()]
    for field in fields:
        served = _serving(field, entries, record)
        networks = {entry.architecture.name: entry.architecture for entry in served}
        plan_all(question, field, list(networks.values()), means)
        measure_all(question, field, served, means)
    asked: list[str] = []
    tasks = [
        task
        for seed in range(question.seeds)
        for field in fields
        for task in _tasks_of(question, field, _serving(field, entries, record), seed, means, asked)
    ]
    _carry_out(tasks, means)
    return asked


def _checked(record: Record, run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run of a record; one whose scores are gone or cannot be read is to be made anew."""
    if run.get("status") != "finished":
        return dict(run)
    try:
        scores_of(record, run)
    except UserError as error:
        log.warning("%s: %s; the run is made anew", error.where or scores_file(record, run), error.what)
        return {**{name: run[name] for name in ("dataset", "entry", "fold", "seed")}, "content": LOST}
    return dict(run)


def default_name(question: Question) -> str:
    """Return a name that tells what is compared at what budget."""
    budget = question.budget
    unit = {"steps": "steps", "time": "s", "flops": "flops"}[budget.equal]
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"equal-{budget.amount:.6g}{unit}".replace("+", ""))


def checked_name(name: str) -> str:
    """Return a name that can be one of a folder and of plans."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"--name {name!r} cannot be the name of a folder", mend="use letters, digits, '_', '-' and '.'")
    return name


def _lasting(reference: str, place: Workspace) -> str:
    """Return what finds the data set from any folder."""
    return str(Path(place.find_dataset(reference)).resolve())


def _serving(field: Field, entries: Sequence[Entry], record: Record) -> list[Entry]:
    """Return the entries whose network has the data set's dimensions; the others are noted."""
    served = []
    for entry in entries:
        record["entries"][entry.key] = {
            "name": entry.name, "architecture": entry.architecture.name, "trainer": entry.trainer.name,
            "recipe": entry.recipe,
        }  # fmt: skip
        if field.dims in entry.architecture.kind.dims:
            served.append(entry)
        else:
            record["skipped"][f"{field.name}/{entry.key}"] = f"{entry.architecture.name} has no {field.dims}D form"
    record.write()
    return served


def _tasks_of(
    question: Question, field: Field, entries: Sequence[Entry], seed: int, means: Means, asked: list[str]
) -> list[Task]:
    """Return the runs of one seed that are not finished; what cannot be run is recorded as failed.

    `asked` gets the keys of all.
    """
    record = means.record
    tasks = []
    different, twins = distinct(entries, record["datasets"][field.name]["recipe"])
    for twin, kept in twins:
        record["skipped"][f"{field.name}/{twin.key}"] = in_words(twin, kept)
    for run in runs_of(field.name, different, field.folds, seed):
        asked.append(run.key)
        request, error = _request(question, field, run, means)
        if error is not None:
            record.put("runs", run.key, {**_about(run), "error": error})
            continue
        kept = record["runs"].get(run.key, {})
        if kept.get("content") == request.pop("earlier_content"):  # of a version that did not look at code and cases
            kept["content"] = request["content"]
        same, finished = kept.get("content") == request["content"], kept.get("status") == "finished"
        if same and finished and not kept.get("unscored"):
            continue
        if finished:
            why = unscored_in_words(kept) if same else "its plan, settings, code or cases are not what they were"
            log.warning("%s is made anew: %s", run.key, why)
        begun = same and not finished
        request["restart"] = kept.get("restart", False) if begun else bool(kept.get("content"))
        record["runs"][run.key] = {**_about(run), "content": request["content"], "status": "waiting",
                                   "restart": request["restart"],
                                   "steps_asked": request["settings"]["steps"]}  # fmt: skip
        tasks.append(Task(run.key, "train", request))
    record.write()
    return tasks


def _request(question: Question, field: Field, run: Run, means: Means) -> tuple[dict[str, Any], str | None]:
    """Return what the child of a run needs to know, or why there can be none."""
    record, entry = means.record, run.entry
    plan = record["plans"][f"{field.name}/{entry.architecture.name}"]
    if "error" in plan:
        return {}, f"planning failed: {plan['error']}"
    costs = record["costs"].get(f"{field.name}/{entry.key}", {"error": "not measured"})
    if "error" in costs:
        return {}, f"a step could not be measured: {costs['error']}"
    try:
        steps = question.budget.steps(costs)
    except UserError as error:
        return {}, str(error)
    shared = record["datasets"][field.name]["recipe"]
    recipe = write_recipe(entry, steps, shared, record.folder / RECIPES / field.name / f"{entry.key}.toml")
    request = request_of(question, field, entry, plan, recipe, run.fold, means)
    request["settings"] |= {**WATCHING, "steps": steps}
    seconds = None if means.deterministic else question.budget.seconds  # the same bits need the same number of steps
    told = [plan["digest"], recipe.read_text(encoding="utf-8"), request["settings"], run.fold, run.seed, entry.key]
    told += [] if seconds is None else [seconds]
    request |= {
        "training_seconds": seconds,
        "seed": run.seed,
        "name": f"{entry.key}-seed{run.seed}",
        "keep_weights": means.keep_weights,
        "deterministic": means.deterministic,
        "content": content_hash(*told, entry_code(entry, means), means.data(field, plan["store"], run.fold)),
        "earlier_content": content_hash(*told),
    }
    return request, None


def _about(run: Run) -> dict[str, Any]:
    return {"dataset": run.dataset, "entry": run.entry.key, "fold": run.fold, "seed": run.seed}


def _carry_out(tasks: Sequence[Task], means: Means) -> None:
    """Train and score; runs whose process died are tried once more, one at a time."""
    record, total = means.record, len(tasks)
    ended, died = 0, list[Task]()

    def done(task: Task, outcome: Outcome) -> None:
        """Record what became of a run, and keep those whose process died for a second try."""
        nonlocal ended
        ended += 1
        if outcome.died:
            died.append(task)
        kept = {name: value for name, value in record["runs"][task.key].items() if name not in PASSING}
        if outcome.answer is None:
            # Where it failed, what it was to replace is back and is to be replaced next time; killed runs go on.
            again = task.request["restart"] and not outcome.died
            record.put("runs", task.key, {**kept, "status": "failed", "error": outcome.error, "restart": again})
            log.warning("%d of %d: %s failed: %s", ended, total, task.key, outcome.error)
            return
        tell_new(record, record["runs"][task.key], outcome.warnings)
        kept["warnings"] = list(outcome.warnings)
        folder = Path(outcome.answer["folder"]).relative_to(record.folder)
        record.put("runs", task.key, {**kept, **outcome.answer, "folder": folder.as_posix(), "status": "finished",
                                      "seconds": round(outcome.seconds, 1)})  # fmt: skip
        dice = outcome.answer["means"].get("dice")
        log.info(
            "%d of %d: %s: Dice %s after %d steps, %.0f s", ended, total, task.key,
            "undefined" if dice is None else f"{dice:.4f}", outcome.answer["steps"], outcome.seconds,
        )  # fmt: skip
        if ended % 10 == 0:
            write_tables(record)

    means.carry_out(tasks, done)
    if died and means.jobs > 1:
        log.info("%d run(s) whose process died are tried once more, one at a time", len(died))
        ended, total = 0, len(died)
        replace(means, jobs=1).carry_out(list(died), done)
