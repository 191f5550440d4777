"""What every method gets equally much of: optimiser steps, seconds of training, or floating point operations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from autoseg.errors import UserError

Equal = Literal["steps", "time", "flops"]
EQUALS: tuple[Equal, ...] = ("steps", "time", "flops")
UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
SPAN = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")
DEFAULTS: dict[Equal, str] = {"steps": "1000", "time": "10m", "flops": "1e15"}


@dataclass(frozen=True)
class Budget:
    """So many steps, seconds (of training alone), or operations for every run."""

    equal: Equal
    amount: float

    @classmethod
    def parse(cls, equal: str, text: str | float | None) -> Budget:
        """Return the budget that `text` means: `500`, `60s`, `2e15`; None is the default of its kind."""
        if equal not in EQUALS:
            raise UserError(f"--equal {equal!r} is unknown", mend=f"use one of: {', '.join(EQUALS)}")
        text = DEFAULTS[equal] if text is None else str(text).strip().lower()
        amount = _seconds(text) if equal == "time" else _number(text)
        if equal == "steps" and amount is not None:
            amount = float(int(amount)) or None
        if amount is None:
            example = {"steps": "500", "time": "60s or 1h30m", "flops": "2e15"}[equal]
            raise UserError(f"--budget {text!r} is no number of {equal}", mend=f"write it like {example}")
        return cls(equal, amount)

    def steps(self, costs: Mapping[str, Any] | None) -> int:
        """Return the steps of a run whose step costs are measured (`training.costs`); at least one."""
        if self.equal == "steps":
            return int(self.amount)
        assert costs is not None
        cost = costs["seconds"] if self.equal == "time" else costs["step_flops"]
        if not cost:
            raise UserError(
                "the operations of a step could not be counted",
                mend="compare at equal time or equal steps: --equal time",
            )
        return max(1, int(self.amount / cost))

    @property
    def seconds(self) -> float | None:
        """Return the seconds of training that end a run, None where steps do."""
        return self.amount if self.equal == "time" else None

    def __str__(self) -> str:
        if self.equal == "steps":
            return f"{self.amount:.0f} steps"
        return f"{self.amount:g} s of training" if self.equal == "time" else f"{self.amount:.4g} operations"


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None


def _seconds(text: str) -> float | None:
    match = SPAN.fullmatch(text.replace(" ", ""))
    if match is None:
        return None
    total = sum(float(part) * UNITS[unit] for part, unit in zip(match.groups(), UNITS, strict=True) if part)
    return total or None
