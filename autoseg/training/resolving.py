"""The settings of what `train` is asked for: of the plan, or of the length that a time budget leaves for a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from autoseg import plugins
from autoseg.plans import Configuration
from autoseg.training.identity import makes_room
from autoseg.training.log import RUN_FILE, read_run
from autoseg.training.probe import time_step
from autoseg.training.recipe import length_of, planned_for, published, recipe_for, suited
from autoseg.training.settings import LENGTH, Setting, read_recipe, resolve_settings
from autoseg.training.trainer import Trainer

STEPS_SHARE = 0.8  # of a fold's time, where steps are counted to choose a recipe
logger = logging.getLogger("autoseg.training")


class AskedSettings:
    """The settings of every run of one call; those by timed steps are resolved once."""

    def __init__(
        self,
        trainer: type[Trainer],
        configuration: Configuration,
        given: Mapping[str, Any],
        recipe: Path | None,
        *,
        root: Path,
        device: torch.device,
    ):
        self.trainer, self.configuration, self.given, self.recipe = trainer, configuration, given, recipe
        self.network, self.device = plugins.load("architecture", configuration.architecture, root), device
        self.untimed = self._resolve()
        self._timed: dict[str, Setting] | None = None

    @property
    def batch_size(self) -> int:
        """Return the batch size that was asked for, else the plan's."""
        return self.untimed["batch_size"].value or self.configuration.batch_size

    def of_run(self, seconds: float | None, folder: Path | None = None) -> dict[str, Setting]:
        """Return the settings of a run of `seconds`; what that in `folder` has stays: no timing is twice the same."""
        if seconds is None or planned_for(seconds, self.configuration.training.time_budget):
            return self.untimed
        kept = read_run(folder) if folder is not None and (folder / RUN_FILE).is_file() else None
        if folder is not None and kept is not None and not makes_room(folder, kept):
            named = kept.get("settings", {})
            return self._resolve({name: entry["value"] for name, entry in named.items() if entry["origin"] == LENGTH})
        if self._timed is None:
            self._timed = self._resolve(self._fitting(seconds))
        return self._timed

    def _resolve(self, length: Mapping[str, Any] | None = None) -> dict[str, Setting]:
        plan = self.configuration.training.model_dump(exclude={"time_budget"})
        own = suited(self.network.recipe, {**plan, **(length or {})})
        sources = {"recipe": read_recipe(self.recipe), "given": self.given, "base": Trainer, "architecture": own}
        resolved = resolve_settings(self.trainer, plan=plan, length=length, **sources)
        if resolved["own_recipe"].value == "published":
            sources["architecture"] = published(self.network.published_recipe())
            resolved = resolve_settings(self.trainer, plan=plan, length=length, **sources)
        steps, planned = resolved["steps"].value, self.configuration.training.steps
        if length is None and length_of(steps) < length_of(planned):
            # The plan is for a full run; what the user cut short needs the recipe of short runs.
            return self._resolve(recipe_for(steps))
        return resolved

    def _fitting(self, seconds: float) -> dict[str, Any]:
        """Return the recipe for the steps that fit into `seconds`, by a few timed ones; {} where the plan's suits."""
        step = time_step(self.network, self.configuration.network, self.batch_size, device=self.device.type)
        steps = int(STEPS_SHARE * seconds / step.seconds / self.untimed["accumulate"].value)
        if length_of(steps) == length_of(self.configuration.training.steps):
            return {}
        logger.info("%d steps fit into %.0f s per fold: the recipe for so many replaces the plan's", steps, seconds)
        return recipe_for(max(1, steps))
