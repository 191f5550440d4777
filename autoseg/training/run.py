"""One run: one fold of one configuration, from set-up to scored validation."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import autoseg
from autoseg import plugins
from autoseg.devices import choose_precision, is_out_of_memory
from autoseg.errors import Interrupted, UserError
from autoseg.storage import file_hash, remove_leftovers, write_text
from autoseg.store import CaseStore
from autoseg.training.checkpoint import STATE_FILE, WEIGHTS_FILE, Progress, State, load_state, save_weights
from autoseg.training.clock import Clock, work_clock
from autoseg.training.context import RunContext
from autoseg.training.health import memory_is_full
from autoseg.training.identity import identity
from autoseg.training.log import WEIGHTS_DIGEST, RunLog, is_trained, read_run, write_run
from autoseg.training.loop import Fit, fit, restore_scaler
from autoseg.training.observing import Observer
from autoseg.training.pretrained import load_pretrained, table_text
from autoseg.training.setting_up import make_fabric, parameter_count, set_up
from autoseg.training.settings import Setting
from autoseg.training.stopping import StopRequest
from autoseg.training.trainer import Trainer
from autoseg.training.validation import FOLDER, SUMMARY, mean_dice, validate
from autoseg.training.validation_plan import STEP_SIZES, ValidationPlan, plan_validation
from autoseg.watching import watched
from autoseg.worker_life import modules_of_this_process

if TYPE_CHECKING:
    import lightning_fabric

PLANS_FILE = "plans.json"  # the plans as used, with another architecture where one was asked for
SAME_BUDGET = 0.1  # by how much the share of a fold may differ between two starts with the same time budget
LARGEST_OBSERVATION = 0.06  # of a fold's time that predicting the observed cases once may take
logger = logging.getLogger("autoseg.training")


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out, beside the trainer's settings."""

    trainer_name: str  # under which the run is kept
    trainer_reference: str  # what finds the trainer again in another process
    seconds: float | None = None  # for the whole run, validation included
    training_seconds: float | None = None  # of training alone, by its `work_clock`
    deterministic: bool = False
    pretrained: Path | None = None
    labelled: int | None = None  # training cases that keep their labels; None: all
    threads: int = 1
    origin: Mapping[str, Any] = field(default_factory=dict)  # of the command that started it, for its record


def carry_out(
    trainer_class: type[Trainer], context: RunContext, settings: Mapping[str, Setting], options: RunOptions
) -> Path:
    """Train, validate and record one run in `context.folder`; goes on where an earlier start stopped."""
    context.folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(context.folder, context.folder / FOLDER)
    if context.processes > 1:
        fabric = make_fabric(context.device, _precision(settings, context), context.processes)
        # Neither classes of loose files nor open stores travel to other processes: each finds them again.
        with modules_of_this_process():
            fabric.launch(_Process(replace(context, store=None), context.store.folder, settings, options))
    else:
        _carry_out(make_fabric(context.device, _precision(settings, context), 1), trainer_class, context, settings,
                   options)  # fmt: skip
    return context.folder


def is_finished(folder: Path) -> bool:
    """Return whether a run in `folder` trained to its end and was validated."""
    if not (folder / "run.json").is_file() or not (folder / WEIGHTS_FILE).is_file():
        return False
    return is_trained(read_run(folder))


def _precision(settings: Mapping[str, Setting], context: RunContext) -> str:
    return choose_precision(settings["precision"].value, context.device)


class _Process:
    """What each of several processes does; it travels to them by spawn."""

    def __init__(self, context: RunContext, store_folder: Path, settings: Mapping[str, Setting], options: RunOptions):
        self.context, self.store_folder, self.settings, self.options = context, store_folder, settings, options

    def __call__(self, fabric: lightning_fabric.Fabric) -> None:
        store = CaseStore(self.store_folder)
        context = replace(self.context, store=store, rank=fabric.global_rank, device=fabric.device)
        trainer_class = plugins.load("trainer", self.options.trainer_reference, context.workspace_root)
        _carry_out(fabric, trainer_class, context, self.settings, self.options)


