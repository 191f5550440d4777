"""What is wrong with a data set: one record per problem, all of them in one table."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from autoseg.errors import UserError

LONGEST_VALUE = 80  # letters of a foreign value that a message repeats


LONGEST_PATH = 400


def short(text: str | Path, most: int = LONGEST_VALUE) -> str:
    """Return a foreign text for a message: its middle is left out if it is long."""
    text = str(text)
    half = most // 2 - 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


def is_there(path: Path, *, folder: bool = False) -> bool:
    """Tell whether a path of a foreign description leads to a file, or with `folder` to a folder.

    One that is too long, or holds what no path may, does not.
    """
    try:
        return path.is_dir() if folder else path.is_file()
    except (OSError, ValueError):
        return False


def printable(text: str) -> str:
    """Return a text that can be written as UTF-8: names of files may hold bytes that are no characters."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True)
class Problem:
    """One problem of one file or field, with the mend."""

    message: str
    file: str = ""
    case: str = ""
    field: str = ""
    value: str = ""
    mend: str = ""
    severity: Literal["error", "warning"] = "error"

    def as_error(self) -> UserError:
        """Return the problem as an exception."""
        what = self.message if not self.field else f"field {self.field}: {self.message}"
        return UserError(what, where=self.file or None, mend=self.mend or None)

    @classmethod
    def of_error(cls, error: UserError, **details: str) -> Problem:
        """Return the problem that a UserError tells."""
        return cls(**({"message": error.what, "file": error.where or "", "mend": error.mend or ""} | details))


@dataclass(frozen=True)
class CheckReport:
    """Every problem that was found, and what was looked at."""

    dataset: str
    num_cases: int
    num_files: int
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> tuple[Problem, ...]:
        """Problems that keep the data set from being used."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """Problems that one should know of."""
        return tuple(problem for problem in self.problems if problem.severity == "warning")

    @property
    def ok(self) -> bool:
        """True without errors; warnings are allowed."""
        return not self.errors

    @property
    def summary(self) -> str:
        """One line: what was looked at and what was found."""
        found = f"{len(self.errors)} error(s), {len(self.warnings)} warning(s)"
        return f"{self.dataset}: {self.num_cases} case(s), {self.num_files} file(s) read: {found}"

    def table(self, width: int = 120) -> str:
        """Return the problems as a table: severity, case, file and field, problem, mend; errors first."""
        rows = [("", "case", "file, field", "problem", "mend")]
        folder = _common_folder([problem.file for problem in self.problems])
        for problem in self.errors + self.warnings:
            file = str(Path(problem.file).relative_to(folder)) if folder and problem.file else problem.file
            place = ", ".join(part for part in (file, problem.field) if part)
            rows.append((problem.severity, problem.case, place, problem.message, problem.mend))
        return printable("\n".join([*_layout(rows, width), self.summary]) if len(rows) > 1 else self.summary)

    def as_dict(self) -> dict[str, Any]:
        """Return the report in JSON types."""
        counts = {"dataset": self.dataset, "ok": self.ok, "cases": self.num_cases, "files": self.num_files}
        return counts | {"problems": [asdict(problem) for problem in self.problems]}


def _common_folder(files: list[str]) -> Path | None:
    """Return the data set folder above all files (two levels up from an image file), if there is one."""
    folders = [Path(file).parent for file in files if file]
    if not folders:
        return None
    common = folders[0]
    while not all(folder.is_relative_to(common) for folder in folders):
        if common == common.parent:
            return None
        common = common.parent
    return common.parent if common.name.startswith(("images", "labels")) else common


def _layout(rows: list[tuple[str, ...]], width: int) -> list[str]:
    """Align columns; the two text columns are wrapped into what the others leave of `width`."""
    fixed = [min(70, max(len(row[column]) for row in rows)) for column in range(3)]
    text = max(30, (width - sum(fixed) - 8) // 2)
    widths = [*fixed, text, text]
    lines = []
    for number, row in enumerate(rows):
        cells = [
            textwrap.wrap(cell, size, break_long_words=False, break_on_hyphens=False) or [""]
            for cell, size in zip(row, widths, strict=True)
        ]
        for line in range(max(map(len, cells))):
            parts = [cell[line] if line < len(cell) else "" for cell in cells]
            lines.append("  ".join(part.ljust(size) for part, size in zip(parts, widths, strict=True)).rstrip())
        if number == 0:
            lines.append("  ".join("-" * size for size in widths))
    return lines
