"""The campaign's record, `benchmark.json`: what was asked, planned, measured and run; every change is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import autoseg
from autoseg.errors import UserError
from autoseg.storage import read_json, write_json

RECORD_FILE = "benchmark.json"
RUNS = "runs"  # folder of the runs
RECIPES = "recipes"  # folder of the recipe files, by data set
RUN_KEYS = ("entry", "fold", "seed")
FINISHED_KEYS = ("folder", "steps", "parameters", "train_seconds", "inference_seconds", "means")
SECTIONS = ("datasets", "entries", "plans", "costs", "runs", "skipped")


class Record:
    """A dict of sections in a file."""

    def __init__(self, folder: Path, content: dict[str, Any]):
        self.folder, self.content = folder, content

    @classmethod
    def open(cls, folder: Path, name: str, fixed: Mapping[str, Any], *, threads: int) -> Record:
        """Return the record in `folder`, new if there is none; one of another question is a UserError."""
        file = folder / RECORD_FILE
        if not file.is_file():
            content = {"format": 1, "name": name, "autoseg": autoseg.__version__, "threads": threads,
                       "question": dict(fixed), **{section: {} for section in SECTIONS}}  # fmt: skip
            return cls(folder, content)
        content = read_json(file)
        if (fault := _fault(content)) is not None:
            raise UserError(
                f"not the record of a benchmark: {fault}", where=file, mend="choose another --name or --output"
            )
        kept = content["question"]
        for key, value in fixed.items():
            if kept.get(key) != value:
                raise UserError(
                    f"this campaign has {key.replace('_', ' ')} {kept.get(key)!r}, not {value!r}",
                    where=file,
                    mend="choose another --name or --output for another question",
                )
        return cls(folder, content)

    def __getitem__(self, section: str) -> Any:
        return self.content[section]

    def clear(self, *, threads: int) -> None:
        """Forget all that was done; what is done from now on has so many threads."""
        self.content["threads"] = threads
        for section in SECTIONS:
            self.content[section] = {}

    def put(self, section: str, key: str, value: Mapping[str, Any]) -> None:
        """Set one entry of a section and write the file."""
        self.content[section][key] = dict(value)
        self.write()

    def write(self) -> None:
        """Write the file."""
        write_json(self.folder / RECORD_FILE, self.content)


def _fault(content: Any) -> str | None:
    """Return what a file lacks that a campaign's record has, None for a sound one."""
    if not isinstance(content, Mapping) or content.get("format") != 1:
        return "it has another format"
    for section in ("question", *SECTIONS):
        if not isinstance(content.get(section), Mapping):
            return f"{section} is not there, or no mapping"
    sound = all(isinstance(content.get(name), kind) for name, kind in (("name", str), ("threads", int)))
    if not sound or content["threads"] < 1:
        return "name or threads are not there"
    for section in ("datasets", "entries", "plans", "costs", "runs"):
        for key, entry in content[section].items():
            if not isinstance(entry, Mapping):
                return f"{section}.{key} is no mapping"
    for key, run in content["runs"].items():
        missing = [] if "dataset" not in run else [name for name in RUN_KEYS if name not in run]
        missing += [name for name in FINISHED_KEYS if run.get("status") == "finished" and name not in run]
        if missing:
            return f"runs.{key} has no {missing[0]}"
    return None
