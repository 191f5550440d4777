"""The contract of a planner, with nnU-Net's rules as the default of every step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from autoseg import plugins
from autoseg.errors import UserError
from autoseg.planning import rules
from autoseg.planning.bounds import within_bounds
from autoseg.planning.budget import folds_of
from autoseg.planning.estimate import plain_feature_map_sum
from autoseg.planning.frame import Frame, Sized
from autoseg.planning.resources import Resources
from autoseg.planning.sentences import in_words
from autoseg.planning.topology import MIN_EDGE, Topology, pad_to_multiple
from autoseg.plans import Configuration, NetworkSpec, Plans, TrainingPlan


class Planner:
    """`plan(fingerprint, resources, dataset) -> Plans`; a subclass changes numbers or overrides single steps.

    The steps are `configurations` (which there are), `size` (patch, network, batch of one), `training` (its recipe)
    and `finish` (a last look at what was chosen). Every number is a class attribute.
    """

    architecture: str = "plain_unet"
    memory_gib: float = 8.0  # planned for when the user names no memory; None of the rules looks at the hardware
    base_features: int = 32  # channels of the first stage, doubled per stage
    max_features_2d: int = 512
    max_features_3d: int = 320
    min_edge: int = MIN_EDGE  # smallest edge of the lowest-resolution feature map, voxels
    reference_2d: float = 85e6  # feature-map sum that fits `reference_gib` at the reference batch size
    reference_3d: float = 560e6
    reference_gib: float = 8.0
    reference_batch_2d: int = 12
    reference_batch_3d: int = 2
    min_batch: int = 2
    batch_before_patch: bool = True  # True: the batch shrinks to 2 before the patch does
    max_dataset_covered: float = 0.05  # share of the data set's voxels that one batch may hold
    lowres_threshold: float = 0.25  # a patch below this share of the median image asks for a low-resolution stage
    cascade: bool = True  # whether a low-resolution stage is followed by a cascade
    shares_data_of: str | None = None  # plans whose 2d and 3d_fullres data are the same as this planner's

    def __init__(
        self,
        *,
        name: str | None = None,
        plans_name: str | None = None,
        architecture: str | None = None,
        wanted: Iterable[str] | None = None,
        workspace: Path | None = None,
        network_options: Mapping[str, Any] | None = None,
    ):
        registered = next(iter(type(self).__dict__.get("autoseg_names", {})), type(self).__name__)
        self.name = name or registered
        self.plans_name = plans_name or self.name
        self.own_architecture = architecture is None
        if architecture is not None:
            self.architecture = architecture
        self.network_options = dict(network_options or {})
        self.wanted = None if wanted is None else tuple(wanted)
        self.workspace = workspace
        self.notes: list[str] = []

    def plan(self, fingerprint: Any, resources: Resources, dataset: Any) -> Plans:
        """Return the plans for a data set's fingerprint and the resources at hand.

        Raises UserError for what a plan cannot hold, such as a spacing below a nanometre.
        """
        frame = Frame(fingerprint, dataset, resources)
        with within_bounds(frame):
            return self._plan(frame)

    def _plan(self, frame: Frame) -> Plans:
        fingerprint = frame.fingerprint
        self.notes = self.notes_on_data(frame)
        sized = self.configurations(frame)
        chosen = self._choose(sized)
        configurations = {name: self.finish(self._configuration(name, sized, frame), frame) for name in chosen}
        if "3d_cascade_fullres" in sized and self._asked_for("3d_cascade_fullres"):
            configurations["3d_cascade_fullres"] = self._cascade(configurations, frame)
            if not self._asked_for("3d_fullres"):
                del configurations["3d_fullres"]
        forward, backward = frame.transposes
        return Plans(
            dataset_name=fingerprint.dataset_name,
            plans_name=self.plans_name,
            planner=self.name,
            transpose_forward=forward,
            transpose_backward=backward,
            original_median_spacing=tuple(np.median(fingerprint.spacings, 0)[list(forward)].tolist()),
            original_median_shape=tuple(np.median(fingerprint.shapes_after_crop, 0)[list(forward)].tolist()),
            intensities=tuple(fingerprint.intensities),
            channel_names=tuple(fingerprint.channel_names),
            configurations=configurations,
            resources=frame.resources.describe(),
            notes=(*self.notes, *(in_words(c, self.network_sizing.recipe) for c in configurations.values())),
        )

    def configurations(self, frame: Frame) -> dict[str, Sized | None]:
        """Return the configurations that the data ask for; "3d_cascade_fullres" has no size of its own."""
        sized: dict[str, Sized | None] = {}
        spacing, median = frame.spacing, frame.median
        voxels = float(np.prod(median)) * frame.cases
        if self._asked_for("2d"):
            sized["2d"] = self.size(spacing[1:], median[1:], voxels, frame)
        if frame.flat or not self._asked_for("3d_fullres", "3d_lowres", "3d_cascade_fullres"):
            return sized
        full = self.size(spacing, median, voxels, frame)
        low = self._lowres(full, frame)
        if low is not None:
            sized["3d_lowres"] = low
        sized["3d_fullres"] = full
        if low is not None and self.cascade:
            sized["3d_cascade_fullres"] = None
        return sized

    def size(self, spacing: np.ndarray, median: Sequence[float], dataset_voxels: float, frame: Frame) -> Sized:
        """Return patch, network and batch for a spacing (mm) and a median shape, by nnU-Net's memory rule."""
        dims = len(spacing)
        reference_batch = self.reference_batch_2d if dims == 2 else self.reference_batch_3d
        reference = self.reference(dims, frame)
        factor = 2 / reference_batch if self.batch_before_patch else 1.0

        def too_large(topology: Topology) -> bool:
            return self.estimate(self.network(topology, frame), frame) * factor > reference

        topology = rules.search_patch(spacing, median, too_large, min_edge=self.min_edge)
        spec = self.network(topology, frame)
        batch = round(reference / self.estimate(spec, frame) * reference_batch)
        cap = rules.covered_batch(self.max_dataset_covered, dataset_voxels, spec.patch_size)
        batch = max(min(batch, cap), self.min_batch)
        return Sized(tuple(map(float, spacing)), tuple(map(float, median)), spec, batch)

    def rough_size(self, spacing: np.ndarray, median: Sequence[float], dataset_voxels: float, frame: Frame) -> Sized:
        """Return what `size` does, perhaps less exactly, for the low-resolution search over many spacings."""
        return self.size(spacing, median, dataset_voxels, frame)

    def reference(self, dims: int, frame: Frame) -> float:
        """Return the feature-map sum that the memory holds at the reference batch size."""
        memory = frame.resources.memory_gib if frame.resources.memory_given else self.memory_gib
        return (self.reference_2d if dims == 2 else self.reference_3d) * (memory / self.reference_gib)

    def network(self, topology: Topology, frame: Frame, *, base_features: int | None = None) -> NetworkSpec:
        """Return the network for a topology; its patch is a multiple of what the architecture asks for."""
        dims, stages, base = len(topology.patch_size), topology.stages, base_features or self.base_features
        most = self.max_features_2d if dims == 2 else self.max_features_3d
        names = frame.fingerprint.channel_names
        spec = NetworkSpec(
            dims=dims,
            in_channels=len(names),
            num_outputs=frame.dataset.labels.num_outputs,
            patch_size=(2,) * dims if math.prod(topology.patch_size) == 1 else topology.patch_size,  # to normalise over
            strides=topology.strides,
            kernel_sizes=topology.kernel_sizes,
            features=tuple(min(most, base * 2**stage) for stage in range(stages)),
            blocks_encoder=(2,) * stages,
            blocks_decoder=(2,) * (stages - 1),
            options=self.network_sizing.options_for(self.network_options, names, frame.dataset.description),
        )
        spec = self.network_sizing.adapt_spec(spec)
        multiple = self.network_sizing.patch_multiple(spec)
        patch = tuple(pad_to_multiple(edge, step) for edge, step in zip(spec.patch_size, multiple, strict=True))
        return spec if patch == spec.patch_size else spec.model_copy(update={"patch_size": patch})

    def estimate(self, spec: NetworkSpec, frame: Frame) -> float:
        """Return the feature-map sum of one sample."""
        return plain_feature_map_sum(spec, frame.fingerprint.num_labels)

    def training(self, sized: Sized, frame: Frame) -> TrainingPlan:
        """Return the recipe of one configuration: nnU-Net's, cut to the time at hand if there is a budget."""
        return TrainingPlan(time_budget=self.seconds_per_fold(frame))

    def seconds_per_fold(self, frame: Frame) -> float | None:
        """Return the share of one fold in the time budget."""
        budget = frame.resources.time_budget
        return None if budget is None else budget / folds_of(frame.cases)

    def finish(self, configuration: Configuration, frame: Frame) -> Configuration:
        """Return the configuration after a last look, for instance at its traced memory."""
        return configuration

    def notes_on_data(self, frame: Frame) -> list[str]:
        """Return what is true of the whole plan, as sentences for the report."""
        notes = [
            f"{frame.cases} training cases; the median case has {rules.in_words(frame.median)} voxels at the target "
            f"spacing of {rules.in_words(frame.spacing)} mm (axes in the order of the plan)."
        ]
        if frame.transposes[0] != (0, 1, 2):
            notes.append(f"The axes are reordered by {frame.transposes[0]}, so that the coarsest axis comes first.")
        if frame.flat:
            notes.append("The images are 2D, so there are no 3D configurations.")
        notes += [
            f"{self.architecture} has no {dims}D form, so there are no {dims}D configurations."
            for dims in (2, 3)
            if dims not in self.network_sizing.dims
        ]
        return notes

    @cached_property
    def network_sizing(self) -> Any:
        """What sizes the architecture: its class, or the part of it that needs no torch."""
        return plugins.load_sizing(self.architecture, self.workspace)

    @cached_property
    def network_class(self) -> Any:
        """The architecture's class."""
        return plugins.load("architecture", self.architecture, self.workspace)

    def _lowres(self, full: Sized, frame: Frame) -> Sized | None:
        """Return the low-resolution stage, or None where the patch sees enough or the gain is below a factor of 2."""
        low, share, voxels = None, full.coverage, float(np.prod(frame.median))
        spacing = frame.spacing
        while share < self.lowres_threshold:
            spacing = rules.coarser(spacing)
            exact = frame.spacing / spacing * frame.median
            voxels = float(np.prod(exact))
            low = self.rough_size(spacing, [max(1, round(float(edge))) for edge in exact], voxels * frame.cases, frame)
            share = math.prod(low.spec.patch_size) / voxels
        if low is None or np.prod(frame.median) / voxels < 2:
            return None
        if not self._asked_for("3d_lowres", "3d_cascade_fullres"):
            return low
        return self.size(np.asarray(low.spacing), low.median, voxels * frame.cases, frame)

    def _choose(self, sized: dict[str, Sized | None]) -> list[str]:
        """Return the names to make, with those that a wanted cascade is built on."""
        if self.wanted is None:
            if not sized:
                raise plugins.no_form(self.architecture, 2)
            return [name for name, size in sized.items() if size is not None]
        for name in self.wanted:
            if not self._serves(name):
                raise plugins.no_form(self.architecture, _dims(name))
            if name not in sized:
                gets = dict.fromkeys([*(["2d"] if self._serves("2d") else []), *sized])
                raise UserError(
                    f"this data set gets no configuration {name!r}; it gets: {', '.join(gets)}",
                    mend="leave the configuration out, or choose one of these",
                )
        needed = {*self.wanted}
        if "3d_cascade_fullres" in needed:
            needed |= {"3d_lowres", "3d_fullres"}
        return [name for name, size in sized.items() if size is not None and name in needed]

    def _asked_for(self, *names: str) -> bool:
        return any(self._serves(name) and (self.wanted is None or name in self.wanted) for name in names)

    def _serves(self, name: str) -> bool:
        """Tell whether the architecture has the form for a configuration."""
        return _dims(name) in self.network_sizing.dims

    def _configuration(self, name: str, sized: dict[str, Sized | None], frame: Frame) -> Configuration:
        size = sized[name]
        assert size is not None
        schemes, masks = rules.normalization(frame.fingerprint.channel_names, frame.fingerprint.median_relative_size)
        data_of = self.shares_data_of if name != "3d_lowres" and self.shares_data_of else self.plans_name
        return Configuration(
            name=name,
            dims=size.spec.dims,
            spacing=size.spacing,
            median_shape=size.median,
            patch_size=size.spec.patch_size,
            batch_size=size.batch_size,
            batch_dice=name == "2d" or (name == "3d_fullres" and "3d_lowres" in sized),
            normalization=schemes,
            use_mask=masks,
            data_identifier=f"{data_of}_{name}",
            architecture=self.architecture,
            network=size.spec,
            next_stage="3d_cascade_fullres" if name == "3d_lowres" and "3d_cascade_fullres" in sized else None,
            training=self.training(size, frame),
        )

    def _cascade(self, configurations: dict[str, Configuration], frame: Frame) -> Configuration:
        """The full resolution with one more input channel per foreground label of the stage before."""
        full = configurations["3d_fullres"]
        channels = full.network.in_channels + len(frame.dataset.labels.foreground_values)
        update = {
            "name": "3d_cascade_fullres",
            "previous_stage": "3d_lowres",
            "network": full.network.model_copy(update={"in_channels": channels}),
        }
        return full.model_copy(update=update)


def _dims(name: str) -> int:
    return 2 if name == "2d" else 3
