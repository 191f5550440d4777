"""What one run of a method will do, as far as can be told before it: its steps, their seconds, and who says so.

The best that is known counts: steps measured by the campaign, else a plan whose steps were timed, else the operations
of a step at a plan and the speed of this machine, else a rule of thumb.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from autoseg.benchmarking.budget import Budget
from autoseg.benchmarking.configuration import dims_of
from autoseg.benchmarking.matrix import Entry
from autoseg.benchmarking.question import Question
from autoseg.benchmarking.record import Record
from autoseg.errors import AutosegError, UserError
from autoseg.plans import Configuration
from autoseg.raw import Dataset, read_geometry
from autoseg.workspace import Workspace

WANTED_STEPS = 1500  # that the planner leaves in the time it plans for
UNKNOWN_STEP = 0.3  # seconds, where nothing else is known
SHARE_OF_PEAK = 0.2  # of a matrix product's speed that networks here reach: 0.03 to 0.6, most between 0.1 and 0.35
UNCOUNTED = "operations not countable"
ASSUMED = "assumed"
SAMPLED_CASES = 10  # whose headers are read
log = logging.getLogger(__name__)
EDGE = {"cpu": 512, "cuda": 4096, "mps": 2048}  # of the matrices that the speed is taken from


@dataclass(frozen=True)
class Foreseen:
    """One run of a method: steps (None: measured at the start), seconds of training, parameters where known."""

    steps: int | None
    seconds: float
    rule: str
    parameters: int | None = None


def foresee(question: Question, record: Record, dataset: Dataset, configuration: str, entry: Entry,
            workspace: Workspace, threads: int) -> Foreseen:  # fmt: skip
    """Return what a run of the entry will do; writes nothing."""
    budget, costs = question.budget, record["costs"].get(f"{dataset.name}/{entry.key}", {})
    if "seconds" in costs:
        return _measured(budget, costs)
    planned = _planned(question, record, dataset, configuration, entry, workspace)
    if planned is None:
        return _unplanned(question, threads, partial(_least_operations, dataset, configuration, entry, workspace))
    from autoseg.planning.memory import parameter_count

    kind, training = entry.architecture.kind, planned.training
    found = parameter_count(kind, planned.network)
    seconds = training.time_budget / training.steps if training.time_budget and training.steps else None
    operations = None
    if budget.equal == "flops" or seconds is None:
        from autoseg.planning.operations import trace_operations

        operations = trace_operations(kind, planned.network, planned.batch_size)
    rules = ["the plan's timed steps"] if seconds is not None else []
    if seconds is None and operations:
        rate = speed(question.device, threads)
        seconds, rules = operations / rate, [_rate_rule(rate)]
    if seconds is None:
        return _unplanned(question, threads)
    if budget.equal == "flops":
        if not operations:
            return Foreseen(None, 0.0, UNCOUNTED, found)
        rules.append("operations traced at the plan")
    steps = budget.steps({"seconds": seconds, "step_flops": operations})
    return Foreseen(steps, steps * seconds, ", ".join(rules), found)


def _measured(budget: Budget, costs: Mapping[str, Any]) -> Foreseen:
    try:
        steps = budget.steps(costs)
    except AutosegError:
        return Foreseen(None, 0.0, UNCOUNTED, costs.get("parameters"))
    return Foreseen(steps, steps * costs["seconds"], "measured steps", costs.get("parameters"))


def _planned(question: Question, record: Record, dataset: Dataset, configuration: str, entry: Entry,
             workspace: Workspace) -> Configuration | None:  # fmt: skip
    """Return the configuration that the entry will be trained with, None if it is not planned yet."""
    from autoseg.training.asked import configure, read_plans

    kept = record["plans"].get(f"{dataset.name}/{entry.architecture.name}", {})
    name = question.plans or kept.get("plans_name")
    if name is None or not workspace.plans_file(dataset.name, name).is_file():
        return None
    plans = read_plans(dataset, name, workspace)
    reference = entry.architecture.reference if question.plans else None
    try:
        return configure(plans, configuration, reference, dataset=dataset, workspace=workspace)
    except AutosegError:  # the run will tell
        return None


def _unplanned(question: Question, threads: int, least: Callable[[], int | None] = lambda: None) -> Foreseen:
    """Return what the budget tells, and at equal steps the operations of the network's smallest size (`least`)."""
    budget = question.budget
    if budget.equal == "time":
        return Foreseen(None, budget.amount, "the budget")
    if budget.equal == "flops":
        rate = speed(question.device, threads)
        return Foreseen(None, budget.amount / rate, _rate_rule(rate))
    seconds = question.seconds_to_plan_for()
    if seconds is None and question.gpu_memory is None and question.plans is None and _times_steps(question):
        from autoseg.planning.budget import DEFAULT_BUDGET, MOST_FOLDS

        seconds = DEFAULT_BUDGET / MOST_FOLDS
    step = UNKNOWN_STEP if seconds is None else 0.9 * seconds / WANTED_STEPS
    size = "for the memory" if seconds is None else f"for {seconds:.0f} s of training"
    smallest = _seconds(least(), question.device, threads)
    which = " at its smallest" if smallest > step else ""
    step = max(step, smallest)
    rule = f"{ASSUMED}: {step:.2g} s per step{which}, planned {size} (--plan-for)"
    return Foreseen(int(budget.amount), step * budget.amount, rule)


