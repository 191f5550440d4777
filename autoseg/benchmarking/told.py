"""What plans and runs of a campaign warned of, such as a network that stands in for what it was not given."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from autoseg.benchmarking.record import Record

log = logging.getLogger(__name__)


def warnings_of(record: Record, run: Mapping[str, Any]) -> list[str]:
    """Return what a run, and the plan of its network, warned of; each sentence once."""
    architecture = record["entries"].get(run["entry"], {}).get("architecture")
    plan = record["plans"].get(f"{run['dataset']}/{architecture}", {})
    return list(dict.fromkeys([*plan.get("warnings", ()), *run.get("warnings", ())]))


def warnings_on(record: Record, dataset: str) -> list[str]:
    """Return what was warned of on a data set, as sentences that name the methods."""
    methods: dict[str, dict[str, None]] = {}
    for run in record["runs"].values():
        if run.get("dataset") == dataset:
            for said in warnings_of(record, run):
                methods.setdefault(said, {})[record["entries"][run["entry"]]["name"]] = None
    return [f"{', '.join(names)}: {said}" for said, names in methods.items()]


def tell_new(record: Record, run: Mapping[str, Any], said: Sequence[str]) -> None:
    """Log what a run warned of that neither its plan nor another run of its method did before."""
    same = [one for one in record["runs"].values() if "entry" in one and _method(one) == _method(run)]
    known = {each for one in same for each in warnings_of(record, one)}
    for each in dict.fromkeys(said):
        if each not in known:
            log.warning("%s: %s", record["entries"][run["entry"]]["name"], each)


def _method(run: Mapping[str, Any]) -> tuple[str, str]:
    return run["dataset"], run["entry"]
