"""What a training step costs: a few real steps of a trainer on real batches, timed and counted.

Unlike `probe`, which times a bare network before anything is preprocessed, this is the whole of what a run does: the
trainer's own step with its streams, augmentation and optimiser. On a CPU the processor time of all threads counts,
divided by their number, so that waiting for a processor does not count; other programs make steps dearer all the same
(on a loaded machine by half with one thread, severalfold with two, which spin while they wait for each other). On a GPU
it is the synchronised wall time.
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from autoseg.errors import UserError
from autoseg.training.checkpoint import Progress, unwrapped
from autoseg.training.clock import Clock, work_clock
from autoseg.training.context import RunContext
from autoseg.training.log import RunLog
from autoseg.training.loop import Fit, fit
from autoseg.training.operations import operation_counter
from autoseg.training.setting_up import make_fabric, parameter_count, set_up
from autoseg.training.settings import Setting
from autoseg.training.starting import _Training
from autoseg.training.stopping import StopRequest
from autoseg.training.trainer import Trainer
from autoseg.workspace import Workspace

WARM_UP = 3  # steps before those that count: caches, threads, and the batches made ahead; fewer where steps take long
STEPS = 9  # that count, unless `patience` ends first
FEWEST = 2
log = logging.getLogger("autoseg.training")


@dataclass(frozen=True)
class StepCosts:
    """Costs of one optimiser step, and of one patch predicted."""

    seconds: float  # lower quartile of `all_seconds`: what else runs on a machine only ever adds
    all_seconds: tuple[float, ...]
    clock: str  # "cpu": processor seconds over threads; "device": wall seconds, synchronised
    threads: int
    samples: int  # patches in a step
    parameters: int
    step_flops: int | None  # multiply-adds count as two; None where counting failed
    forward_flops: int | None  # of one patch in inference
    peak_bytes: int  # resident on a CPU, allocated on a GPU
    device: str

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)


def measure_step(
    dataset: str | Path,
    configuration: str,
    *,
    trainer: str = "supervised",
    plans_name: str = "auto",
    architecture: str | None = None,
    fold: str = "0",
    settings: Mapping[str, Any] | None = None,
    recipe: Path | None = None,
    device: str = "auto",
    seed: int = 0,
    threads: int = 1,
    workspace: str | Path | Workspace | None = None,
    patience: float = 30.0,
) -> StepCosts:
    """Return what a step of this training costs; trains some steps in memory and writes nothing.

    To be called in a fresh process: the peak memory is that of the process. No further step is started once `patience`
    seconds are over and `FEWEST` are timed, and the warm-up, but its first step, ends with half of them.
    """
    training, context = _training(
        dataset, configuration, trainer=trainer, plans_name=plans_name, architecture=architecture, fold=fold,
        settings=settings, recipe=recipe, device=device, seed=seed, threads=threads, workspace=workspace,
    )  # fmt: skip
    run = _prepared(training.trainer_class, context, training.settings, threads)
    times = _timed(run, patience, threads)
    peak = peak_bytes(context.device)
    if context.device.type == "cuda":  # compiled kernels are not seen by the counter
        run = _prepared(training.trainer_class, context, _uncompiled(training.settings), threads)
    step_flops, forward_flops = _counted(run)
    return StepCosts(
        seconds=statistics.quantiles(times, n=4, method="inclusive")[0],
        all_seconds=tuple(round(each, 5) for each in times),
        clock="device" if context.device.type != "cpu" else "cpu",
        threads=threads,
        samples=run.trainer.stream_settings().batch_size * run.trainer.accumulate,
        parameters=parameter_count(run.trainer.modules["network"]),
        step_flops=step_flops,
        forward_flops=forward_flops,
        peak_bytes=peak,
        device=_device_name(context.device),
    )


def count_operations(
    dataset: str | Path,
    configuration: str,
    *,
    threads: int = 1,
    **options: Any,
) -> tuple[int | None, int | None]:
    """Return the operations of a step and of predicting one patch, as `measure_step` counts them, without timing."""
    training, context = _training(dataset, configuration, threads=threads, **options)
    return _counted(_prepared(training.trainer_class, context, _uncompiled(training.settings), threads))


def _training(
    dataset: str | Path,
    configuration: str,
    *,
    threads: int,
    trainer: str = "supervised",
    fold: str = "0",
    settings: Mapping[str, Any] | None = None,
    recipe: Path | None = None,
    plans_name: str = "auto",
    architecture: str | None = None,
    device: str = "auto",
    seed: int = 0,
    workspace: str | Path | Workspace | None = None,
) -> tuple[_Training, RunContext]:
    """Return a training of one fold that can be costed."""
    training = _Training(
        dataset=dataset, configuration=configuration, folds=fold, trainer=trainer, plans_name=plans_name,
        architecture=architecture, pretrained=None, settings=settings, recipe=recipe, labelled=None, time_budget=None,
        device=device, processes=1, seed=seed, deterministic=False, restart=False, workers=threads,
        workspace=workspace, name=None,
    )  # fmt: skip
    if not training.trainer_class.needs_labels:
        raise UserError(f"trainer {training.found.name!r} is run by `autoseg pretrain` and scores nothing")
    (context,) = training.contexts()
    return training, context


def _uncompiled(settings: Mapping[str, Setting]) -> dict[str, Setting]:
    return {**settings, "compile": Setting("off", "counting")}


def peak_bytes(device: torch.device) -> int:
    """Return the most memory held so far: allocated on a GPU, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    for line in _lines(Path("/proc/self/status")):  # getrusage knows the parent's peak, too
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="ascii", errors="replace").splitlines() if path.is_file() else []


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _prepared(kind: type[Trainer], context: RunContext, settings: Mapping[str, Setting], threads: int) -> Fit:
    """Return the loop of a run that has not begun."""
    precision = settings["precision"].value
    fabric = make_fabric(context.device, _chosen(precision, context.device), 1)
    torch.manual_seed(context.seed)
    trainer = kind(context, settings)
    _, optimizers = set_up(trainer, fabric)
    return Fit(
        trainer, fabric, optimizers, Progress(), Clock(trainer.steps, None), RunLog(context.folder, writes=False),
        None, StopRequest(), threads, _chosen(precision, context.device),
    )  # fmt: skip