def _carry_out(
    fabric: lightning_fabric.Fabric,
    trainer_class: type[Trainer],
    context: RunContext,
    settings: Mapping[str, Setting],
    options: RunOptions,
) -> None:
    started = time.monotonic()
    if options.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(context.seed)  # the same initial weights in every process
    trainer = trainer_class(context, settings)
    log = RunLog(context.folder, writes=context.rank == 0)
    with StopRequest() as stop, watched(f"training, fold {context.fold}"):
        modules, optimizers = set_up(trainer, fabric)
        progress = Progress()
        state = State(modules, optimizers, progress)
        if (context.folder / STATE_FILE).is_file():
            load_state(context.folder, state)
            restore_scaler(fabric, state.extra)
            log.note(f"going on at step {progress.step}")
        elif options.pretrained is not None:
            table = load_pretrained(modules["network"], options.pretrained, labels=trainer.labels.names)
            log.note(table_text(table))
        log.cut_after(progress.step)
        _record_start(trainer, options, progress, fabric)
        try:
            if not progress.finished:
                _train(trainer, fabric, state, log, stop, options, started)
            elif context.rank == 0:
                _restore_weights(trainer)
            if context.rank == 0:
                with stop.at_once():
                    trainer.finish()
                    _finish(trainer, fabric, progress, log, started)
        except Interrupted:
            _record(context, status="interrupted", steps_done=progress.step)
            raise
        except Exception as error:
            _record(context, status="failed", steps_done=progress.step)
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                plan = context.configuration
                planning = context.told("plan-and-preprocess", "--gpu-memory", "GIB", "--plans-name", "NAME")
                raise memory_is_full(progress.step, plan.batch_size, plan.patch_size, planning) from error
            raise
        with watched("waiting for the other processes", silent=True):
            fabric.barrier()


def _train(
    trainer: Trainer, fabric: lightning_fabric.Fabric, state: State, log: RunLog, stop: StopRequest,
    options: RunOptions, started: float,
) -> None:  # fmt: skip
    context = trainer.context
    budget, planned, observed = None, ValidationPlan(), trainer.observed_cases
    if options.seconds is not None:
        if trainer.needs_labels:
            planned = plan_validation(trainer, fabric.device, options.seconds)
            observed = min(observed, planned.observable(LARGEST_OBSERVATION * options.seconds))
            planning = trainer.context.told("plan-and-preprocess", "--time-budget", "TIME")
            _tell(planned, observed, options.seconds, log, planning)
        budget = _budget(state.progress, options.seconds, (time.monotonic() - started) + planned.seconds)
    _record(context, validation_step_size=planned.step_size)
    observer = None
    if trainer.needs_labels and context.rank == 0:
        observer = Observer(trainer, fabric.device, cases=observed, step_size=planned.step_size)
    precision = _precision(trainer.settings, context)
    clock = Clock(
        trainer.steps, budget, state.progress.elapsed, options.training_seconds, state.progress.worked,
        work_clock(fabric.device, torch.get_num_threads()),
    )  # fmt: skip
    run = Fit(
        trainer, fabric, dict(state.optimizers), state.progress, clock, log, observer, stop, options.threads, precision,
        adapts_threads=fabric.device.type == "cpu" and not options.deterministic,
    )  # fmt: skip
    before = time.process_time()
    try:
        fit(run)
    finally:  # of all starts of the run, and of all threads
        spent = read_run(context.folder).get("cpu_seconds", 0.0) + time.process_time() - before
        _record(context, cpu_seconds=round(spent, 2))
    if state.progress.step == 0:  # an untrained network must not pass for a trained one
        raise UserError(
            f"the {options.seconds:.0f} s for fold {context.fold} were over before the first step",
            where="--time-budget",
            mend="give more time, then repeat the command",
        )
    state.progress.finished = True
    run.save()


def _restore_weights(trainer: Trainer) -> None:
    """Write the weights of a checkpoint of the last step again where they are missing or not as they were written."""
    folder = trainer.context.folder
    weights, digest = folder / WEIGHTS_FILE, read_run(folder).get(WEIGHTS_DIGEST)
    if not weights.is_file() or (digest is not None and file_hash(weights) != digest):
        write_run(folder, **{WEIGHTS_DIGEST: save_weights(folder, trainer.inference_module())})


def _budget(progress: Progress, seconds: float, spent: float) -> float:
    """Return the training seconds of the whole run; a resumed one keeps its own, so that its schedule goes on.

    Only a call with another time budget changes it: what it leaves beside the `spent` seconds then comes on top.
    """
    asked = progress.budget_asked
    if progress.budget is None or asked is None or abs(seconds - asked) > SAME_BUDGET * asked:
        progress.budget = progress.elapsed + max(seconds - spent, 0.1 * seconds)
        progress.budget_asked = seconds
    return progress.budget


