"""The run's record: run.json for what it is, log.jsonl for what happened."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoseg.errors import UserError
from autoseg.storage import file_hash, read_json, write_json, write_text
from autoseg.training.repeating import mend_by_training

LOG_FILE = "log.jsonl"
RUN_FILE = "run.json"
WEIGHTS_DIGEST = "weights_sha256"  # field of run.json
logger = logging.getLogger("autoseg.training")


class RunLog:
    """Appends events to log.jsonl; only the first process writes."""

    def __init__(self, folder: Path, *, writes: bool = True):
        self.path = folder / LOG_FILE
        self.writes = writes

    def event(self, kind: str, **values: Any) -> None:
        """Append one line; a reader never sees a torn line followed by others, since each ends with a newline."""
        if not self.writes:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": kind, **values}, ensure_ascii=False) + "\n")

    def note(self, text: str) -> None:
        """Log a sentence for the user, on screen and in the file."""
        if self.writes:
            logger.info(text)
        self.event("note", text=text)

    def cut_after(self, step: int) -> None:
        """Drop what a run at `step` does again, which is later steps and the end; and damaged lines."""
        if not self.writes or not self.path.exists():
            return
        kept = [line for line in read_events(self.path) if line.get("step", 0) <= step and line["event"] != "end"]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
        write_text(self.path, text)


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the events of a log.jsonl; lines that are damaged, such as one torn by a crash, are left out."""
    events = []
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            event = json.loads(line.decode("utf-8"))
            if isinstance(event, dict) and isinstance(event.get("event"), str) and _is_step(event.get("step", 0)):
                events.append(event)
    return events


def _is_step(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def write_run(folder: Path, **fields: Any) -> None:
    """Update fields of run.json."""
    path = folder / RUN_FILE
    current = read_json(path) if path.exists() else {"format": 1}
    write_json(path, {**current, **fields}, sealed=True)


def is_trained(record: Mapping[str, Any]) -> bool:
    """Return whether run.json tells of a run that ended, and had made a step before."""
    return record.get("status") == "finished" and record.get("steps_done") != 0


def is_untrained(folder: Path) -> bool:
    """Return whether a run in `folder` passes for finished without a single step: its time was over at the start."""
    if not (folder / RUN_FILE).is_file():
        return False
    record = read_run(folder)
    return record.get("status") == "finished" and not is_trained(record)


def read_run(folder: Path) -> dict[str, Any]:
    """Return run.json of a run folder; a UserError for a damaged one names the command that trains the run anew."""
    path = folder / RUN_FILE
    try:
        record = read_json(path)
        if not isinstance(record, dict):
            raise UserError("it does not hold the fields of a run", where=path)
    except UserError as error:
        raise UserError(error.what, where=error.where, mend=mend_by_training(folder, restart=True)) from None
    return record


def check_weights(path: Path, record: Mapping[str, Any], copy: Path | None = None) -> None:
    """Raise UserError if `path`, or a `copy` of it, holds other weights than the finished run of this run.json.

    Before its end a run may be killed between the writing of its weights and of its record; and earlier versions
    recorded nothing.
    """
    digest = record.get(WEIGHTS_DIGEST)
    if digest is not None and record.get("status") == "finished" and file_hash(copy or path) != digest:
        raise UserError(
            f"the weights do not match the {WEIGHTS_DIGEST} of {RUN_FILE}, so the file was damaged or changed",
            where=path,
            mend="repeat the train command of this run, which restores them from its checkpoint; use --restart only "
            "where it asks for that",
        )
