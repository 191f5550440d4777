"""Before anything is trained: fingerprints, one plan per network, the shared stores, the cost of every step."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

from autoseg.benchmarking.budget import Budget
from autoseg.benchmarking.children import Outcome, Task, carry_out
from autoseg.benchmarking.configuration import configuration_of, dims_of
from autoseg.benchmarking.inputs import code_of, data_of, folds_compared
from autoseg.benchmarking.matrix import Entry, Plugin, content_of, distinct
from autoseg.benchmarking.question import Question
from autoseg.benchmarking.recipes import as_toml
from autoseg.benchmarking.record import RECIPES, RUNS, Record
from autoseg.errors import UserError
from autoseg.plans import Plans
from autoseg.raw import Dataset, make_splits
from autoseg.storage import content_hash, write_text
from autoseg.workspace import Workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Means:
    """What the work of a campaign is carried out with."""

    workspace: Workspace
    record: Record
    jobs: int
    threads: int
    devices: tuple[str, ...]
    workers: int | None = None
    keep_weights: bool = False
    deterministic: bool = False
    digests: dict[tuple[str, str, str], str] = dataclass_field(default_factory=dict)  # of data, by set, store and fold

    def data(self, field: Field, store: str, fold: str) -> str:
        """Return the checksum of the cases of a fold in a store."""
        key = (field.name, store, fold)
        if key not in self.digests:
            folder = self.workspace.store_folder(field.name, store)
            self.digests[key] = data_of(field.dataset, field.splits, fold, folder)
        return self.digests[key]

    def carry_out(self, tasks: Sequence[Task], done: Any) -> None:
        """Carry out tasks in child processes."""
        carry_out(tasks, done, folder=self.record.folder, jobs=self.jobs, threads=self.threads, devices=self.devices)

    def workspace_request(self) -> dict[str, str]:
        """Return the workspace with results of the campaign's own, which no `find-best` looks at."""
        place = self.workspace
        folders = {"raw": place.raw, "preprocessed": place.preprocessed, "root": place.root}
        return {name: str(path.resolve()) for name, path in {**folders, "results": self.record.folder / RUNS}.items()}


@dataclass(frozen=True)
class Field:
    """A data set of the campaign: where it is and how it is seen."""

    dataset: Dataset
    reference: str
    configuration: str
    folds: tuple[str, ...]
    splits: tuple[Mapping[str, Sequence[str]], ...] = ()

    @property
    def name(self) -> str:
        """Return the name of the data set."""
        return self.dataset.name

    @property
    def dims(self) -> int:
        """Return the dimensions that a network must serve."""
        return dims_of(self.configuration)


def make_field(question: Question, dataset: Dataset, reference: str, means: Means) -> Field:
    """Return the configuration and the folds of a data set; measures its fingerprint where that is not done."""
    from autoseg.fingerprinting import fingerprint

    splits = make_splits(dataset, workspace=means.workspace)
    folds = folds_compared(question.folds, dataset, splits)
    if question.plans is None:
        fingerprint(dataset, means.workspace, workers=means.workers)
    return Field(dataset, reference, configuration_of(question, dataset, means.workspace), folds, tuple(splits))


