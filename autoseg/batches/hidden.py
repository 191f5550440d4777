"""A store whose label maps are out of sight, so that nothing that reads it can train on a label."""

from __future__ import annotations

from typing import Any

import numpy as np


class HiddenLabels:
    """Stands for a store: same images, every case without classes, locations and annotation.

    What is left of a label map is the box of the image: 0 inside, -1 outside of the non-zero region.
    """

    def __init__(self, store: Any):
        self.store = store

    def read(self, case: str) -> HiddenCase:
        """Return a case without its label."""
        return HiddenCase(self.store.read(case))


class HiddenCase:
    """Stands for a stored case; see `HiddenLabels`."""

    labelled = False
    annotated = None

    def __init__(self, case: Any):
        self._case = case
        self.locations: dict[int, np.ndarray] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._case, name)

    def label(self, slices: Any = None) -> np.ndarray:
        """Return 0 inside and -1 outside of the non-zero region, int16."""
        return np.minimum(self._case.label(slices), 0)
