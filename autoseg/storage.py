"""Atomic artefacts and content hashes: nothing half-written is ever read, nothing finished is done twice."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from autoseg.errors import UserError
from autoseg.regular_files import refuse_irregular

SEAL = "autoseg_checksum"  # first field of the JSON files that stages leave for each other
SEAL_KIND = "autoseg-sha256:"
LEFTOVERS = (
    ".writing-",
    ".replaced-",
)  # what the names of unfinished files, and of folders on their way out, begin with
LEFTOVER_SECONDS = 3600.0
LONGEST_NAME = 80  # letters of a foreign name that a message repeats
_SPACE = "free some space, then repeat the command: what is finished is kept"
_PLACE = "choose another place, or ask for the right to use this one"
_NAME = "a file and a folder cannot have one name: choose another name, or rename what is there"
WRITE_MENDS = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EROFS: _PLACE,
    errno.EACCES: _PLACE,
    errno.EPERM: _PLACE,
    errno.EISDIR: _NAME,
    errno.ENOTDIR: _NAME,
    errno.EEXIST: _NAME,
}

log = logging.getLogger(__name__)


def temporary_folder() -> Path | None:
    """Return the folder of temporary files, None where there is none: a container may have no place to write."""
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        return None


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` that replaces it, after fsync, when the block ends well.

    The temporary name keeps the suffixes of `target`, since image writers choose their format by them.
    """
    with _told(target):
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


@contextmanager
def _told(target: Path) -> Iterator[None]:
    """Make a UserError that names `target` of a full disk and of a place where nothing may be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in WRITE_MENDS:
            raise
        mend = WRITE_MENDS[error.errno]
        raise UserError(f"the file cannot be written ({error.strerror})", where=target, mend=mend) from error


def remove_leftovers(*folders: Path) -> None:
    """Delete what killed processes were writing into folders: hidden files and folders untouched for an hour."""
    for path in (path for folder in folders for prefix in LEFTOVERS for path in folder.glob(f"{prefix}*")):
        with suppress(FileNotFoundError):  # somebody else was quicker
            if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def write_bytes(target: Path, content: bytes) -> None:
    """Write `content` to `target` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def write_text(target: Path, content: str) -> None:
    """Write `content` to `target` atomically as UTF-8."""
    write_bytes(target, content.encode("utf-8"))


def write_json(target: Path, content: Any, *, sealed: bool = False) -> None:
    """Write `content` to `target` atomically as indented JSON; `sealed` adds a checksum that `read_json` looks at."""
    if sealed:
        plain = json.loads(json.dumps(content, default=_plain))
        content = {SEAL: SEAL_KIND + content_hash(plain), **plain}
    write_text(target, json.dumps(content, indent=1, ensure_ascii=False, default=_plain) + "\n")


def read_json(path: Path, *, editable: bool = False) -> Any:
    """Read a JSON file; one that is missing, broken, or other than its checksum says is a UserError that names it.

    So is one with a name that stands twice in one object, of which others would take the last, and one with text that
    cannot be written again (half a surrogate pair).
    Files that people may well change are `editable`: a checksum that does not match is then only a warning. The
    checksum is of the values, whatever the layout, and is no part of what is returned.
    """
    refuse_irregular(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, object_pairs_hook=_object)
        if "\\u" in text:  # nothing else can hold halves of characters
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        sound = not isinstance(content, dict) or _unseal(content)
    except FileNotFoundError:
        raise UserError("the file does not exist", where=path, mend="correct the path, or make the file anew") from None
    except OSError as error:
        raise UserError(f"the file cannot be read ({error.strerror})", where=path) from None
    except _Twice as error:
        mend = "keep one of the two"
        raise UserError(f"the name {error} stands twice in one object", where=path, mend=mend) from None
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.end].encode("ascii", "backslashreplace").decode("ascii")
        raise UserError(f"the text {half} is half a character", where=path, mend="write the character out") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"not valid JSON ({error})", where=path, mend="correct the file or make it anew") from None
    if not sound:
        error = UserError(
            "the content does not match its checksum",
            where=path,
            mend=f"if you changed it on purpose, delete its line {SEAL!r}; if not, make the file anew",
        )
        if not editable:
            raise error
        log.warning("%s", error)
    return content


class _Twice(Exception):
    """A name stands twice in one JSON object."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        name = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise _Twice(repr(name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."))
    return content


def _unseal(content: dict[str, Any]) -> bool:
    """Take the checksum off `content`, and tell whether it is right; it is if there is none.

    It is known by its name or by its value: one flipped bit does not hide both.
    """
    seals = {k: v for k, v in content.items() if k == SEAL or (isinstance(v, str) and v.startswith(SEAL_KIND))}
    for name in seals:
        del content[name]
    return not seals or seals == {SEAL: SEAL_KIND + content_hash(content)}


def content_hash(*contents: Any) -> str:
    """Return a hex digest of JSON-like contents; equal contents give equal digests in every process."""
    text = json.dumps(contents, sort_keys=True, ensure_ascii=False, default=_plain)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 hex digest of a file, read in blocks."""
    refuse_irregular(path)
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
