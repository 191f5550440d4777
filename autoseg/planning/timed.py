"""A planner base for small budgets: real steps are timed, and network, patch, batch and steps follow from them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from autoseg.planning import rules
from autoseg.planning.budget import (
    DEFAULT_BUDGET,
    LADDERS,
    SMALLEST_PATCH,
    Rung,
    climb,
    folds_of,
    short_training,
    training_seconds,
    validation_seconds,
)
from autoseg.planning.estimate import plain_feature_map_sum
from autoseg.planning.frame import Frame, Sized
from autoseg.planning.memory import Untraceable, trace_training
from autoseg.planning.resources import GIB, Resources
from autoseg.planning.topology import Topology
from autoseg.planning.traced import TracedPlanner
from autoseg.plans import NetworkSpec, Plans, TrainingPlan
from autoseg.training.probe import StepTime, time_step
from autoseg.training.recipe import recipe_for

UNET_BYTES = 16  # per element of nnU-Net's feature-map sum, at most: a plain U-Net's training step in fp32 takes 11


class TimedPlanner(TracedPlanner):
    """With a time budget, or without a GPU, the plan is sized by timed steps; else as `TracedPlanner` does.

    The settings that are tried stand in `autoseg.planning.budget`. On a GPU, and on a CPU with days of time, what fits
    the memory comes first: it is taken where the time leaves enough steps. Timed plans have a cascade only when asked.
    """

    small_architecture: str = "plain_unet"  # of timed plans, unless the user names one
    blocks_per_stage: int = 1  # of that U-Net: in equal time one convolution per stage learns more than two (measured)
    wanted_steps: int = 1500  # a dearer setting is taken only if it leaves so many steps
    fewest_steps: int = 500  # with fewer, the patch shrinks
    most_steps: int = 250_000
    full_steps: int = 5_000  # what fits the memory is trained as it is where the time leaves so many steps
    roomy_seconds: ClassVar[dict[str, float]] = {"cuda": 0.0, "cpu": 86_400.0}  # budgets below are not tried in full

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self._given = settings
        self._timed = False
        self._times: dict[tuple[str, int], StepTime] = {}
        self._rungs: dict[int, Rung] = {}

    def plan(self, fingerprint: Any, resources: Resources, dataset: Any) -> Plans:
        """Return the plans for a data set's fingerprint and the resources at hand."""
        can_time = resources.device == "cpu" or (resources.device == "cuda" and torch.cuda.is_available())
        self._timed = can_time and (resources.device == "cpu" or resources.time_budget is not None)
        if self._timed and (resources.time_budget or 0.0) >= self.roomy_seconds[resources.device]:
            full = self._plan_in_full(fingerprint, resources, dataset)
            if full is not None:
                return full
        if self._timed:
            self.cascade = self.wanted is not None and self._asked_for("3d_lowres", "3d_cascade_fullres")
            if self.own_architecture:
                self.architecture = self.small_architecture
            if resources.time_budget is None:
                resources = dataclasses.replace(resources, time_budget=DEFAULT_BUDGET)
        return super().plan(fingerprint, resources, dataset)

    def _plan_in_full(self, fingerprint: Any, resources: Resources, dataset: Any) -> Plans | None:
        """Return the plans that memory alone would give, cut to the time; None where it leaves too few steps."""
        other = type(self)(**self._given)
        frame = Frame(fingerprint, dataset, resources)
        plans = TracedPlanner.plan(other, fingerprint, resources, dataset)
        configurations = {}
        for name, planned in plans.configurations.items():
            sized = Sized(planned.spacing, planned.median_shape, planned.network, planned.batch_size)
            steps = other._steps(sized, frame)
            if steps < self.full_steps:
                return None
            precision = other._time(sized, frame).precision if resources.device == "cpu" else "auto"
            training = short_training(
                min(int(steps), self.most_steps), seconds_per_fold=self.seconds_per_fold(frame), precision=precision
            )
            configurations[name] = planned.model_copy(update={"training": training})
        note = (
            f"{in_hours(self._budget(frame))} of training per configuration leave at least {self.full_steps} steps of "
            "what fits the memory, so the time changes nothing but their number."
        )
        return plans.model_copy(update={"configurations": configurations, "notes": (*plans.notes, note)})

    def size(self, spacing: np.ndarray, median: Sequence[float], dataset_voxels: float, frame: Frame) -> Sized:
        """Return the dearest network, patch and batch that leave enough steps in the time at hand."""
        if not self._timed:
            return super().size(spacing, median, dataset_voxels, frame)
        dims = len(spacing)

        def sized_for(rung: Rung) -> Sized:
            return self._for_rung(rung, spacing, median, frame)

        def steps_of(rung: Rung) -> float | None:
            sized = sized_for(rung)
            return self._steps(sized, frame) if self._fits(sized, frame) else None

        def cost_of(rung: Rung) -> float:
            sized = sized_for(rung)
            return math.prod(sized.spec.patch_size) * sized.batch_size * rung.base_features**1.5

        self._rungs[dims] = climb(
            LADDERS[dims],
            steps_of,
            cost_of,
            wanted_steps=self.wanted_steps,
            fewest_steps=self.fewest_steps,
            smallest_patch=SMALLEST_PATCH[dims],
        )
        return sized_for(self._rungs[dims])

    def smallest(self, fingerprint: Any, dataset: Any, dims: int) -> Sized:
        """Return the smallest size of so many dimensions that plans for a short time have; nothing is timed."""
        frame = Frame(fingerprint, dataset, Resources())
        rung = dataclasses.replace(LADDERS[dims][0], patch_voxels=SMALLEST_PATCH[dims])
        return self._for_rung(rung, frame.spacing[-dims:], frame.median[-dims:], frame)

    def rough_size(self, spacing: np.ndarray, median: Sequence[float], dataset_voxels: float, frame: Frame) -> Sized:
        """Return a size by what was chosen at full resolution."""
        if not self._timed:
            return super().rough_size(spacing, median, dataset_voxels, frame)
        return self._for_rung(self._rungs[len(spacing)], spacing, median, frame)

    def training(self, sized: Sized, frame: Frame) -> TrainingPlan:
        """Return as many steps as fit into a fold's time, and a recipe that suits so few."""
        if not self._timed:
            return super().training(sized, frame)
        step = self._time(sized, frame)
        return short_training(
            max(1, min(int(self._steps(sized, frame)), self.most_steps)),
            seconds_per_fold=self.seconds_per_fold(frame),
            precision=step.precision if frame.resources.device == "cpu" else "auto",
        )

    def notes_on_data(self, frame: Frame) -> list[str]:
        """Return what is true of the whole plan, as sentences."""
        notes = super().notes_on_data(frame)
        if self._timed:
            folds = folds_of(frame.cases)
            notes.append(
                f"Planned for {in_hours(self._budget(frame))} of training per configuration, shared by {folds} folds, "
                f"on {frame.resources.workers} cores ({frame.resources.device}): steps were timed here, and network, "
                f"patch and batch are the largest that leave {self.wanted_steps} steps per fold. Where even the "
                "smallest network leaves fewer, it is taken."
            )
        return notes

    def _for_rung(self, rung: Rung, spacing: np.ndarray, median: Sequence[float], frame: Frame) -> Sized:
        def network(topology: Topology) -> NetworkSpec:
            """Return the network of a topology, with as many blocks per stage as this planner's own have."""
            spec = self.network(topology, frame, base_features=rung.base_features)
            if not self.own_architecture:
                return spec
            blocks, stages = self.blocks_per_stage, topology.stages
            return spec.model_copy(
                update={"blocks_encoder": (blocks,) * stages, "blocks_decoder": (blocks,) * (stages - 1)}
            )

        def too_large(topology: Topology) -> bool:
            return math.prod(network(topology).patch_size) > rung.patch_voxels

        topology = rules.search_patch(spacing, median, too_large, min_edge=self.min_edge)
        return Sized(tuple(map(float, spacing)), tuple(map(float, median)), network(topology), rung.batch_size)

    def _steps(self, sized: Sized, frame: Frame) -> float:
        """Return how many steps there is time for in a fold, beside the validation of its held-out cases."""
        step = self._time(sized, frame).seconds
        median = sized.median if len(sized.median) == 3 else (frame.median[0], *sized.median)
        mirrored = bool(recipe_for(int(training_seconds(self._budget(frame), frame.cases) / step))["mirror"])
        validation = validation_seconds(
            step, sized.batch_size, sized.spec.patch_size, median, frame.cases,
            mirrors=2 ** len(sized.spec.patch_size) if mirrored else 1,
        )  # fmt: skip
        return training_seconds(self._budget(frame), frame.cases, validation) / step

    def _time(self, sized: Sized, frame: Frame) -> StepTime:
        key = (sized.spec.model_dump_json(), sized.batch_size)
        if key not in self._times:
            self._times[key] = time_step(
                self.network_class, sized.spec, sized.batch_size, device=frame.resources.device, optimizer="adamw"
            )
        return self._times[key]

    def _fits(self, sized: Sized, frame: Frame) -> bool:
        bound = UNET_BYTES * plain_feature_map_sum(sized.spec, frame.fingerprint.num_labels) * sized.batch_size
        if self.own_architecture and bound < frame.resources.memory_gib * GIB:
            return True
        try:  # with the state of AdamW, which most short runs have
            memory = trace_training(
                self.network_class, sized.spec, sized.batch_size, precision=self.precision, optimizer="adamw"
            )
        except Untraceable:
            return True
        needed = memory.peak if frame.resources.device == "cpu" else memory.device_bytes
        return needed <= frame.resources.memory_gib * GIB

    def _budget(self, frame: Frame) -> float:
        assert frame.resources.time_budget is not None
        return frame.resources.time_budget


def in_hours(seconds: float) -> str:
    """Return a time span in words, in the unit that suits it."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
