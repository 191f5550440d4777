"""Whether a model is used with the software that it was made with."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

import autoseg

log = logging.getLogger(__name__)


def tell_other_versions(made_with: Mapping[str, str]) -> None:
    """Say once per model which versions differ from those it was made with, as far as they bear on predictions.

    Builds of the same version for another device (`+cpu`, `+cu126`) are no other version.
    """
    here = {"autoseg": autoseg.__version__, "torch": torch.__version__}
    other = [
        f"{name} {made_with[name]}, here it is {version}"
        for name, version in here.items()
        if name in made_with and made_with[name].partition("+")[0] != version.partition("+")[0]
    ]
    if other:
        log.info("the model was made with %s; predictions may differ in the last digits", "; with ".join(other))
