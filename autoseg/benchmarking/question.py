"""What is asked: which methods, on which data, with how much of what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from autoseg.benchmarking.budget import Budget
from autoseg.errors import UserError
from autoseg.planning.resources import check_memory

Recipe = Literal["own", "published", "common"]
RECIPES: tuple[Recipe, ...] = ("own", "published", "common")
BOTH = ("own", "common")  # what `both` stands for
DATA_SIDE = ("augmentation", "mirror", "foreground_fraction", "batch_size", "accumulate")  # the same for every method

MOST_SEEDS = 1000  # every seed is a training of every network on every fold


@dataclass(frozen=True)
class Question:
    """The lists may grow from call to call of one campaign; the rest makes the campaign what it is."""

    datasets: tuple[str, ...]
    architectures: tuple[str, ...]
    budget: Budget
    trainers: tuple[str, ...] = ()  # none: supervised, and in own recipes the trainer that a network's authors need
    recipes: str | Sequence[str] = "both"  # one or more of RECIPES, or "both"
    folds: str = "0"
    seeds: int = 3
    configuration: str | None = None  # None: 3d_fullres, or 2d for 2D images
    planner: str = "auto"
    plans: str | None = None  # existing plans that all networks are trained by; None: one plan per network
    gpu_memory: float | None = None  # GiB to plan for
    plan_for: float | None = None  # seconds of training to plan for; None: the budget, where that is a time
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the trainer, for all runs alike
    device: str = "auto"
    network_options: Mapping[str, Any] = field(default_factory=dict)  # NETWORK.NAME, or NAME: of all that have it

    def __post_init__(self) -> None:
        if not self.datasets:
            raise UserError("there is no data set to compare on", mend="name one or more: autoseg benchmark DATASET")
        if not self.architectures:
            raise UserError(
                "there is nothing to compare", mend="name networks: --architectures plain_unet primus, or all"
            )
        for recipe in self._recipes_named():
            if recipe not in (*RECIPES, "both"):
                raise UserError(f"--recipes {recipe!r} is unknown", mend=f"use some of: {', '.join(RECIPES)}, both")
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise UserError(
                f"--seeds {self.seeds} is no number of runs within 1 and {MOST_SEEDS}",
                mend="use --seeds 3 to see the noise",
            )
        if self.gpu_memory is not None:
            check_memory(self.gpu_memory)
        if "steps" in self.settings:
            raise UserError("--set steps is what the budget decides", mend="use --budget")
        if self.network_options and self.plans is not None:
            raise UserError(
                "options of networks are part of a plan, and --plans names one that is there", where="--network-option",
                mend="leave --plans out, or make plans with them: autoseg plan-and-preprocess --network-option",
            )  # fmt: skip

    @property
    def kinds(self) -> tuple[Recipe, ...]:
        """Return the kinds of recipes asked for, each once."""
        named = self._recipes_named()
        return tuple(kind for kind in RECIPES if kind in named or ("both" in named and kind in BOTH))

    def _recipes_named(self) -> tuple[str, ...]:
        return (self.recipes,) if isinstance(self.recipes, str) else tuple(self.recipes)

    def fixed(self) -> dict[str, Any]:
        """Return what two calls must share to be one campaign, as values for JSON."""
        return {
            "equal": self.budget.equal,
            "budget": self.budget.amount,
            "configuration": self.configuration,
            "planner": self.planner,
            "plans": self.plans,
            "gpu_memory": self.gpu_memory,
            "plan_for": self.plan_for,
            "settings": {name: str(value) for name, value in sorted(self.settings.items())},
            "device": self.device.partition(":")[0],
        }

    def seconds_to_plan_for(self) -> float | None:
        """Return the training seconds of one run that its plan is made for, None without a limit."""
        if self.plan_for is not None or self.budget.equal != "time":
            return self.plan_for
        return self.budget.amount
