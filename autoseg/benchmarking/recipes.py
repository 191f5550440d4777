"""The recipes of a method: its authors' own, suited to the length of the run or as published, and the common one.

What concerns the data (augmentation, mirroring, batch) is the same in all of them and for every method: it is decided
once per data set, by the number of steps that the median method gets. A recipe says all of it, so that nothing depends
on what a plan proposes; precision alone stays the network's, which may not run in another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from autoseg.benchmarking.question import DATA_SIDE

PRECISION = "precision"


def own_settings(architecture: Any, trainer: Any, base: Any) -> set[str]:
    """Return the names of optimiser settings that the network's authors or the trainer itself chose."""
    from autoseg.training.recipe import FULL

    chosen = {name for name in architecture.recipe if name not in (*DATA_SIDE, PRECISION)}
    chosen |= {name for name in {*FULL, "momentum", "gradient_clip"} if redefined(name, trainer, base)}
    return chosen - set(DATA_SIDE)


def redefined(name: str, trainer: Any, base: Any) -> bool:
    """Return whether a trainer names a setting anew, which then belongs to the method."""
    return any(name in vars(kind) for kind in trainer.__mro__ if kind is not base and issubclass(kind, base))


def recipe_of(
    kind: str, steps: int, shared: Mapping[str, Any], architecture: Any, trainer: Any, base: Any
) -> dict[str, Any]:
    """Return the settings of the recipe file of one entry.

    `shared` is the common recipe of the data set; the warm-up follows the steps of the entry. The `base` class's values
    stand where only the network's authors say something. "own": theirs, suited to the length of the run, as in `train`;
    "published": theirs as in a full run, nnU-Net's where they name nothing.
    """
    from autoseg.training.recipe import published, suited

    recipe = dict(shared)
    if shared.get("warmup_steps"):
        recipe["warmup_steps"] = max(1, min(100, steps // 20))
    if kind == "common":
        theirs = [name for name in architecture.recipe if name not in (*recipe, *DATA_SIDE, PRECISION)]
        return recipe | {name: getattr(base, name) for name in theirs}
    as_asked = kind == "published"
    own = published(architecture.published_recipe()) if as_asked else suited(architecture.recipe, shared)
    recipe |= {name: value for name, value in own.items() if name not in DATA_SIDE}
    return {name: value for name, value in recipe.items() if name in DATA_SIDE or not redefined(name, trainer, base)}


def as_toml(recipe: Mapping[str, Any]) -> str:
    """Return a recipe file."""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in sorted(recipe.items()))
