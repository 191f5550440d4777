"""A planner base that sizes patch and batch of any architecture by the memory of a traced training step."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoseg.planning import rules
from autoseg.planning.frame import Frame, Sized
from autoseg.planning.memory import CONTEXT_BYTES, Memory, Untraceable, trace_training
from autoseg.planning.planner import Planner
from autoseg.planning.resources import GIB
from autoseg.planning.topology import Topology, find_topology
from autoseg.plans import NetworkSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rate:
    """Memory as an affine function of the voxels in a batch, fitted to one trace."""

    static: float
    per_voxel: float

    def device_bytes(self, voxels: float) -> float:
        """Return the bytes that a device needs for a batch of so many voxels."""
        return self.static + self.per_voxel * voxels + CONTEXT_BYTES

    def voxels(self, device_bytes: float) -> float:
        """Return how many voxels fit."""
        return (device_bytes - CONTEXT_BYTES - self.static) / self.per_voxel


class TracedPlanner(Planner):
    """The largest patch that fits at the reference batch size, then the largest batch; any architecture.

    Patch shapes follow nnU-Net's rules (isotropic in mm, within the median image, shrunk axis by axis). An
    architecture that cannot be traced is planned by nnU-Net's estimate, which a note tells.
    """

    architecture: str = "residual_encoder_unet"
    most_gib: float = 24.0  # used at most when the user names no memory: beyond ResEnc L's 24 nnU-Net gained nothing
    optimizer: str = "sgd"  # whose state is counted, unless the architecture's recipe names another
    precision: str = "bf16"  # of the activations
    start_edge_2d: int = 256  # edge of the patch of the first trace, voxels
    start_edge_3d: int = 64
    smallest_edge: int = 8  # patches of fewer voxels than a cube of this edge are not tried
    most_traces: int = 6  # refinements of one configuration

    def size(self, spacing: np.ndarray, median: Sequence[float], dataset_voxels: float, frame: Frame) -> Sized:
        """Return the largest patch and batch whose traced memory fits."""
        try:
            return self._traced_size(spacing, median, dataset_voxels, frame)
        except Untraceable as error:
            log.warning("%s", error)
            self._note(f"{self.architecture} could not be traced, so nnU-Net's estimate sized its patch ({error}).")
            return super().size(spacing, median, dataset_voxels, frame)

    def rough_size(self, spacing: np.ndarray, median: Sequence[float], dataset_voxels: float, frame: Frame) -> Sized:
        """Return a size by the fit to earlier traces, for searches over many spacings."""
        rate = self._rates.get(len(spacing))
        if rate is None:
            return self.size(spacing, median, dataset_voxels, frame)
        return self._by_rate(rate, spacing, median, dataset_voxels, frame)

    def memory_limit(self, frame: Frame) -> float:
        """Return the bytes that one training may take."""
        resources = frame.resources
        gib = resources.memory_gib if resources.memory_given else min(resources.memory_gib, self.most_gib)
        return gib * GIB

    def trace(self, spec: NetworkSpec, batch_size: int) -> Memory:
        """Return the traced memory of one training step, remembered."""
        optimizer = self.network_class.recipe.get("optimizer", self.optimizer)
        return trace_training(self.network_class, spec, batch_size, precision=self.precision, optimizer=optimizer)

    def __init__(self, **settings: object):
        super().__init__(**settings)  # type: ignore[arg-type]
        self._rates: dict[int, Rate] = {}

    def _traced_size(self, spacing: np.ndarray, median: Sequence[float], dataset_voxels: float, frame: Frame) -> Sized:
        dims = len(spacing)
        edge = self.start_edge_2d if dims == 2 else self.start_edge_3d
        start = self.network(
            find_topology(spacing, [min(edge, float(limit)) for limit in median], min_edge=self.min_edge), frame
        )
        rate = self._rate(start, 1)
        best: Sized | None = None
        seen = set()
        for _ in range(self.most_traces):
            sized = self._by_rate(rate, spacing, median, dataset_voxels, frame)
            key = (sized.spec.patch_size, sized.batch_size)
            if key in seen:
                break
            seen.add(key)
            rate = self._rate(sized.spec, sized.batch_size)
            fits = self.trace(sized.spec, sized.batch_size).device_bytes <= self.memory_limit(frame)
            if fits and (best is None or _voxels(sized) > _voxels(best)):
                best = sized
        self._rates[dims] = rate
        return best or self._shrunk_until_it_fits(sized, spacing, median, frame)

    def _shrunk_until_it_fits(self, sized: Sized, spacing: np.ndarray, median: Sequence[float], frame: Frame) -> Sized:
        """Return the first size that fits: fewer samples, then smaller patches."""
        limit = self.memory_limit(frame)
        topology: Topology | None = find_topology(spacing, sized.spec.patch_size, min_edge=self.min_edge)
        batch, smallest = sized.batch_size, self.smallest_edge ** len(spacing)
        spec = sized.spec
        while topology is not None and (spec is sized.spec or math.prod(topology.patch_size) >= smallest):
            spec = self.network(topology, frame)
            needed = self.trace(spec, batch).device_bytes
            if needed <= limit:
                return Sized(sized.spacing, sized.median, spec, batch)
            if batch > self.min_batch:
                batch = max(self.min_batch, batch * 3 // 4)
            else:
                topology = rules.shrink(topology, spacing, median, min_edge=self.min_edge)
        self._note(
            f"even the smallest patch {rules.in_words(spec.patch_size)} of {self.architecture} needs "
            f"{needed / GIB:.1f} GiB, more than the {limit / GIB:.1f} GiB at hand."
        )
        return Sized(sized.spacing, sized.median, spec, batch)

    def _by_rate(
        self, rate: Rate, spacing: np.ndarray, median: Sequence[float], dataset_voxels: float, frame: Frame
    ) -> Sized:
        limit = self.memory_limit(frame)
        reference = self.reference_batch_2d if len(spacing) == 2 else self.reference_batch_3d

        def too_large(topology: Topology) -> bool:
            voxels = math.prod(self.network(topology, frame).patch_size)
            return rate.device_bytes(voxels * reference) > limit

        smallest = self.smallest_edge ** len(spacing)
        topology = rules.search_patch(spacing, median, too_large, min_edge=self.min_edge, smallest=smallest)
        spec = self.network(topology, frame)
        fitting = int(rate.voxels(limit) / math.prod(spec.patch_size))
        cap = rules.covered_batch(self.max_dataset_covered, dataset_voxels, spec.patch_size)
        batch = max(min(fitting, cap), self.min_batch)
        return Sized(tuple(map(float, spacing)), tuple(map(float, median)), spec, batch)

    def _rate(self, spec: NetworkSpec, batch_size: int) -> Rate:
        memory = self.trace(spec, batch_size)
        return Rate(memory.static, (memory.peak - memory.static) / (batch_size * math.prod(spec.patch_size)))

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _voxels(sized: Sized) -> int:
    return sized.batch_size * math.prod(sized.spec.patch_size)
