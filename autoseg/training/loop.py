"""The fit loop: batches, optimiser steps, checkpoints, log. What is trained and how is the trainer's business."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from autoseg.batches import Prefetcher
from autoseg.errors import Interrupted
from autoseg.randomness import seed_for
from autoseg.training.checkpoint import Progress, State, save_state, save_weights
from autoseg.training.clock import Clock
from autoseg.training.earlier_run import as_recorded, discard_earlier
from autoseg.training.health import LossMeter, check_finite, check_not_blind
from autoseg.training.log import WEIGHTS_DIGEST, RunLog, write_run
from autoseg.training.observing import Observer
from autoseg.training.stopping import StopRequest
from autoseg.training.thread_count import ThreadCount
from autoseg.training.trainer import Trainer
from autoseg.watching import watched

if TYPE_CHECKING:
    import lightning_fabric

logger = logging.getLogger("autoseg.training")
LOG_SECONDS = 5.0  # how often the loss is read from the device
MOST_WARMUP = 0.5  # share of a run that the schedule leaves to a warm-up: what ends early is annealed, too


@dataclass
class Fit:
    """One run of the loop: the trainer, set up on its device, and what is recorded of it."""

    trainer: Trainer
    fabric: lightning_fabric.Fabric
    optimizers: dict[str, torch.optim.Optimizer]
    progress: Progress
    clock: Clock
    log: RunLog
    observer: Observer | None
    stop: StopRequest
    threads: int
    precision: str
    adapts_threads: bool = False  # choose the number of CPU threads by timing; it may change the last bits of a sum
    base_rates: dict[str, list[float]] = field(default_factory=dict)
    pending: dict[str, int] = field(default_factory=dict)  # micro-batches since the last step, per optimiser

    @property
    def state(self) -> State:
        """Return what a checkpoint holds."""
        return State(self.trainer.modules, self.optimizers, self.progress, scaler_state(self.fabric))

    def save(self, *, replaces: bool = True) -> None:
        """Write a checkpoint and usable weights; only the first process does.

        The run that this one `replaces` is discarded then; otherwise it still lies aside.
        """
        if self.fabric.global_rank == 0:
            folder = self.trainer.context.folder
            digest = save_weights(folder, self.trainer.inference_module())
            write_run(folder, **{WEIGHTS_DIGEST: digest, **as_recorded(folder, replaced=False)})
            save_state(folder, self.state)  # last: a run that it calls finished has its weights
            if replaces and (told := as_recorded(folder, replaced=True)):  # not before there is the checkpoint
                write_run(folder, **told)
                discard_earlier(folder)


def scaler_of(fabric: lightning_fabric.Fabric) -> torch.amp.GradScaler | None:
    """Return the gradient scaler of fp16 training, None in other precisions."""
    return getattr(fabric._precision, "scaler", None)


def scaler_state(fabric: lightning_fabric.Fabric) -> dict[str, Any]:
    """Return what a checkpoint keeps of the gradient scaler: {} without one."""
    scaler = scaler_of(fabric)
    return {} if scaler is None else {"scaler": scaler.state_dict()}


def restore_scaler(fabric: lightning_fabric.Fabric, extra: dict[str, Any]) -> None:
    """Put back what `scaler_state` kept."""
    scaler = scaler_of(fabric)
    if scaler is not None and "scaler" in extra:
        scaler.load_state_dict(extra["scaler"])


def fit(run: Fit) -> None:
    """Train until progress is 1; Ctrl-C and SIGTERM end with a checkpoint and `Interrupted`."""
    streams = run.trainer.build_streams()
    device = run.fabric.device
    feeders = {
        name: Prefetcher(
            stream,
            start=run.progress.step * run.trainer.accumulate,
            device=device,
            threads=run.threads,
            depth=run.threads + 2,
        )
        for name, stream in streams.items()
    }
    threads = torch.get_num_threads()
    try:
        _loop(run, feeders)
    finally:
        torch.set_num_threads(threads)
        for feeder in feeders.values():
            feeder.close()


def _loop(run: Fit, feeders: dict[str, Prefetcher]) -> None:
    trainer, clock, state = run.trainer, run.clock, run.progress
    meter = LossMeter(run.fabric.device)
    ticker = _Ticker(run, feeders, meter)
    last_saved, interval = time.monotonic(), trainer.checkpoint_minutes * 60
    threads = ThreadCount(torch.get_num_threads()) if run.adapts_threads else None
    for module in trainer.modules.values():
        module.train()
    while (progress := _agreed(run, clock.progress(state.step))) < 1.0:
        torch.manual_seed(seed_for(trainer.context.seed, f"step/{trainer.context.rank}", state.step))
        trainer.step = state.step
        _set_rates(run, progress)
        for _ in range(trainer.accumulate):
            batches = {name: feeder.next() for name, feeder in feeders.items()}
            with watched(f"step {state.step}", kind="training step"):
                for loss in _optimise(run, trainer.training_step(batches, progress)):
                    meter.add(loss)
        with torch.no_grad():
            trainer.after_step(progress)
        state.step += 1
        state.elapsed, state.worked = clock.elapsed, clock.worked
        if threads is not None:
            threads.after_step()
        ticker.tick(progress)
        if run.observer is not None and run.observer.due(state, clock):
            ticker.report(progress)  # a loss that is no number is told before its network is asked to predict
            with contextlib.suppress(Interrupted), run.stop.at_once():  # a stop does not wait for whole cases
                run.observer.observe(state, clock, run.log)
            if trainer.stop_on_collapse:
                check_not_blind(state.blind_validations, progress)
        asked = _agreed(run, run.stop.asked)
        due = time.monotonic() - last_saved > interval
        if asked or due:
            ticker.report(progress)
            run.save(replaces=due or state.elapsed > interval)  # not when stopped after a few steps
            last_saved = time.monotonic()
        if asked:
            ticker.close()
            raise Interrupted(f"stopped by {asked} at step {state.step}; the checkpoint is complete")
    ticker.report(1.0)
    ticker.close()


def _agreed(run: Fit, value: Any) -> Any:
    """Return the first process's value in every process: clocks differ, and all must end at the same step."""
    if run.trainer.context.processes == 1:
        return value
    with watched("waiting for the other processes", silent=True):  # each tells of itself
        return run.fabric.broadcast(value)