def plan_all(question: Question, field: Field, architectures: Sequence[Plugin], means: Means) -> None:
    """Plan a data set for every network that has no plan yet, and preprocess what the plans want."""
    record, name = means.record, field.name
    tasks, codes = [], dict[str, str | None]()
    for architecture in architectures:
        key = f"{name}/{architecture.name}"
        kept, options = record["plans"].get(key), dict(architecture.options)
        code = code_of("architecture", architecture, means.workspace.root)
        same = kept is not None and "error" not in kept and kept.get("code", code) == code
        if kept is not None and same and _unchanged(kept, field, means.workspace):
            _check_options(key, kept, options, record)
            continue
        if question.plans is not None:
            plans = Plans.read(means.workspace.plans_file(name, question.plans))
            from autoseg.benchmarking.child import describe

            about = {"architecture": architecture.reference, "code": code}
            record.put("plans", key, describe(plans, field.configuration) | about)
            continue
        codes[key], seconds = code, question.seconds_to_plan_for()
        request = {
            "dataset": field.reference,
            "configuration": field.configuration,
            "workspace": means.workspace_request(),
            "planner": question.planner,
            "architecture": architecture.reference,
            "network_options": options,
            "gpu_memory": question.gpu_memory,
            "time_budget": None if seconds is None else seconds * _folds_of(field),
            "plans_name": f"{record.content['name']}-{architecture.name}",
        }
        tasks.append(Task(key, "plan", request))

    def done(task: Task, outcome: Outcome) -> None:
        """Record the plan of a network, or why there is none."""
        if outcome.answer is None:
            log.warning("no plan for %s: %s", task.key, outcome.error)
        else:
            log.info(
                "planned %s: patches of %s, batches of %d (%.0f s)", task.key,
                " x ".join(map(str, outcome.answer["patch_size"])), outcome.answer["batch_size"], outcome.seconds,
            )  # fmt: skip
        for said in outcome.warnings:
            log.warning("%s: %s", task.key, said)
        about = {"network_options": task.request["network_options"], "code": codes[task.key]}
        about["warnings"] = list(outcome.warnings)
        record.put("plans", task.key, {**(outcome.answer or {"error": outcome.error}), **about})

    means.carry_out(tasks, done)
    _preprocess(field, means)


def _unchanged(kept: dict[str, Any], field: Field, workspace: Workspace) -> bool:
    """Return whether the plan is there as it was; a plan that somebody changed is a UserError."""
    from autoseg.benchmarking.child import describe

    file = workspace.plans_file(field.name, kept["plans_name"])
    if not file.is_file():
        return False
    if describe(Plans.read(file), field.configuration)["digest"] != kept["digest"]:
        raise UserError(
            "the plan of this campaign was changed since", where=file,
            mend="put it back, or begin another campaign with --name",
        )  # fmt: skip
    return True


def _check_options(key: str, kept: dict[str, Any], options: dict[str, Any], record: Record) -> None:
    """Raise UserError where a network was planned with other options before: its runs could not be compared."""
    before = kept.get("network_options", {})
    if before != options:
        raise UserError(
            f"{key} has the options {before or 'of its defaults'} in this campaign, not {options or 'those'}",
            where=record.folder, mend="choose another --name or --output for other options",
        )  # fmt: skip


def _folds_of(field: Field) -> int:
    from autoseg.planning.budget import folds_of

    return folds_of(len(field.dataset.cases))


def _preprocess(field: Field, means: Means) -> None:
    from autoseg.preprocessing import preprocess

    stores: dict[str, str] = {}
    for key, kept in means.record["plans"].items():
        if key.partition("/")[0] == field.name and "error" not in kept:
            stores.setdefault(kept["store"], kept["plans_name"])
    for plans_name in stores.values():
        plans = Plans.read(means.workspace.plans_file(field.name, plans_name))
        preprocess(field.dataset, plans, means.workspace, [field.configuration], workers=means.workers)


def measure_all(question: Question, field: Field, entries: Sequence[Entry], means: Means) -> None:
    """Measure a step of every entry that is not measured yet, and fix the common recipe of the data set.

    The recipe follows from the steps that the median entry gets, so at equal time steps are measured with the recipe
    that the plans expect, and once more should the measurement contradict it. Runs of equal time then end by the clock.
    """
    from autoseg.training.recipe import length_of, recipe_for

    record, name, budget = means.record, field.name, question.budget
    planned = [entry for entry in entries if "error" not in record["plans"][f"{name}/{entry.architecture.name}"]]
    data = dict(record["datasets"].get(name, {}))
    data |= {"reference": field.reference, "configuration": field.configuration, "cases": len(field.dataset.cases)}
    data["groups"] = {case.id: case.group for case in field.dataset.cases if case.group is not None}
    data["folds"] = sorted({*data.get("folds", []), *field.folds})
    settled = "reference_steps" in data
    steps = data.get("reference_steps") or _expected(field, planned, means, budget)
    for _ in range(3):
        shared = recipe_for(steps)
        _measure(question, field, planned, means, shared, steps)
        costs = [record["costs"].get(f"{name}/{entry.key}", {}) for entry in planned]
        usable = [budget.steps(each) for each in costs if _countable(each, budget)]
        if settled or not usable:
            break
        found = int(statistics.median(usable))
        settled, steps = length_of(found) == length_of(steps), found
        if settled:
            shared = recipe_for(found)
    record.put("datasets", name, {**data, "reference_steps": steps, "recipe": recipe_for(steps)})


