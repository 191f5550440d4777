"""Inference: network and case -> label map on the original grid. Knows model folders, not trainers."""

from autoseg.inference.adaptation import Adaptation, adapted
from autoseg.inference.export import (
    Exported,
    Outputs,
    export_rows,
    label_map,
    logits_to_label_map,
    logits_to_probabilities,
    probabilities,
    uncertainty,
)
from autoseg.inference.folder import CaseResult
from autoseg.inference.postprocessing import postprocess
from autoseg.inference.predictor import Prediction, Predictor
from autoseg.inference.preprocessed import (
    Request,
    evaluating,
    one_hot_foreground,
    predict_label_map,
    predict_mean,
    predict_preprocessed,
    predict_rows,
    previous_stage_label,
)
from autoseg.inference.resampling import Resampled
from autoseg.inference.tile_pass import Rows
from autoseg.inference.window import Mean, Window, sliding_window, sliding_window_logits, stream_windows

__all__ = [
    "Adaptation",
    "CaseResult",
    "Exported",
    "Mean",
    "Outputs",
    "Prediction",
    "Predictor",
    "Request",
    "Resampled",
    "Rows",
    "Window",
    "adapted",
    "evaluating",
    "export_rows",
    "label_map",
    "logits_to_label_map",
    "logits_to_probabilities",
    "one_hot_foreground",
    "postprocess",
    "predict_label_map",
    "predict_mean",
    "predict_preprocessed",
    "predict_rows",
    "previous_stage_label",
    "probabilities",
    "sliding_window",
    "sliding_window_logits",
    "stream_windows",
    "uncertainty",
]