def _chosen(precision: str, device: torch.device) -> str:
    from autoseg.devices import choose_precision

    return choose_precision(precision, device)


def _timed(run: Fit, patience: float, threads: int) -> list[float]:
    """Return the seconds of some steps after a few to warm up."""
    device, trainer = run.fabric.device, run.trainer
    clock = _clock(device, threads)
    marks: list[float] = []
    warm = WARM_UP  # steps to leave out
    started = time.monotonic()
    after_step: Callable[[float], None] = trainer.after_step

    def mark(progress: float) -> None:
        nonlocal warm
        after_step(progress)
        marks.append(clock())
        lasted = time.monotonic() - started
        if len(marks) <= warm and lasted > patience / 2:
            warm = len(marks) - 1  # the mark just made is the first that counts from
        timed = len(marks) - 1 - warm
        if timed >= STEPS or (timed >= FEWEST and lasted > patience):
            run.clock.steps = trainer.step + 1

    trainer.after_step = mark  # type: ignore[method-assign]
    try:
        run.clock.steps = max(run.clock.steps, WARM_UP + STEPS + 1)
        fit(run)
    finally:
        trainer.after_step = after_step  # type: ignore[method-assign]
    return [after - before for before, after in zip(marks[warm:], marks[warm + 1 :], strict=False)]


def _clock(device: torch.device, threads: int) -> Callable[[], float]:
    if device.type == "cpu":
        return work_clock(device, threads)

    def synchronised() -> float:
        torch.cuda.synchronize(device) if device.type == "cuda" else torch.mps.synchronize()
        return time.perf_counter()

    return synchronised


def _counted(run: Fit) -> tuple[int | None, int | None]:
    """Return the floating point operations of a step and of predicting one patch.

    Counted are matrix products, convolutions, attention and scans (`operations`): not norms, activations and Fourier
    transforms.
    """
    trainer = run.trainer
    network = unwrapped(trainer.inference_module())
    spec = trainer.context.configuration.network
    try:
        run.clock.steps = run.progress.step + 1
        with operation_counter() as step:
            fit(run)
        network.eval()
        patch = torch.zeros(1, spec.in_channels, *spec.patch_size, device=run.fabric.device)
        with torch.no_grad(), run.fabric.autocast(), operation_counter() as forward:
            network(patch)
    except Exception as error:  # a counter that stumbles over a network does not make the network unusable
        log.warning("the operations of a step cannot be counted (%s: %.200s)", type(error).__name__, error)
        return None, None
    return step.get_total_flops(), forward.get_total_flops()
