"""The contract of a planner: valid, repeatable plans for every kind of data, with networks that can be built."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from autoseg.conformance.findings import Finding, attempt, require
from autoseg.fingerprinting import Fingerprint
from autoseg.labels import labels_from_description
from autoseg.planning import Planner, Resources
from autoseg.plans import ChannelIntensities, Configuration, Plans
from autoseg.plugins import Found, build_network

LABELS = labels_from_description({"labels": {"background": 0, "a": 1, "b": 2}})
# name -> (spacing in mm, shape of every case, channels), axes (z, y, x)
DATA = {
    "anisotropic MRI, two channels": ((10.0, 1.5625, 1.5625), (10, 256, 216), ("T1", "T2")),
    "large CT": ((2.0, 0.8, 0.8), (200, 512, 512), ("CT",)),
    "2D colour": ((999.0, 1.0, 1.0), (1, 512, 384), ("R", "G", "B")),
}
CASES = 20


def check(found: Found, planner: type[Planner]) -> Iterator[Finding]:
    """Yield one finding per check and kind of data."""
    plugin = f"planner {found.name}"
    yield attempt(plugin, "is a Planner", lambda: _is_planner(planner))
    for name, (spacing, shape, channels) in DATA.items():
        plans = cache(lambda spacing=spacing, shape=shape, channels=channels: _plan(planner, spacing, shape, channels))
        yield attempt(plugin, f"{name}: plans", lambda plans=plans, shape=shape: _configurations(plans(), shape))
        yield attempt(plugin, f"{name}: JSON", lambda plans=plans: _round_trip(plans()))
        yield attempt(plugin, f"{name}: networks", lambda plans=plans: _networks(plans()))
    again = DATA["2D colour"]  # the kind that is planned fastest
    yield attempt(plugin, "plans the same twice", lambda: _same_twice(planner, *again))


def stock_fingerprint(
    spacing: tuple[float, ...], shape: tuple[int, ...], channels: tuple[str, ...]
) -> tuple[Fingerprint, Any]:
    """Return the fingerprint of a made-up data set of equal cases, and what planners read of the data set."""
    one = ChannelIntensities(mean=0, median=0, std=1, min=-3, max=3, percentile_00_5=-2.5, percentile_99_5=2.5)
    fingerprint = Fingerprint(
        dataset_name="Dataset001_Stock",
        num_cases=CASES,
        cases=tuple(f"case_{index:02d}" for index in range(CASES)),
        channel_names=channels,
        spacings=(spacing,) * CASES,
        shapes_after_crop=(shape,) * CASES,
        median_relative_size=1.0,
        intensities=(one,) * len(channels),
        num_labels=LABELS.num_outputs,
        class_frequencies=(),
        input_hash="stock",
    )
    dataset = SimpleNamespace(
        name=fingerprint.dataset_name,
        folder=Path(),
        channel_names=channels,
        labels=LABELS,
        cases=fingerprint.cases,
        description={},
    )
    return fingerprint, dataset


def _plan(planner: type[Planner], *data: Any) -> Plans:
    fingerprint, dataset = stock_fingerprint(*data)
    return planner(name="checked").plan(fingerprint, Resources("cuda", 8.0, memory_given=True), dataset)


def _is_planner(planner: type[Planner]) -> None:
    require(isinstance(planner, type) and issubclass(planner, Planner), "it must derive Planner")


def _configurations(plans: Plans, shape: tuple[int, ...]) -> None:
    require(isinstance(plans, Plans), f"plan must return Plans, got {type(plans).__name__}")
    require(plans.configurations, "there must be at least one configuration")
    forward, backward = plans.transpose_forward, plans.transpose_backward
    require(sorted(forward) == [0, 1, 2], f"transpose_forward must order three axes, got {forward}")
    require(tuple(forward[axis] for axis in backward) == (0, 1, 2), "transpose_backward must undo transpose_forward")
    if shape[0] == 1:
        threes = [name for name, configuration in plans.configurations.items() if configuration.dims == 3]
        require(not threes, f"2D images cannot have 3D configurations: {threes}")
    for name, configuration in plans.configurations.items():
        require(configuration.name == name, f"{name}: configuration.name is {configuration.name!r}")
        require(min(configuration.spacing) > 0, f"{name}: spacing must be positive, got {configuration.spacing}")
        require(configuration.training.steps > 0, f"{name}: steps must be positive")
        _fits(configuration, plans)


def _fits(configuration: Configuration, plans: Plans) -> None:
    name, network = configuration.name, configuration.network
    channels = len(plans.channel_names)
    if configuration.previous_stage is not None:
        known = configuration.previous_stage in plans.configurations
        require(known, f"{name}: previous_stage {configuration.previous_stage!r} is not planned")
        channels += len(LABELS.foreground_values)
    require(
        network.in_channels == channels, f"{name}: the network needs {channels} channels, has {network.in_channels}"
    )
    require(network.num_outputs == LABELS.num_outputs, f"{name}: the network needs {LABELS.num_outputs} outputs")
    rests = [edge % step for edge, step in zip(configuration.patch_size, network.total_stride, strict=True)]
    require(not any(rests), f"{name}: patch {configuration.patch_size} is no multiple of {network.total_stride}")
    lengths = {len(configuration.normalization), len(configuration.use_mask), len(plans.channel_names)}
    require(len(lengths) == 1, f"{name}: normalization and use_mask need one entry per channel")


def _round_trip(plans: Plans) -> None:
    require(Plans.model_validate_json(plans.model_dump_json()) == plans, "plans read back from JSON must be equal")


def _networks(plans: Plans) -> None:
    for configuration in plans.configurations.values():
        with torch.device("meta"):  # shapes only: no memory, no arithmetic
            build_network(configuration.architecture, configuration.network)


def _same_twice(planner: type[Planner], *data: Any) -> None:
    require(_plan(planner, *data) == _plan(planner, *data), "the same data must give the same plans")
