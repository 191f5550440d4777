"""Component tables: what every connected component of a label map overlaps with, so that rules need no image again.

An *atom* is a connected component (26 neighbours in 3D, 8 in 2D) of one internal value. Every rule here keeps or
removes whole atoms, because the value sets it looks at are nested or disjoint: a component of a set is made of whole
atoms, and removing components of a larger set never cuts one of a smaller set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cc3d
import numpy as np

from autoseg.evaluation.overlap import counts_from_histogram, histogram_size
from autoseg.evaluation.surface import union_box
from autoseg.labels import Labels

ValueSet = tuple[int, ...]


@dataclass(frozen=True)
class ComponentTable:
    """The components of one predicted label map against its reference."""

    values: np.ndarray  # (A,) internal value of every atom
    overlaps: np.ndarray  # (A, R) voxels of the atom per reference value
    reference: np.ndarray  # (R,) voxels per reference value
    membership: np.ndarray  # (G, A) component of value set g that the atom belongs to, 0: none

    @property
    def sizes(self) -> np.ndarray:
        """Return the voxels of every atom."""
        return self.overlaps.sum(axis=1)

    def all_kept(self) -> np.ndarray:
        """Return the selection (A,) that keeps every atom."""
        return np.ones(len(self.values), dtype=bool)

    def keep_largest(self, group: int, kept: np.ndarray) -> np.ndarray:
        """Return `kept` without the atoms of value set `group` outside of its largest component (ties: all stay)."""
        components = self.membership[group]
        present = kept & (components > 0)
        if not present.any():
            return kept
        sizes = np.bincount(components[present], weights=self.sizes[present])
        largest = np.flatnonzero(sizes == sizes.max())
        return kept & (~present | np.isin(components, largest))

    def dice(self, kept: np.ndarray, labels: Labels) -> dict[str, float | None]:
        """Return the Dice of every name if only the `kept` atoms stay."""
        histogram = np.zeros((len(self.reference), len(self.reference)), dtype=np.int64)
        np.add.at(histogram, self.values[kept], self.overlaps[kept])
        histogram[0] = self.reference - histogram.sum(axis=0)
        return {name: counts.dice for name, counts in counts_from_histogram(histogram, labels).items()}


def value_sets(labels: Labels) -> list[ValueSet]:
    """Return the value sets that rules look at: all foreground first, then names, larger sets before smaller ones.

    A set that partly overlaps a set before it is left out: removing components of one could cut those of the other.
    """
    foreground = tuple(range(1, len(labels.foreground_values) + 1))
    chosen = [foreground]
    for members in sorted((tuple(sorted(members)) for members in labels.members), key=len, reverse=True):
        nested = all(set(members) <= set(other) or not set(members) & set(other) for other in chosen)
        if members and nested and members not in chosen:
            chosen.append(members)
    return chosen


def component_table(
    prediction: np.ndarray, reference: np.ndarray, *, labels: Labels, groups: Sequence[ValueSet]
) -> ComponentTable:
    """Return the component table of one case; prediction, reference: internal values (Z, Y, X)."""
    size = histogram_size(labels)
    totals = np.bincount(np.maximum(reference, 0).reshape(-1), minlength=size)
    if not (prediction > 0).any():
        nothing = np.zeros(0, dtype=np.int64)
        return ComponentTable(nothing, np.zeros((0, size), np.int64), totals, np.zeros((len(groups), 0), np.int64))
    box = union_box(prediction > 0)
    predicted, referenced = np.maximum(prediction[box], 0), np.maximum(reference[box], 0)
    atoms, count = cc3d.connected_components(
        np.ascontiguousarray(predicted.astype(np.uint16)), connectivity=26, return_N=True
    )
    flat = atoms.reshape(-1).astype(np.intp)
    joint = np.bincount(flat * size + referenced.reshape(-1), minlength=(count + 1) * size).reshape(count + 1, size)
    values = np.zeros(count + 1, dtype=np.int64)
    values[flat] = predicted.reshape(-1)
    membership = np.zeros((len(groups), count + 1), dtype=np.int64)
    for row, members in enumerate(groups):
        if len(members) == 1:
            membership[row] = np.where(values == members[0], np.arange(count + 1), 0)
        else:
            components = cc3d.connected_components(np.isin(predicted, members), connectivity=26)
            membership[row, flat] = components.reshape(-1)
    return ComponentTable(values[1:], joint[1:], totals, membership[:, 1:])