def _seconds(operations: int | None, device: str, threads: int) -> float:
    """Return about how long operations take, 0 where they are not known, or the device is elsewhere."""
    try:
        return operations / speed(device, threads) if operations else 0.0
    except UserError:
        return 0.0


def _least_operations(dataset: Dataset, configuration: str, entry: Entry, workspace: Workspace) -> int | None:
    """Return the operations of a step at the smallest size that the usual planner would choose; headers are read.

    None where that cannot be told: whatever a file or a network of a user's stumbles over, a dry run does without.
    """
    from autoseg import plugins
    from autoseg.planning.operations import trace_operations

    network = entry.architecture
    try:
        sampled = dataset.cases[:: max(1, len(dataset.cases) // SAMPLED_CASES)]
        grids = [read_geometry(case.images[0]) for case in sampled]
        seen = SimpleNamespace(
            spacings=np.array([grid.spacing for grid in grids]), channel_names=dataset.channel_names,
            shapes_after_crop=np.array([grid.size for grid in grids]),
        )  # fmt: skip
        planner = plugins.load("planner", "auto")(
            architecture=network.reference, network_options=network.options, workspace=workspace.root
        )
        sized = planner.smallest(seen, dataset, dims_of(configuration))
        return trace_operations(network.kind, sized.spec, sized.batch_size)
    except Exception as error:
        log.debug("the smallest size of %s cannot be told: %s", network.name, error)
        return None


def _times_steps(question: Question) -> bool:
    """Return whether the planner will plan for a time that nobody gave: the usual one, on a CPU."""
    from autoseg.devices import choose_device

    device = choose_device().type if question.device == "auto" else question.device
    return question.planner == "auto" and device == "cpu"


def _rate_rule(rate: float) -> str:
    return f"{rate / 1e9:.3g}e9 operations a second, {SHARE_OF_PEAK:g} of a matrix product's here, until measured"


@cache
def speed(device: str, threads: int) -> float:
    """Return about how many operations a second networks make here: a share of what a matrix product reaches.

    On a CPU by so many threads, in processor time over threads: one thread is measured, as several that wait for each
    other take processor time, most of all beside other programs.
    """
    import torch

    from autoseg.devices import choose_device

    chosen = choose_device(device.partition(",")[0])
    if chosen.type != "cpu":
        return SHARE_OF_PEAK * _product_speed(chosen)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        return SHARE_OF_PEAK * threads * _product_speed(chosen)
    finally:
        torch.set_num_threads(before)


def _product_speed(device: Any) -> float:
    import torch

    edge = EDGE.get(device.type, EDGE["cpu"])
    matrix, best = torch.ones(edge, edge, device=device), 0.0
    now = time.process_time if device.type == "cpu" else time.perf_counter
    for _ in range(5):
        started = now()
        (matrix @ matrix).sum().item()  # on a GPU it waits for the product
        best = max(best, 2 * edge**3 / max(1e-9, now() - started))
    return best
