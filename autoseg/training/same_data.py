"""Whether two networks see the same data and give the same outputs, whatever plans they come from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from autoseg.labels import Labels
from autoseg.plans import Configuration, Plans

TOLERANCE = 1e-3  # relative: so little in a spacing or an intensity is nothing to a network


@dataclass(frozen=True)
class Sight:
    """What a network sees, by its plans and configuration, and the labels that it gives."""

    plans: Plans
    configuration: Configuration
    labels: Labels | None  # None: not known


def difference(one: Sight, other: Sight) -> tuple[str, Any, Any] | None:
    """Return the first field in which they differ, with both values; None where one may stand in for the other."""
    return next((pair for pair in _pairs(one, other) if not _same(*pair[1:])), None)


def _pairs(one: Sight, other: Sight) -> Iterator[tuple[str, Any, Any]]:
    """Yield the fields with both values; each may take for granted that those before are equal."""
    ours, theirs = one.configuration, other.configuration
    for name in ("dims", "spacing"):
        yield name, getattr(ours, name), getattr(theirs, name)
    for name in ("transpose_forward", "channel_names"):
        yield name, getattr(one.plans, name), getattr(other.plans, name)
    yield "normalization", ours.normalization, theirs.normalization
    yield "use_mask", _masked(ours), _masked(theirs)
    for channel, scheme in enumerate(ours.normalization):
        if scheme == "ct":  # the others take their statistics from the image
            name = f"intensities.{channel} (mean, std, percentile_00_5, percentile_99_5)"
            yield name, _statistics(one.plans, channel), _statistics(other.plans, channel)
    yield "network.in_channels", ours.network.in_channels, theirs.network.in_channels
    if one.labels is not None and other.labels is not None:
        yield "regions", one.labels.regions, other.labels.regions
        pairs = zip_longest(one.labels.values.items(), other.labels.values.items())
        for position, (label, its_counterpart) in enumerate(pairs, 1):
            yield f"label {position}", _text(label), _text(its_counterpart)
    yield "network.num_outputs", ours.network.num_outputs, theirs.network.num_outputs


def _masked(configuration: Configuration) -> tuple[bool, ...]:
    """Return which channels are normalised inside of the image's content only; one scheme alone does that."""
    pairs = zip(configuration.normalization, configuration.use_mask, strict=True)
    return tuple(scheme == "zscore" and mask for scheme, mask in pairs)


def _statistics(plans: Plans, channel: int) -> tuple[float, ...]:
    known = plans.intensities[channel]
    return known.mean, known.std, known.percentile_00_5, known.percentile_99_5


def _text(label: tuple[str, tuple[int, ...]] | None) -> str:
    return "none" if label is None else f"{label[0]} = {', '.join(map(str, label[1]))}"


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=TOLERANCE)
    return bool(one == other)
