"""Training: the Trainer contract, the fit loop, checkpoints, validation; `train` and `pretrain` run them."""

from autoseg.training.context import RunContext
from autoseg.training.health import TrainingFailed
from autoseg.training.settings import Setting, declared_settings, parse_assignments, resolve_settings
from autoseg.training.starting import pretrain, train
from autoseg.training.trainer import Trainer

__all__ = [
    "RunContext",
    "Setting",
    "Trainer",
    "TrainingFailed",
    "declared_settings",
    "parse_assignments",
    "pretrain",
    "resolve_settings",
    "train",
]
