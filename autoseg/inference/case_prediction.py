"""One prepared case through all members of a model: previous stages first, then the ensemble, row by row."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from autoseg.inference.adaptation import Adaptation
from autoseg.inference.export import Exported, Outputs, export_rows, label_map
from autoseg.inference.members import LoadedMember
from autoseg.inference.preprocessed import (
    Request,
    outputs_of,
    predict_label_map,
    predict_mean,
    previous_stage_label,
)
from autoseg.inference.resampling import Resampled
from autoseg.inference.tile_pass import Rows
from autoseg.inference.window import Mean, stream_windows
from autoseg.labels import Labels
from autoseg.plans import Configuration, Plans

if TYPE_CHECKING:
    from autoseg.store import Preprocessed
    from autoseg.store.records import CaseProperties

Prepared = Mapping[tuple[str, str], "Preprocessed"]


@dataclass(frozen=True)
class Settings:
    """How to predict; part of what makes a finished prediction valid."""

    step_size: float = 0.5
    mirroring: bool = True
    precision: str = "auto"
    network_options: Mapping[str, Any] = field(default_factory=dict)
    adaptation: Adaptation | None = None


class CasePrediction:
    """Predicts a case that `Predictor.prepare` made ready by members of a model, in their order.

    No member's outputs are in memory as a whole, but of those that serve the ensemble and a next stage alike.
    """

    def __init__(
        self,
        members: Sequence[LoadedMember],
        prepared: Prepared,
        labels: Labels,
        settings: Settings,
        device: torch.device,
    ):
        self._members = tuple(members)
        self._prepared = prepared
        self._labels = labels
        self._settings = settings
        self._device = device
        self._stages: dict[str, np.ndarray] = {}  # label maps of previous stages, by member
        self._kept: dict[str, Mean] = {}  # means that are wanted twice

    def run(self, want: Collection[str]) -> Exported:
        """Return what is wanted of label, probabilities and uncertainty, on the grid of the image."""
        activated = "uncertainty" in want
        previous = {loaded.member.previous_stage for loaded in self._members}
        for loaded in self._members:
            if loaded.member.name in previous:
                self._stages[loaded.member.name] = self._stage(loaded, activated)
        members = [loaded for loaded in self._members if loaded.member.in_ensemble]
        streamed = [loaded for loaded in members if loaded.member.name not in self._kept]
        with ExitStack() as stack:
            windows = [
                stack.enter_context(self._request(loaded, activated).window(loaded.plans.transpose_backward[0]))
                for loaded in streamed
            ]
            return stream_windows(windows, lambda rows: export_rows(self._outputs(members, rows), self._labels, want))

    def _stage(self, loaded: LoadedMember, activated: bool) -> np.ndarray:
        """Return the label map of a previous stage; its mean is kept where it is in the ensemble, too."""
        request = self._request(loaded, activated)
        properties, plans, configuration = self._place(loaded)
        if not loaded.member.in_ensemble:
            return predict_label_map(request, plans, properties, self._labels)
        mean = predict_mean(request)
        self._kept[loaded.member.name] = mean = Mean(*(part.cpu() for part in mean.given))  # it waits off the GPU
        return label_map([Resampled(mean.logits, properties, plans, configuration)], self._labels)

    def _outputs(self, members: Sequence[LoadedMember], rows: Sequence[Iterator[Rows]]) -> list[Iterator[Outputs]]:
        """Return the outputs of every member of the ensemble, from its window or from what was kept."""
        coming, streams = iter(rows), []
        for loaded in members:
            if (whole := self._kept.get(loaded.member.name)) is None:
                streams.append(outputs_of(next(coming), *self._place(loaded)))
            else:
                place = self._place(loaded)
                streams.append(iter([Outputs(*(Resampled(part, *place) for part in whole.given))]))
        return streams

    def _place(self, loaded: LoadedMember) -> tuple[CaseProperties, Plans, Configuration]:
        return self._prepared[loaded.preprocessing].properties, loaded.plans, loaded.configuration

    def _request(self, loaded: LoadedMember, activated: bool) -> Request:
        """Return what a member is to predict, and from what previous stage."""
        case, previous, settings = self._prepared[loaded.preprocessing], None, self._settings
        if loaded.member.previous_stage is not None:
            below = self._stages[loaded.member.previous_stage]
            previous = previous_stage_label(below, case.properties, loaded.plans, loaded.configuration)
        return Request(
            loaded.networks,
            torch.from_numpy(np.ascontiguousarray(case.data)),
            loaded.configuration,
            mirror_axes=loaded.member.mirror_axes if settings.mirroring else (),
            device=self._device,
            step_size=settings.step_size,
            precision=settings.precision,
            previous_label=previous,
            adaptation=settings.adaptation,
            regions=self._labels.regions,
            activated=activated and loaded.member.in_ensemble,
        )
