"""Random decisions from one keyed generator, drawn in blocks because single numpy draws are slow."""

from __future__ import annotations

import numpy as np

_BLOCK = 64


class Draws:
    """A stream of uniform numbers in [0, 1), turned into decisions; the order of calls is the meaning."""

    def __init__(self, generator: np.random.Generator):
        self._generator = generator
        self._numbers: list[float] = []

    def number(self) -> float:
        """Return the next number in [0, 1)."""
        if not self._numbers:
            self._numbers = self._generator.random(_BLOCK).tolist()
        return self._numbers.pop()

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self.number() < probability

    def uniform(self, low: float, high: float) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * self.number()

    def factor(self, low: float, high: float) -> float:
        """Return, with probability one half each, a factor uniform in (low, 1) or in (max(low, 1), high)."""
        return self.uniform(low, 1) if self.chance(0.5) else self.uniform(max(low, 1), high)

    def below(self, count: int) -> int:
        """Return an integer in 0..count-1."""
        return min(int(self.number() * count), count - 1)

    def key(self) -> int:
        """Return a signed 32-bit key for a counter-based field."""
        return int(self.number() * 2**32) - 2**31