def _optimise(run: Fit, losses: Iterator[tuple[str, torch.Tensor]]) -> Iterator[torch.Tensor]:
    """Make the optimiser step of every loss that a trainer yields; yields the losses."""
    trainer = run.trainer
    while True:
        with run.fabric.autocast():
            step = next(losses, None)
        if step is None:
            return
        name, loss = step
        optimizer = run.optimizers[name]
        run.fabric.backward(loss / trainer.accumulate if trainer.accumulate > 1 else loss)
        run.pending[name] = run.pending.get(name, 0) + 1
        if run.pending[name] == trainer.accumulate:
            run.pending[name] = 0
            _clip(run, optimizer)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        yield loss.detach()


def _clip(run: Fit, optimizer: torch.optim.Optimizer) -> None:
    if run.trainer.gradient_clip > 0:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        scaler = scaler_of(run.fabric)
        if scaler is not None:
            scaler.unscale_(getattr(optimizer, "optimizer", optimizer))
        torch.nn.utils.clip_grad_norm_(parameters, run.trainer.gradient_clip)


def rate_factor(trainer: Trainer, step: int, progress: float) -> float:
    """Return the factor of the learning rates at `step`: a linear rise, then the schedule over the rest of the run."""
    per_step = progress / max(step, 1)  # share of the run that a step takes, by those made
    if trainer.warmup_steps:
        risen, share = (step + 1) / trainer.warmup_steps, min(MOST_WARMUP, per_step * trainer.warmup_steps)
    elif trainer.warmup_share:
        risen, share = (progress + per_step) / trainer.warmup_share, trainer.warmup_share
    else:
        return trainer.schedule(progress)
    return trainer.schedule(max(0.0, (progress - share) / (1 - share))) * min(1.0, risen)


def _set_rates(run: Fit, progress: float) -> None:
    factor = rate_factor(run.trainer, run.progress.step, progress)
    for name, optimizer in run.optimizers.items():
        if name not in run.base_rates:
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
            run.base_rates[name] = [group["initial_lr"] for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, run.base_rates[name], strict=True):
            group["lr"] = rate * factor


class _Ticker:
    """The progress bar and the step lines of the log."""

    def __init__(self, run: Fit, feeders: dict[str, Prefetcher], meter: LossMeter):
        self.run, self.feeders, self.meter = run, feeders, meter
        label = f"fold {run.trainer.context.fold}"
        self.bar = tqdm(total=100, desc=label, unit="%", bar_format="{desc}: {percentage:3.0f}%|{bar}| {postfix}",
                        disable=None if run.fabric.global_rank == 0 else True, leave=False)  # fmt: skip
        self.last_time, self.last_step, self.last_waited = time.monotonic(), run.progress.step, 0.0

    def tick(self, progress: float) -> None:
        """Report when some seconds have passed."""
        if time.monotonic() - self.last_time >= LOG_SECONDS:
            self.report(progress)

    def report(self, progress: float) -> None:
        """Read the loss, stop on what is no number, write one line."""
        run = self.run
        now, step = time.monotonic(), run.progress.step
        steps, seconds = step - self.last_step, max(now - self.last_time, 1e-9)
        loss = self.meter.read()
        rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in run.optimizers.items()}
        check_finite(loss, step, max(rates.values(), default=0.0), run.precision)
        if loss is None:
            return
        waited = sum(feeder.waited for feeder in self.feeders.values())
        settings = run.trainer.stream_settings()
        samples = steps * run.trainer.accumulate * settings.batch_size / seconds
        run.log.event(
            "step", step=step, progress=round(progress, 6), loss=loss, learning_rate=rates,
            seconds=round(run.clock.elapsed, 3), samples_per_second=round(samples, 3),
            waiting_for_data=round(min(1.0, (waited - self.last_waited) / seconds), 4),
        )  # fmt: skip
        self.bar.n = round(100 * progress)
        ema = run.progress.ema_dice
        dice = "" if ema is None else f", Dice of observed cases {ema:.3f}"
        share = min(1.0, (waited - self.last_waited) / seconds)
        self.bar.set_postfix_str(f"step {step}, loss {loss:.3f}{dice}, waiting for data {share:.0%}")
        self.last_time, self.last_step, self.last_waited = now, step, waited

    def close(self) -> None:
        """End the bar."""
        self.bar.close()
