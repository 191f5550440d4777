"""From measurements to medians, ratios and the table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

MIB = 2**20
COLUMNS = ("seconds", "cpu_seconds", "tree_bytes", "largest_bytes")


@dataclass(frozen=True)
class Sample:
    """One measurement of one side. Times are of a unit of work: a command, a batch, a step."""

    seconds: float
    cpu_seconds: float
    tree_bytes: float
    largest_bytes: float


@dataclass(frozen=True)
class Target:
    """The highest ratios autoseg / nnU-Net that count as reached; None: nothing is asked."""

    time: float | None = None
    memory: float | None = None


def medians(samples: Sequence[Sample]) -> Sample:
    """Return the median of each column. Raises ValueError without samples."""
    if not samples:
        raise ValueError("nothing was measured")
    return Sample(**{name: statistics.median(getattr(each, name) for each in samples) for name in COLUMNS})


def ratio(ours: float, theirs: float) -> float | None:
    """Return ours / theirs; None where theirs is nothing."""
    return ours / theirs if theirs > 0 else None


def verdict(found: float | None, wanted: float | None) -> str:
    """Tell whether a ratio is reached."""
    if wanted is None:
        return "no target"
    if found is None:
        return "not measured"
    return "reached" if found <= wanted else "missed"


def spread(samples: Sequence[Sample]) -> float:
    """Return (largest - smallest) / median of the seconds: how quiet the machine was."""
    seconds = [sample.seconds for sample in samples]
    return (max(seconds) - min(seconds)) / statistics.median(seconds)


def summarize(ours: Sequence[Sample], theirs: Sequence[Sample], target: Target) -> dict[str, Any]:
    """Return medians, ratios and verdicts of a piece of work; either side may be empty."""
    result: dict[str, Any] = {"target": asdict(target), "pairs": min(len(ours), len(theirs))}
    for name, samples in (("autoseg", ours), ("nnunet", theirs)):
        if samples:
            result[name] = {**asdict(medians(samples)), "spread": spread(samples)}
            result[f"{name}_samples"] = [asdict(sample) for sample in samples]
    a, b = result.get("autoseg"), result.get("nnunet")
    ratios = {name: ratio(a[name], b[name]) if a and b else None for name in COLUMNS}
    result["ratios"] = ratios
    result["time_verdict"] = verdict(ratios["seconds"], target.time)
    result["memory_verdict"] = verdict(ratios["tree_bytes"], target.memory)
    return result


HEADER = (
    f"{'stage':12}{'data':18}{'wall s':>18}{'cpu s':>18}{'peak MiB':>16}{'largest MiB':>16}"
    f"{'time':>8}{'cpu':>7}{'memory':>8}  targets"
)


def table_row(stage: str, data: str, summary: Mapping[str, Any]) -> str:
    """Return a line of the table: autoseg / nnU-Net, then the ratios, then the targets."""
    cells = [f"{stage:12}{data:18}"]
    widths = {"seconds": (18, 1.0), "cpu_seconds": (18, 1.0), "tree_bytes": (16, MIB), "largest_bytes": (16, MIB)}
    for name, (width, unit) in widths.items():
        sides = [summary.get(side) for side in ("autoseg", "nnunet")]
        texts = ["-" if side is None else _number(side[name] / unit) for side in sides]
        cells.append(f"{' / '.join(texts):>{width}}")
    for name, width in (("seconds", 8), ("cpu_seconds", 7), ("tree_bytes", 8)):
        found = summary["ratios"][name]
        cells.append(f"{'-' if found is None else f'{found:.2f}':>{width}}")
    target = summary["target"]
    asked = [
        f"{name} <= {target[name]:g}: {summary[f'{name}_verdict']}"
        for name in ("time", "memory")
        if target[name] is not None
    ]
    return "".join(cells) + "  " + ("; ".join(asked) or "none")


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def line_through(points: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Return slope, intercept, R^2 of the least-squares line, and the exponent of the power law through the ends."""
    import math

    fit = statistics.linear_regression(*zip(*points, strict=True))
    middle = statistics.fmean(y for _, y in points)
    total = sum((y - middle) ** 2 for _, y in points)
    rest = sum((y - fit.slope * x - fit.intercept) ** 2 for x, y in points)
    (x0, y0), (x1, y1) = min(points), max(points)
    return {
        "slope": fit.slope,
        "intercept": fit.intercept,
        "r_squared": 1.0 if total == 0 else 1 - rest / total,
        "exponent": math.log(y1 / y0) / math.log(x1 / x0),
    }
