"""The sections on what went in: the data and the plans."""

from __future__ import annotations

import math
import statistics
from typing import Any

from autoseg.plans import Configuration, Plans
from autoseg.reporting.charts import bar
from autoseg.reporting.markup import (
    Cell,
    Raw,
    bullets,
    duration,
    label,
    missing,
    note,
    pairs,
    section,
    table,
    text,
    times,
)
from autoseg.reporting.material import Material


def data_section(material: Material) -> str:
    """Return the section on the data set: what the fingerprint found."""
    fingerprint = material.fingerprint
    if fingerprint is None:
        return section("data", "Data", missing("There is no fingerprint yet: autoseg plan-and-preprocess makes it."))
    parts = [pairs(_facts(material, fingerprint)), _classes(fingerprint), _intensities(fingerprint)]
    return section("data", "Data", "".join(parts))


def plans_section(material: Material) -> str:
    """Return the section on the plans, in words and as tables."""
    if not material.plans:
        return section("plans", "Plan", missing("There is no plan yet: autoseg plan-and-preprocess makes it."))
    return section("plans", "Plan", "".join(_plans(plans) for plans in material.plans))


def _facts(material: Material, fingerprint: dict[str, Any]) -> list[tuple[str, Any]]:
    shapes, spacings = fingerprint.get("shapes_after_crop", []), fingerprint.get("spacings", [])
    facts: list[tuple[str, Any]] = [
        ("training cases", fingerprint.get("num_cases", len(shapes))),
        ("channels", ", ".join(fingerprint.get("channel_names", []))),
    ]
    if shapes:
        facts.append(("median size (z, y, x)", f"{times(_medians(shapes))} voxels"))
        facts.append(("smallest and largest size", f"{times(_ends(shapes, min))} and {times(_ends(shapes, max))}"))
    if spacings and spacings[0][0] < 999:
        facts.append(("median spacing (z, y, x)", f"{times(_medians(spacings))} mm"))
    elif spacings:
        facts.append(("kind", "two-dimensional images"))
    relative = fingerprint.get("median_relative_size")
    if relative is not None:
        facts.append(("left after cropping to non-zero", f"{100 * relative:.0f} % of the voxels"))
    if fingerprint.get("failed"):
        facts.append(("unreadable cases", ", ".join(fingerprint["failed"])))
    if material.dataset is not None and material.dataset.test:
        facts.append(("test cases", len(material.dataset.test)))
    if material.dataset is not None and material.dataset.unlabelled:
        facts.append(("unlabelled cases", len(material.dataset.unlabelled)))
    return facts


def _classes(fingerprint: dict[str, Any]) -> str:
    frequencies = fingerprint.get("class_frequencies", [])
    total = sum(math.prod(shape) for shape in fingerprint.get("shapes_after_crop", []))
    if not total:
        return ""
    foreground = [entry for entry in frequencies if entry["name"] != "background"]
    largest = max((entry["voxels"] for entry in foreground), default=0) or 1
    rows = [
        [
            label(entry["name"]),
            Cell(str(entry["cases"]), entry["cases"]),
            Cell(f"{entry['voxels']:,}", entry["voxels"]),
            Cell(
                Raw(f"{100 * entry['voxels'] / total:.3g} %{bar(entry['voxels'] / largest).markup}"),
                entry["voxels"] / total,
            ),
        ]
        for entry in foreground
    ]
    return f"<h3>Labels</h3>{table(['label', 'cases that have it', 'voxels', 'share of all voxels'], rows)}"


def _intensities(fingerprint: dict[str, Any]) -> str:
    channels = list(zip(fingerprint.get("channel_names", []), fingerprint.get("intensities", []), strict=False))
    if not channels:
        return ""
    fields = ("mean", "std", "percentile_00_5", "median", "percentile_99_5", "min", "max")
    rows = [[label(name), *(_significant(values[field]) for field in fields)] for name, values in channels]
    head = ["channel", "mean", "standard deviation", "0.5 %", "median", "99.5 %", "smallest", "largest"]
    return f"<h3>Intensities of the foreground</h3>{table(head, rows)}"


def _plans(plans: Plans) -> str:
    title = f"<h3>{text(plans.plans_name)}, made by the planner {text(plans.planner)}</h3>"
    configurations = list(plans.configurations.values())
    rows = [
        [label(name), *(Cell(value(configuration), "", left=True) for configuration in configurations)]
        for name, value in _ROWS
    ]
    head = ["", *(configuration.name for configuration in configurations)]
    made_for = ", ".join(_resources(plans.resources))
    return title + bullets(plans.notes) + table(head, rows) + (note(f"Made for {made_for}.") if made_for else "")


def _resources(resources: dict[str, Any]) -> list[str]:
    """Return what the plan was made for, in words."""
    phrases = {
        "device": lambda value: f"device {value}",
        "memory_gib": lambda value: f"{value:.3g} GiB of memory",
        "time_budget": lambda value: f"a training time of {duration(value)}",
        "workers": lambda value: f"{value} workers",
    }
    return [say(resources[key]) for key, say in phrases.items() if resources.get(key) is not None]


def _network(c: Configuration) -> str:
    features = c.network.features
    return f"{c.architecture}, {len(features)} stages, {features[0]} to {max(features)} features"


def _recipe(c: Configuration) -> str:
    training = c.training
    budget = "" if training.time_budget is None else f", {duration(training.time_budget)} for each fold"
    return f"{training.optimizer.upper()}, learning rate {training.learning_rate:g}, {training.steps:,} steps{budget}"


_ROWS = (
    ("spacing", lambda c: f"{times(c.spacing)} mm" if max(c.spacing) < 999 else times(c.spacing)),
    ("median size", lambda c: f"{times(c.median_shape)} voxels"),
    ("patch", lambda c: times(c.patch_size)),
    ("batch", lambda c: f"{c.batch_size}{', Dice over the batch' if c.batch_dice else ''}"),
    (
        "normalisation",
        lambda c: ", ".join(dict.fromkeys(c.normalization)) + (", within the mask" if any(c.use_mask) else ""),
    ),
    ("network", _network),
    ("recipe of the plan", _recipe),
    ("previous stage", lambda c: c.previous_stage or "none"),
)


def _significant(value: float) -> Cell:
    return Cell(f"{value:.5g}", value)


def _medians(rows: list[Any]) -> list[float]:
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def _ends(rows: list[Any], choose: Any) -> list[float]:
    return [choose(column) for column in zip(*rows, strict=True)]