def _countable(costs: dict[str, Any], budget: Budget) -> bool:
    return "error" not in costs and bool(costs) and (budget.equal != "flops" or bool(costs.get("step_flops")))


def _expected(field: Field, entries: Sequence[Entry], means: Means, budget: Budget) -> int:
    """Return about how many steps the median entry will get, as far as the plans tell."""
    if budget.equal == "steps":
        return int(budget.amount)
    plans = [means.record["plans"][f"{field.name}/{entry.architecture.name}"] for entry in entries]
    timed = [plan["steps"] for plan in plans if plan["seconds"] is not None]
    return int(statistics.median(timed)) if timed else 1


def _measure(
    question: Question, field: Field, entries: Sequence[Entry], means: Means, shared: dict[str, Any], steps: int
) -> None:
    record = means.record
    tasks, about = [], dict[str, dict[str, Any]]()
    for entry in distinct(entries, shared)[0]:
        key = f"{field.name}/{entry.key}"
        plan = record["plans"][f"{field.name}/{entry.architecture.name}"]
        kept = record["costs"].get(key)
        recipe = content_of(entry, steps, shared)
        about[key] = {
            "plan": plan["digest"], "augmentation": shared["augmentation"], "code": entry_code(entry, means),
            "recipe": content_hash({name: value for name, value in recipe.items() if name != "warmup_steps"}),
        }  # fmt: skip
        if (
            kept is not None
            and "error" not in kept
            and about[key] == {name: kept.get(name, about[key][name]) for name in about[key]}
        ):
            if kept != {**kept, **about[key]}:  # of a version that did not look at all of it
                record.put("costs", key, {**kept, **about[key]})
            continue
        file = write_recipe(entry, steps, shared, record.folder / RECIPES / field.name / f"{entry.key}.probe.toml")
        tasks.append(Task(key, "measure", request_of(question, field, entry, plan, file, field.folds[0], means)))

    def done(task: Task, outcome: Outcome) -> None:
        """Record what a step of an entry costs, or why it could not be measured."""
        if outcome.answer is None:
            log.warning("no step of %s could be measured: %s", task.key, outcome.error)
        else:
            log.info("a step of %s takes %.3f s", task.key, outcome.answer["seconds"])
        record.put("costs", task.key, {**about[task.key], **(outcome.answer or {"error": outcome.error})})

    means.carry_out(tasks, done)


def entry_code(entry: Entry, means: Means) -> list[str | None]:
    """Return checksums of the user's own files that a method comes from: its network's and its trainer's."""
    root = means.workspace.root
    return [code_of("architecture", entry.architecture, root), code_of("trainer", entry.trainer, root)]


def write_recipe(entry: Entry, steps: int, shared: dict[str, Any], file: Path) -> Path:
    """Write the recipe file of an entry."""
    write_text(file, as_toml(content_of(entry, steps, shared)))
    return file


def request_of(
    question: Question, field: Field, entry: Entry, plan: dict[str, Any], recipe: Path, fold: str, means: Means
) -> dict[str, Any]:
    """Return what a child needs to know of an entry on a data set."""
    return {
        "dataset": field.reference,
        "configuration": field.configuration,
        "workspace": means.workspace_request(),
        "trainer": entry.trainer.reference,
        "plans_name": plan["plans_name"],
        "architecture": plan.get("architecture"),
        "recipe": str(recipe),
        "fold": fold,
        "settings": dict(question.settings),
    }
