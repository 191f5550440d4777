"""A model folder that predicts: image in, label map on the same grid out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoseg.devices import choose_device, prepare_to_compute
from autoseg.errors import UserError
from autoseg.inference.adaptation import Adaptation
from autoseg.inference.case_prediction import CasePrediction, Prepared, Settings
from autoseg.inference.folder import CaseResult, predict_folder
from autoseg.inference.members import LoadedMember, load_members
from autoseg.inference.postprocessing import postprocess
from autoseg.inference.versions import tell_other_versions
from autoseg.inference.window import FORMATS
from autoseg.model_folder import Model, read_model
from autoseg.preprocessing import preprocess_case
from autoseg.storage import content_hash
from autoseg.store import Preprocessed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """What was predicted for one case, on the grid of its image.

    `label` (Z, Y, X) has the raw values of the data set; `probabilities` (K, Z, Y, X) float32 and `uncertainty`
    (Z, Y, X) float32 in 0..1 (see `export.uncertainty`) are None unless asked for.
    """

    label: np.ndarray
    probabilities: np.ndarray | None = None
    uncertainty: np.ndarray | None = None


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
        prepare_to_compute(chosen)
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
        wanted = {"label": True, "probabilities": save_probabilities, "uncertainty": uncertainty}
        case = CasePrediction(self.members, prepared, self.model.labels, self.settings, self.device)
        found = case.run({name for name, is_wanted in wanted.items() if is_wanted})
        label = self.model.labels.to_raw(postprocess(found.label, self.model.postprocessing))
        return Prediction(label, found.probabilities, found.uncertainty)

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
