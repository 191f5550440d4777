"""How time and memory grow: with the cases in preprocessing, with the classes in export and in whole predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sides.figures import MIB, line_through
from sides.measuring import CommandFailed
from sides.place import Job, Place
from sides.stages import export_jobs, preprocess_work

CASES = (25, 50, 100, 200)
CLASSES = (8, 26, 104)
BAR = 50  # characters of the longest bar
UNITS = (("s", "seconds", 1.0), ("MiB", "tree_bytes", MIB), ("MiB risen", "rise_bytes", MIB))


def run(place: Place, data: Sequence[str] | None) -> dict[str, Any]:
    """Measure both sides once per size after a warm-up of each; prints bars, returns the figures."""
    found: dict[str, Any] = {}
    if not data or "cases" in data:
        works = {
            count: preprocess_work(place, "hippocampus", cases=count) for count in (CASES[:2] if place.quick else CASES)
        }
        pairs = {count: (work.ours, work.theirs) for count, work in works.items()}
        found["cases"] = _grow("preprocess hippocampus, cases", pairs)
    if not data or "classes" in data:
        size, counts = (60, (4, 12)) if place.quick else (200, CLASSES)
        pairs = {count: export_jobs(place.at(f"classes_{count}"), size=size, classes=count)[0] for count in counts}
        found["classes"] = _grow(f"export to {size}^3, classes", pairs)
    if not data or "prediction" in data:
        size, counts = (60, (4, 12)) if place.quick else (200, CLASSES)
        pairs = {
            count: export_jobs(place.at(f"classes_{count}"), size=size, classes=count, do="segment")[0]
            for count in counts
        }
        found["prediction"] = _grow(f"sliding window and export to {size}^3, classes", pairs)
    return found


def _grow(title: str, pairs: dict[int, tuple[Job, Job]]) -> dict[str, Any]:
    for job in pairs[min(pairs)]:
        _sample(job)
    result: dict[str, Any] = {}
    rows = {side: {count: _sample(pair[index]) for count, pair in pairs.items()} for index, side in
            enumerate(("autoseg", "nnunet"))}  # fmt: skip
    for side, samples in rows.items():
        print(f"{title}: {side}")
        known = {count: sample for count, sample in samples.items() if sample is not None}
        for unit, column, scale in UNITS:
            most = max((sample[column] for sample in known.values()), default=1) or 1
            for count, sample in samples.items():
                if sample is None:
                    print(f"  {count:6} failed")
                    continue
                print(f"  {count:6} {sample[column] / scale:10.1f} {unit:11}{'#' * round(BAR * sample[column] / most)}")
        result[side] = {"samples": samples}
        if len(known) > 1:
            for column in ("seconds", "cpu_seconds", "tree_bytes"):
                result[side][column] = line_through([(count, sample[column]) for count, sample in known.items()])
            time, memory = result[side]["seconds"], result[side]["tree_bytes"]
            print(
                f"  time ~ n^{time['exponent']:.2f}: {time['intercept']:.2f} s + {time['slope']:.4f} s each (R^2 of a "
                f"line {time['r_squared']:.3f}); memory ~ n^{memory['exponent']:.2f}: "
                f"{memory['slope'] / MIB:.2f} MiB each"
            )
    return result


def _sample(job: Job) -> dict[str, float] | None:
    try:
        usage, answer = job.run()
    except CommandFailed as error:
        print(f"  failed: {error}")
        return None
    own = answer.get("resident_before", 0)  # the logits themselves are there before, and grow with the classes
    return {
        "seconds": answer.get("seconds", usage.seconds), "cpu_seconds": answer.get("cpu_seconds", usage.cpu_seconds),
        "tree_bytes": usage.tree_bytes, "rise_bytes": max(0.0, usage.tree_bytes - own),
    }  # fmt: skip
