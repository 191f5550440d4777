"""The width of a student: the plan's network with a share of its channels that the architecture can be built with.

Heads and groups must divide the channels of many networks, so that not every share serves them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from autoseg import NetworkSpec, UserError
from autoseg.network_room import TRACINGS

FARTHEST = 2  # times wider or narrower than asked for
TRIES = 100  # networks, each traced in some 0.03 s
BUILDING = partial(torch.random.fork_rng, devices=[])  # in full, for those that cannot be traced, as MONAI's


@dataclass(frozen=True)
class Student:
    """A spec whose features are `width` times those of the plan; `reason`: why the asked width does not serve."""

    spec: NetworkSpec
    width: float
    reason: str | None = None


def student_of(kind: Any, planned: NetworkSpec, width: float, name: str) -> Student:
    """Return the network of the Architecture `kind`, called `name`, at the share nearest to `width` that can be built.

    Raises UserError where no share near `width` can be built, or where it changes nothing.
    """
    way = way_to_build(kind, planned)
    whole = weights(kind, planned, way)  # what keeps the planned network from being built is not the width
    found = _nearest(kind, planned, width, name, way)
    if weights(kind, found.spec, way) == whole:
        raise UserError(
            f"width={width} changes nothing in {name}, whose size its own options set",
            mend="choose a smaller student by --architecture, or by plan-and-preprocess --network-option",
        )
    return found


def scaled(planned: NetworkSpec, width: float) -> NetworkSpec:
    """Return the spec with a share of its features, at least one."""
    return planned.model_copy(update={"features": tuple(max(1, round(f * width)) for f in planned.features)})


def way_to_build(kind: Any, planned: NetworkSpec) -> Any:
    """Return the first way of tracing in which the planned network can be built, or that of building it in full."""
    return next((way for way in TRACINGS if fault(kind, planned, way) is None), BUILDING)


def weights(kind: Any, spec: NetworkSpec, way: Any) -> int:
    """Return the number of weights of `kind(spec)`, built in a way of `way_to_build`."""
    with way():
        network = kind(spec)
    return sum(math.prod(parameter.shape) for parameter in network.parameters())


def fault(kind: Any, spec: NetworkSpec, way: Any) -> Exception | None:
    """Return what keeps `kind(spec)` from being built; None where nothing does."""
    try:
        weights(kind, spec, way)
    except Exception as error:  # whatever a network raises that is not made for such widths, or not for tracing
        return error
    return None


def _nearest(kind: Any, planned: NetworkSpec, width: float, name: str, way: Any) -> Student:
    spec = scaled(planned, width)
    error = fault(kind, spec, way)
    if error is None:
        return Student(spec, width)
    reason = error.what if isinstance(error, UserError) else str(error)
    tried = {spec.features}
    for share in shares(planned.features, width):
        spec = scaled(planned, share)
        if len(tried) <= TRIES and spec.features not in tried:
            tried.add(spec.features)
            if fault(kind, spec, way) is None:
                return Student(spec, share, reason)
    raise UserError(
        f"width={width} makes features of {scaled(planned, width).features}, and {name} can be built neither with them "
        f"nor with such of about that width: {reason}",
        mend="give a --set width nearer to 1, or choose a smaller student by --architecture or by plan-and-preprocess "
        "--network-option",
    )


def shares(features: tuple[int, ...], width: float) -> Iterator[float]:
    """Yield the shares that make some stage whole, the nearest to `width` first; of two as near the narrower one."""
    wholes = {count / each for each in features for count in range(1, int(FARTHEST * width * each) + 1)}
    near = (share for share in wholes if width <= FARTHEST * share)
    yield from sorted(near, key=lambda share: (abs(share - width), share))
