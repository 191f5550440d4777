"""What a plan says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoseg.planning import rules
from autoseg.plans import Configuration
from autoseg.training.recipe import suited


def in_words(configuration: Configuration, own: Mapping[str, Any]) -> str:
    """Return one configuration as a sentence; `own` is the recipe of its architecture, which wins over the plan's."""
    spec, planned = configuration.network, configuration.training.model_dump()
    recipe = {**planned, **suited(own, planned)}
    sentence = (
        f"{configuration.name}: {configuration.architecture} with {len(spec.features)} stages of "
        f"{', '.join(map(str, spec.features))} channels, patches of {rules.in_words(spec.patch_size)} voxels at "
        f"{rules.in_words(configuration.spacing)} mm, batches of {configuration.batch_size}; "
        f"{recipe['steps']} steps of {recipe['optimizer']} at learning rate {recipe['learning_rate']:g}"
    )
    if configuration.training.time_budget is not None:
        sentence += f", at most {configuration.training.time_budget:.0f} s per fold"
    return sentence + "."
