"""Training: the Trainer contract, the fit loop, checkpoints, validation; `train` and `pretrain` run them.

Loaded on first use: planning takes the recipes from here, and they cost nothing, while the loop and what it runs on
take seconds to import and a hundred megabytes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PLACES = {
    "RunContext": "autoseg.training.context",
    "Setting": "autoseg.training.settings",
    "Trainer": "autoseg.training.trainer",
    "TrainingFailed": "autoseg.training.health",
    "declared_settings": "autoseg.training.settings",
    "parse_assignments": "autoseg.training.settings",
    "pretrain": "autoseg.training.starting",
    "resolve_settings": "autoseg.training.settings",
    "train": "autoseg.training.starting",
}

__all__ = sorted(_PLACES)

if TYPE_CHECKING:
    from autoseg.training.context import RunContext as RunContext
    from autoseg.training.health import TrainingFailed as TrainingFailed
    from autoseg.training.settings import Setting as Setting
    from autoseg.training.settings import declared_settings as declared_settings
    from autoseg.training.settings import parse_assignments as parse_assignments
    from autoseg.training.settings import resolve_settings as resolve_settings
    from autoseg.training.starting import pretrain as pretrain
    from autoseg.training.starting import train as train
    from autoseg.training.trainer import Trainer as Trainer


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'autoseg.training' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
