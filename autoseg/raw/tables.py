"""What may stand beside the images: cases.csv, attributes.csv, domains.csv and texts.json."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from autoseg.errors import UserError
from autoseg.raw.dataset import Case
from autoseg.raw.problems import Problem, short
from autoseg.regular_files import irregular, refuse_irregular
from autoseg.storage import read_json

TABLES = ("cases.csv", "attributes.csv", "domains.csv")
NAME_COLUMNS = ("case", "id", "name")
GROUP_COLUMNS = ("patient", "subject", "group")  # the first that a table has
SPLITS = {"train": "train", "tr": "train", "training": "train", "val": "val", "validation": "val"}
SPLITS |= {"test": "test", "ts": "test", "unlabelled": "unlabelled", "unlabeled": "unlabelled", "un": "unlabelled"}


@dataclass
class Extra:
    """What the tables know of one case."""

    group: str | None = None
    split: str | None = None
    annotated: tuple[str, ...] | None = None
    text: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)

    def add_to(self, case: Case) -> Case:
        """Return the case with what the tables know; what the case has itself stays."""
        return replace(
            case,
            group=case.group or self.group,
            split=case.split or self.split,
            annotated=self.annotated if case.annotated is None else case.annotated,
            text=case.text or self.text,
            attributes=self.attributes | case.attributes,
        )


def read_rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and fields of a table with a heading line, comma- or (.tsv) tab-separated, UTF-8."""
    refuse_irregular(file)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the table cannot be read ({error})", where=file, mend="write it as UTF-8 text") from None
    try:
        yield from _rows(file, text)
    except csv.Error as error:
        mend = "look for a quotation mark that is not closed"
        raise UserError(f"the table cannot be read ({error})", where=file, mend=mend) from None


def _rows(file: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(text.splitlines(), delimiter="\t" if file.suffix == ".tsv" else ",")
    columns = [(name or "").strip() for name in reader.fieldnames or ()]
    if len(set(columns)) != len(columns):
        raise UserError("two columns have the same heading", where=file, mend="rename one of them")
    reader.fieldnames = columns
    for row in reader:
        if None in row:
            raise UserError(
                f"line {reader.line_num} has more fields than the heading",
                where=file,
                mend="put quotation marks around texts with commas",
            )
        yield reader.line_num, {name: (value or "").strip() for name, value in row.items()}


def read_extras(folder: Path, problems: list[Problem]) -> dict[str, Extra]:
    """Read all tables and texts beside a data set; cases that they do not name have no entry.

    Noted in `problems` is, once per table, a `split` that means nothing: its case stays where its folder puts it.
    """
    extras: dict[str, Extra] = {}
    for name in TABLES:
        if (folder / name).is_file() or irregular(folder / name):
            rows = list(read_rows(folder / name))
            problems += _unknown_splits(folder / name, rows)
            for _, row in rows:
                _take_row(extras, row)
    if (folder / "texts.json").is_file() or irregular(folder / "texts.json"):
        _take_texts(extras, folder / "texts.json")
    return extras


def _unknown_splits(file: Path, rows: list[tuple[int, dict[str, str]]]) -> list[Problem]:
    unknown = [(line, row["split"]) for line, row in rows if row.get("split") and row["split"].lower() not in SPLITS]
    if not unknown:
        return []
    line, split = unknown[0]
    message = f"{len(unknown)} split(s) are not one of train, val, test, unlabelled, and are not used"
    where = {"field": f"split of line {line}", "value": short(repr(split)), "severity": "warning"}
    return [Problem(message, str(file), mend="write one of them, or give the column another name", **where)]


def _take_row(extras: dict[str, Extra], row: dict[str, str]) -> None:
    """Add one row: group, split, annotated and text have a place of their own, the rest are attributes."""
    column = next((name for name in NAME_COLUMNS if row.get(name)), None)
    if column is None:
        return
    extra = extras.setdefault(row[column], Extra())
    group = next((name for name in GROUP_COLUMNS if row.get(name)), None)
    if group and extra.group is None:
        extra.group = row[group]
    extra.split = extra.split or SPLITS.get(row.get("split", "").lower())
    if row.get("annotated"):
        extra.annotated = tuple(name.strip() for name in row["annotated"].split(";") if name.strip())
    extra.text = extra.text or row.get("text") or None
    own = {column, "split", "annotated", "text"}
    extra.attributes |= {name: value for name, value in row.items() if name and value and name not in own}


def _take_texts(extras: dict[str, Extra], file: Path) -> None:
    texts = read_json(file)
    if not isinstance(texts, dict):
        raise UserError("the file must map cases to texts", where=file, mend='write {"case": "text", ...}')
    for case, entry in texts.items():
        extra = extras.setdefault(case, Extra())
        if isinstance(entry, dict):  # a prompt and further texts
            prompt = entry.get("prompt")
            extra.text = extra.text or (None if prompt is None else str(prompt))
            extra.attributes |= {name: value for name, value in entry.items() if name != "prompt"}
        else:
            extra.text = extra.text or str(entry)
