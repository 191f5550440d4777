"""Atomic artefacts and content hashes: nothing half-written is ever read, nothing finished is done twice."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autoseg.errors import UserError


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` that replaces it, after fsync, when the block ends well.

    The temporary name keeps the suffixes of `target`, since image writers choose their format by them.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".writing-", suffix="-" + target.name, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    temporary.unlink()
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(target: Path, content: bytes) -> None:
    """Write `content` to `target` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def write_text(target: Path, content: str) -> None:
    """Write `content` to `target` atomically as UTF-8."""
    write_bytes(target, content.encode("utf-8"))


def write_json(target: Path, content: Any) -> None:
    """Write `content` to `target` atomically as indented JSON."""
    write_text(target, json.dumps(content, indent=1, ensure_ascii=False, default=_plain) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or broken file is a UserError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("the file does not exist", where=path, mend="correct the path, or make the file anew") from None
    except OSError as error:
        raise UserError(f"the file cannot be read ({error.strerror})", where=path) from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"not valid JSON ({error})", where=path, mend="correct the file or make it anew") from None


def content_hash(*contents: Any) -> str:
    """Return a hex digest of JSON-like contents; equal contents give equal digests in every process."""
    text = json.dumps(contents, sort_keys=True, ensure_ascii=False, default=_plain)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 hex digest of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_stamp(path: Path) -> list[Any]:
    """Return name, size and modification time (ns) of a file: the cheap identity of an input."""
    state = path.stat()
    return [path.name, state.st_size, state.st_mtime_ns]


def _plain(value: Any) -> Any:
    """Turn numpy scalars, arrays, tuples, sets and paths into what JSON knows."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
