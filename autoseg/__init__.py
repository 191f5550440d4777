"""autoseg: a self-configuring engine for medical image segmentation.

The Python API is loaded on first use, so that `import autoseg` stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PLACES = {
    "UserError": "autoseg.errors",
    "AutosegError": "autoseg.errors",
    "register": "autoseg.plugins",
    "Architecture": "autoseg.architecture",
    "NetworkSpec": "autoseg.plans",
    "Plans": "autoseg.plans",
    "Workspace": "autoseg.workspace",
    "Labels": "autoseg.labels",
    "Planner": "autoseg.planning",
    "Trainer": "autoseg.training",
    "Predictor": "autoseg.inference",
    "check": "autoseg.raw",
    "open_dataset": "autoseg.raw",
    "fingerprint": "autoseg.fingerprinting:fingerprint",
    "plan": "autoseg.planning:plan",
    "preprocess": "autoseg.preprocessing:preprocess",
    "train": "autoseg.training:train",
    "find_best": "autoseg.selection:find_best",
    "evaluate": "autoseg.evaluation:evaluate",
    "report": "autoseg.reporting:report",
}

__all__ = sorted(_PLACES)

if TYPE_CHECKING:
    from autoseg.architecture import Architecture as Architecture
    from autoseg.errors import AutosegError as AutosegError
    from autoseg.errors import UserError as UserError
    from autoseg.evaluation import evaluate as evaluate
    from autoseg.fingerprinting import fingerprint as fingerprint
    from autoseg.inference import Predictor as Predictor
    from autoseg.labels import Labels as Labels
    from autoseg.planning import Planner as Planner
    from autoseg.planning import plan as plan
    from autoseg.plans import NetworkSpec as NetworkSpec
    from autoseg.plans import Plans as Plans
    from autoseg.plugins import register as register
    from autoseg.preprocessing import preprocess as preprocess
    from autoseg.raw import check as check
    from autoseg.raw import open_dataset as open_dataset
    from autoseg.reporting import report as report
    from autoseg.selection import find_best as find_best
    from autoseg.training import Trainer as Trainer
    from autoseg.training import train as train
    from autoseg.workspace import Workspace as Workspace


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'autoseg' has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    value = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
