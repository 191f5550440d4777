"""autoseg and nnunetv2 2.8.1 side by side: wall time, processor time and peak memory of every stage, and the ratios.

    python benchmarks/compare.py --nnunet-python PATH [--stage NAME ...] [--data NAME ...] [--json FILE]
        [--pairs 3] [--threads N] [--work FOLDER] [--seeds 0 1 2] [--minutes 20] [--quick]

Stages: evaluate, start, batches, step, predict, preprocess, export; and scaling, equal_time. Every run is a fresh
process: a warm-up of each side, then A B A B ... on the same data with the same number of cores (this process and its
children are bound to so many). A ratio is printed when both sides came to the same result; where they do not do the
same work, the line below says so. Memory is that of all processes of a side together, sampled, what they share counted
once; "largest" is the peak of its largest process. nnunetv2 has a Python of its own: --nnunet-python, or
AUTOSEG_TEST_NNUNET_PYTHON.
`--quick` takes less data, to see that everything runs; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from sides import equal_time, figures, measuring, scaling, stages, versions
from sides.place import Job, Place, Work

ROOT = Path(__file__).resolve().parents[1]


def measure(work: Work, pairs: int) -> dict[str, Any]:
    """Warm up, run both sides alternately, compare what they made; returns the summary."""
    jobs = {name: job for name, job in (("autoseg", work.ours), ("nnunet", work.theirs)) if job is not None}
    samples: dict[str, list[figures.Sample]] = {"autoseg": [], "nnunet": []}
    answers: dict[str, dict[str, Any]] = {}
    failures: dict[str, str] = {}
    for job in work.warm or jobs.values():
        _attempt(job, failures, "warm-up")
    failures.clear()  # what fails in the warm-up fails again below, where it is told
    for _ in range(pairs):
        for name, job in jobs.items():
            if name not in failures and (done := _attempt(job, failures, name)) is not None:
                sample, answers[name] = done
                samples[name].append(sample)
    summary = figures.summarize(samples["autoseg"], samples["nnunet"], work.target)
    if failures:
        summary["failures"] = failures
        summary["check"] = {"agree": False, "reason": "not both sides ended"}
    elif work.check is None:
        summary["check"] = {"agree": None}
    else:
        summary["check"] = work.check(answers["autoseg"], answers["nnunet"])
    return summary | {"unit": work.unit, "differs": work.differs, "answers": answers}


def _attempt(job: Job, failures: dict[str, str], name: str) -> tuple[figures.Sample, dict[str, Any]] | None:
    try:
        usage, answer = job.run()
    except measuring.CommandFailed as error:
        failures[name] = str(error)
        return None
    seconds, cpu = answer.get("seconds", usage.seconds), answer.get("cpu_seconds", usage.cpu_seconds)
    return figures.Sample(seconds, cpu, usage.tree_bytes, usage.largest_bytes), answer


def tell(work: Work, summary: dict[str, Any]) -> None:
    """Print the line of a piece of work, and what must be known of it."""
    check = summary["check"]
    if check["agree"] is False:
        summary["ratios"] = dict.fromkeys(summary["ratios"])
        summary["time_verdict"] = summary["memory_verdict"] = "not comparable"
    print(figures.table_row(work.stage, work.data, summary))
    parts = {key: value for key, value in check.items() if key != "agree"}
    told = {True: "agree", False: "DO NOT AGREE", None: "no other side"}[check["agree"]]
    print(f"    per {work.unit}; {told} {json.dumps(parts)}")
    for name, text in summary.get("failures", {}).items():
        print(f"    {name} failed: {text}")
    if work.differs:
        print(f"    {work.differs}")
    sys.stdout.flush()


def machine(threads: int) -> dict[str, Any]:
    """Return what the figures depend on."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "date": datetime.date.today().isoformat(), "processor": model, "threads": threads,
        "memory_gib": round(memory / 2**20, 1), "system": platform.system(), "python": platform.python_version(),
        "load_before": os.getloadavg() if hasattr(os, "getloadavg") else None, "seed": 1,
        "allocator": "autoseg has glibc keep freed memory, without caches of small blocks, as its commands do",
    }  # fmt: skip


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []


def main() -> None:
    """Measure what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--stage", nargs="+", choices=[*stages.STAGES, "scaling", "equal_time"], default=[*stages.STAGES]
    )
    parser.add_argument(
        "--data", nargs="+", help="only these, such as hippocampus or ct; of equal_time: auto, nnunet, same_plan"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--nnunet-python", default=os.environ.get("AUTOSEG_TEST_NNUNET_PYTHON"))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, help="cores that both sides get; default: all")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder with data/ and models/")
    parser.add_argument("--work", type=Path, help="keep what is prepared in this folder; default: a temporary one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of equal_time")
    parser.add_argument("--minutes", type=float, default=20.0, help="of equal_time, for each side and seed")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.pairs < 1:
        parser.error("--pairs must be at least 1")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the child under way is ended, too
    cores = sorted(os.sched_getaffinity(0))
    threads = min(options.threads or len(cores), len(cores))
    os.sched_setaffinity(0, cores[:threads])
    failed = False
    with tempfile.TemporaryDirectory(prefix="compare_") as temporary:
        work = (options.work or Path(temporary)).resolve()
        place = Place(work, options.shared.resolve(), sys.executable, options.nnunet_python, threads, options.quick)
        check_names(parser, options, place)
        report: dict[str, Any] = {
            "machine": machine(threads), "versions": versions.of(sys.executable, options.nnunet_python),
            "pairs": options.pairs, "quick": options.quick, "rows": [],
        }  # fmt: skip
        print(json.dumps(report["machine"]))
        print(json.dumps(report["versions"]))
        print(figures.HEADER, flush=True)
        for stage in options.stage:
            if stage == "scaling":
                report["scaling"] = scaling.run(place, options.data)
                continue
            if stage == "equal_time":
                report["equal_time"] = equal_time.run(place, options.data, options.seeds, options.minutes)
                continue
            for data, make in stages.STAGES[stage](place):
                if options.data and data not in options.data:
                    continue
                one = make()
                summary = measure(one, options.pairs)
                tell(one, summary)
                failed |= summary["check"]["agree"] is False
                report["rows"].append({"stage": stage, "data": one.data, **summary})
                if options.json:
                    options.json.write_text(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    sys.exit(1 if failed else 0)


def check_names(parser: argparse.ArgumentParser, options: argparse.Namespace, place: Place) -> None:
    """End with the names that there are where one of `--data` is not among those of the stages."""
    if {"scaling", "equal_time"} & set(options.stage):  # which have names of their own
        return
    names = list(dict.fromkeys(data for stage in options.stage for data, _ in stages.STAGES[stage](place)))
    if unknown := [data for data in options.data or () if data not in names]:
        parser.error(f"--data {', '.join(map(repr, unknown))}: these stages have {', '.join(map(repr, names))}")


if __name__ == "__main__":
    main()
