"""A small store in memory with the interface of autoseg.store."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from autoseg.labels import Labels


@dataclass
class MemoryCase:
    data: np.ndarray  # (C, Z, Y, X)
    labels: np.ndarray  # (Z, Y, X)
    locations: dict[int, np.ndarray] = field(default_factory=dict)
    annotated: tuple[int, ...] | None = None
    stages: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def shape(self):
        return self.labels.shape

    def image(self, slices=None):
        return self.data[(slice(None), *slices)].astype(np.float32)

    def label(self, slices=None):
        return self.labels[slices].astype(np.int16)

    def previous_stage(self, slices=None, *, name):
        return self.stages[name][slices].astype(np.int16)


class MemoryStore:
    def __init__(self, cases: dict[str, MemoryCase]):
        self._cases = cases
        self.cases = tuple(sorted(cases))

    def read(self, case: str) -> MemoryCase:
        return self._cases[case]


def make_case(shape=(30, 40, 36), channels=1, seed=0, classes=2, annotated=None, border=3) -> MemoryCase:
    """Smooth random intensities, one box per class, -1 in a border; locations of all classes."""
    random = np.random.default_rng(seed)
    data = random.normal(size=(channels, *shape)).astype(np.float32)
    labels = np.zeros(shape, dtype=np.int16)
    for value in range(1, classes + 1):
        corner = [int(random.integers(0, max(1, size - size // 3))) for size in shape]
        labels[tuple(slice(c, c + max(1, size // 3)) for c, size in zip(corner, shape, strict=True))] = value
    inner = tuple(slice(min(border, size // 4), size - min(border, size // 4)) for size in shape)
    mask = np.ones(shape, dtype=bool)
    mask[inner] = False
    labels[mask & (labels == 0)] = -1
    locations = {value: np.argwhere(labels == value).astype(np.int32) for value in range(1, classes + 1)}
    return MemoryCase(data, labels, locations, annotated)


@pytest.fixture
def labels() -> Labels:
    return Labels(values={"first": (1,), "second": (2,)})


@pytest.fixture
def memory_store() -> MemoryStore:
    return MemoryStore({f"case_{i}": make_case(seed=i, shape=(30 + i, 40, 36)) for i in range(4)})


@pytest.fixture
def build_case():
    return make_case


@pytest.fixture
def build_store():
    return MemoryStore
