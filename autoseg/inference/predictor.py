"""A model folder that predicts: image in, label map on the same grid out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoseg.devices import choose_device
from autoseg.errors import UserError
from autoseg.inference.adaptation import Adaptation
from autoseg.inference.export import label_map, probabilities, uncertainty
from autoseg.inference.folder import CaseResult, predict_folder
from autoseg.inference.members import LoadedMember, load_members
from autoseg.inference.postprocessing import postprocess
from autoseg.inference.preprocessed import predict_label_map, predict_mean, previous_stage_label
from autoseg.inference.resampling import Resampled
from autoseg.inference.versions import tell_other_versions
from autoseg.inference.window import FORMATS, Mean
from autoseg.model_folder import Model, read_model
from autoseg.preprocessing import preprocess_case
from autoseg.storage import content_hash
from autoseg.store import Preprocessed

log = logging.getLogger(__name__)

Prepared = Mapping[tuple[str, str], Preprocessed]


@dataclass(frozen=True)
class Prediction:
    """What was predicted for one case, on the grid of its image.

    `label` (Z, Y, X) has the raw values of the data set; `probabilities` (K, Z, Y, X) float32 and `uncertainty`
    (Z, Y, X) float32 in 0..1 (see `export.uncertainty`) are None unless asked for.
    """

    label: np.ndarray
    probabilities: np.ndarray | None = None
    uncertainty: np.ndarray | None = None


@dataclass(frozen=True)
class Settings:
    """How to predict; part of what makes a finished prediction valid."""

    step_size: float = 0.5
    mirroring: bool = True
    precision: str = "auto"
    network_options: Mapping[str, Any] = field(default_factory=dict)
    adaptation: Adaptation | None = None


class Predictor:
    """Predicts with all members and folds of a model; make one with `Predictor.load`."""

    def __init__(self, model: Model, members: Sequence[LoadedMember], settings: Settings, device: torch.device):
        self.model = model
        self.members = tuple(members)
        self.settings = settings
        self.device = device

    @classmethod
    def load(
        cls,
        model_folder: Path | str,
        *,
        device: str | torch.device = "auto",
        folds: Sequence[str | int] | None = None,
        step_size: float = 0.5,
        mirroring: bool = True,
        precision: str = "auto",
        network_options: Mapping[str, Any] | None = None,
        adaptation: Adaptation | None = None,
        trust_plugins: bool = False,
    ) -> Predictor:
        """Read a model folder, verify its checksums and bring the networks of the folds (None: all) to the device.

        `network_options` go over those the networks were trained with: UNet++'s {"inference": "prune:2"}. With
        `adaptation` the norms of every network learn from each image before it is segmented.
        """
        folder = Path(model_folder)
        if not 0 < step_size <= 1:
            raise UserError(f"step_size must be above 0 and at most 1, got {step_size}")
        if precision not in ("auto", *FORMATS):
            raise UserError(f"precision must be one of auto, {', '.join(FORMATS)}, got {precision!r}")
        chosen = choose_device(device)
        model = read_model(folder)
        tell_other_versions(model.versions)
        members = load_members(
            folder, model, device=chosen, folds=folds, network_options=network_options, trust_plugins=trust_plugins
        )
        settings = Settings(step_size, mirroring, precision, dict(network_options or {}), adaptation)
        return cls(model, members, settings, chosen)

    @property
    def identity(self) -> str:
        """Return a digest of the model's content, the folds in use and the settings."""
        folds = {loaded.member.name: sorted(loaded.folds) for loaded in self.members}
        settings = {name: value for name, value in asdict(self.settings).items() if value is not None}
        return content_hash(self.model.model_dump(mode="json"), folds, settings)

    def predict_array(
        self,
        image: np.ndarray,
        spacing: Sequence[float],
        *,
        save_probabilities: bool = False,
        uncertainty: bool = False,
    ) -> Prediction:
        """Segment an image (C, Z, Y, X) of given spacing (z, y, x) in mm; a 2D image has one slice.

        Of a model with `orientation` "ras" the axes must be up, front and right; `predict_folder` sees to that.
        """
        prepared = self.prepare(image, spacing)
        return self.predict_prepared(prepared, save_probabilities=save_probabilities, uncertainty=uncertainty)

    def prepare(self, image: np.ndarray, spacing: Sequence[float]) -> Prepared:
        """Preprocess an image (C, Z, Y, X) for every member; needs no device and may run in another thread."""
        image = np.asarray(image)
        if image.ndim != 4 or len(image) != len(self.model.channel_names):
            names = ", ".join(self.model.channel_names)
            raise UserError(
                f"the model takes images (C, Z, Y, X) of {len(self.model.channel_names)} channel(s) ({names}), "
                f"got an array of shape {image.shape}"
            )
        prepared: dict[tuple[str, str], Preprocessed] = {}
        for loaded in self.members:
            if loaded.preprocessing not in prepared:
                prepared[loaded.preprocessing] = preprocess_case(
                    image, None, spacing, plans=loaded.plans, configuration=loaded.configuration
                )
        return prepared

    def predict_prepared(
        self, prepared: Prepared, *, save_probabilities: bool = False, uncertainty: bool = False
    ) -> Prediction:
        """Segment what `prepare` returned."""
        if not save_probabilities and not uncertainty and sum(m.member.in_ensemble for m in self.members) == 1:
            return self._labels_alone(prepared)
        outputs: dict[str, Mean] = {}
        stages: dict[str, np.ndarray] = {}
        for loaded in self.members:
            case = prepared[loaded.preprocessing]
            if not loaded.member.in_ensemble:
                stages[loaded.member.name] = self._label_map(loaded, case, stages)
                continue
            mean = self._mean(loaded, case, stages, with_uncertainty=uncertainty)
            if loaded.member.name in self._previous_stages:
                stages[loaded.member.name] = label_map([_resampled(mean.logits, loaded, case)], self.model.labels)
            outputs[loaded.member.name] = mean
        return self._export(outputs, prepared, save_probabilities=save_probabilities, with_uncertainty=uncertainty)

    def predict_folder(
        self,
        inputs: Path | str,
        output: Path | str,
        *,
        save_probabilities: bool = False,
        uncertainty: bool = False,
        workers: int = 1,
        restart: bool = False,
    ) -> list[CaseResult]:
        """Segment every case of a folder (or one DICOM series) into `output`; see `folder.predict_folder`."""
        return predict_folder(
            self, Path(inputs), Path(output), save_probabilities=save_probabilities, uncertainty=uncertainty,
            workers=workers, restart=restart,
        )  # fmt: skip

    @property
    def _previous_stages(self) -> set[str | None]:
        return {loaded.member.previous_stage for loaded in self.members}

    def _labels_alone(self, prepared: Prepared) -> Prediction:
        """Segment by one configuration and its previous stages; no logits are kept."""
        stages: dict[str, np.ndarray] = {}
        for loaded in self.members:
            stages[loaded.member.name] = self._label_map(loaded, prepared[loaded.preprocessing], stages)
        (result,) = (stages[loaded.member.name] for loaded in self.members if loaded.member.in_ensemble)
        return Prediction(label=self.model.labels.to_raw(postprocess(result, self.model.postprocessing)))

    def _label_map(self, loaded: LoadedMember, case: Preprocessed, stages: Mapping[str, np.ndarray]) -> np.ndarray:
        return predict_label_map(
            loaded.networks, _image(case), loaded.plans, loaded.configuration, case.properties, self.model.labels,
            **self._fields(loaded, case, stages),
        )  # fmt: skip

    def _mean(
        self, loaded: LoadedMember, case: Preprocessed, stages: Mapping[str, np.ndarray], *, with_uncertainty: bool
    ) -> Mean:
        regions = self.model.labels.regions
        activation = "sigmoid" if regions else "softmax"
        mean = predict_mean(
            loaded.networks, _image(case), loaded.configuration, activation=activation if with_uncertainty else None,
            regions=regions, **self._fields(loaded, case, stages),
        )  # fmt: skip
        if len(self.members) > 1:  # several volumes of logits wait for each other: not on the GPU
            return Mean(mean.logits.cpu(), None if mean.probabilities is None else mean.probabilities.cpu())
        return mean

    def _fields(self, loaded: LoadedMember, case: Preprocessed, stages: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return how a member predicts, and from what previous stage."""
        previous = None
        if loaded.member.previous_stage is not None:
            below = stages[loaded.member.previous_stage]
            previous = previous_stage_label(below, case.properties, loaded.plans, loaded.configuration)
        return {
            "mirror_axes": loaded.member.mirror_axes if self.settings.mirroring else (),
            "device": self.device,
            "step_size": self.settings.step_size,
            "precision": self.settings.precision,
            "previous_label": previous,
            "adaptation": self.settings.adaptation,
        }

    def _export(
        self, outputs: Mapping[str, Mean], prepared: Prepared, *, save_probabilities: bool, with_uncertainty: bool
    ) -> Prediction:
        labels = self.model.labels
        loaded = [member for member in self.members if member.member.name in outputs]
        cases = [prepared[member.preprocessing] for member in loaded]
        means = [outputs[member.member.name] for member in loaded]
        logits = [_resampled(mean.logits, *pair) for mean, *pair in zip(means, loaded, cases, strict=True)]
        label = postprocess(label_map(logits, labels), self.model.postprocessing)
        doubt = None
        if with_uncertainty:
            activated = zip(means, loaded, cases, strict=True)
            doubt = uncertainty([_resampled(mean.probabilities, *pair) for mean, *pair in activated], labels)
        return Prediction(
            label=labels.to_raw(label),
            probabilities=probabilities(logits, labels) if save_probabilities else None,
            uncertainty=doubt,
        )


def _image(case: Preprocessed) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(case.data))


def _resampled(values: torch.Tensor, loaded: LoadedMember, case: Preprocessed) -> Resampled:
    return Resampled(values, case.properties, loaded.plans, loaded.configuration)