def _tell(planned: ValidationPlan, observed: int, seconds: float, log: RunLog, planning: str) -> None:
    """Say what the time budget does to validation; `planning`: the command for less."""
    if planned.step_size > STEP_SIZES[0]:
        log.note(f"whole-case validation takes tiles {planned.step_size:g} of a patch apart, to keep the time budget")
    if observed == 0:
        log.note("no validation case is predicted during training: the time budget is too small for that")
    if planned.seconds > 0.7 * seconds:
        log.note(
            f"validating whole cases alone takes about {planned.seconds:.0f} s of the {seconds:.0f} s for this fold: "
            f"the budget will not be kept; give more time, or plan for less: {planning}"
        )


def _finish(trainer: Trainer, fabric: lightning_fabric.Fabric, progress: Progress, log: RunLog, started: float) -> None:
    context = trainer.context
    result: dict[str, Any] = {}
    before, cpu_before = time.monotonic(), time.process_time()
    if trainer.needs_labels and context.validation_cases:
        step_size = read_run(context.folder).get("validation_step_size", 0.5)
        summary = validate(trainer, fabric.device, step_size=step_size, step=progress.step)
        result = {"foreground_dice": mean_dice(summary), **summary["foreground_mean"],
                  "failed": sorted(summary.get("failed", {}))}  # fmt: skip
    validated, cpu_validated = time.monotonic() - before, time.process_time() - cpu_before
    seconds = round(progress.elapsed, 1)
    log.event("end", step=progress.step, seconds=seconds, validation=result)
    _record(
        context, status="finished", steps_done=progress.step, seconds=seconds, validation=result,
        validation_summary=f"{FOLDER}/{SUMMARY}" if result else None,
        validation_seconds=round(validated, 2), validation_cpu_seconds=round(cpu_validated, 2),
        seconds_of_last_start=round(time.monotonic() - started, 1),
    )  # fmt: skip


def _record_start(trainer: Trainer, options: RunOptions, progress: Progress, fabric: lightning_fabric.Fabric) -> None:
    context = trainer.context
    if context.rank == 0:
        trained = context.configuration.model_copy(update={"network": trainer.network_spec()})
        used = {**context.plans.configurations, context.configuration.name: trained}
        context.plans.model_copy(update={"configurations": used}).write(context.folder / PLANS_FILE)
        _keep_plugins(context, options.trainer_reference)
    settings = {name: {"value": s.value, "origin": s.origin} for name, s in sorted(trainer.settings.items())}
    _record(
        context,
        dataset=context.dataset.name,
        trainer=options.trainer_name,
        method=options.trainer_reference,
        plans_name=context.plans.plans_name,
        configuration=context.configuration.name,
        fold=context.fold,
        status="running",
        identity=identity(trainer, options.trainer_reference, options.pretrained, kept=context.folder),
        settings=settings,
        labels=context.dataset.labels.model_dump(mode="json"),
        train_cases=list(context.training_cases),
        validation_cases=list(context.validation_cases),
        unlabelled_cases=list(context.unlabelled_cases),
        left_out_cases=list(context.left_out_cases),
        labelled=options.labelled,
        steps=trainer.steps,
        steps_done=progress.step,
        time_budget=options.seconds,
        device=str(fabric.device),
        processes=context.processes,
        precision=_precision(trainer.settings, context),
        deterministic=options.deterministic,
        parameters=parameter_count(trainer.modules["network"]),
        architecture=context.configuration.architecture,
        seed=context.seed,
        **options.origin,
        mirror_axes=list(trainer.mirror_axes()),
        previous_stage=context.previous_stage,
        pretrained=None if options.pretrained is None else str(options.pretrained),
        versions={"autoseg": autoseg.__version__, "torch": torch.__version__, "python": platform.python_version()},
    )


def _keep_plugins(context: RunContext, trainer: str) -> None:
    """Leave a copy of the user's own files in the run folder: what was trained, whatever becomes of them."""
    for kind, reference in (("trainer", trainer), ("architecture", context.configuration.architecture)):
        file = plugins.loose_file(kind, reference, context.workspace_root)
        if file is not None:
            write_text(context.folder / f"{kind}.py", file.read_text(encoding="utf-8"))


def _record(context: RunContext, **fields: Any) -> None:
    if context.rank == 0:
        write_run(context.folder, **fields)
