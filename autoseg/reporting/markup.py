"""Small pieces of HTML; every text that comes from outside goes through `text`."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DASH = "\N{EN DASH}"

SORT_SCRIPT = """
document.querySelectorAll("table.sortable").forEach(function (table) {
  table.querySelectorAll("th").forEach(function (head, column) {
    head.tabIndex = 0;
    function sort() {
      var up = head.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("th").forEach(function (other) { other.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      var body = table.tBodies[0];
      function key(row) { return row.cells[column].dataset.value; }
      Array.from(body.rows).sort(function (a, b) {
        var x = key(a), y = key(b);
        if (x === "" || y === "") { return (x === "") - (y === ""); }
        var order = isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
        return up ? order : -order;
      }).forEach(function (row) { body.appendChild(row); });
    }
    head.addEventListener("click", sort);
    head.addEventListener("keydown", function (event) { if (event.key === "Enter") { sort(); } });
  });
});
"""


@dataclass(frozen=True)
class Raw:
    """Markup that is complete and escaped; everything else is text."""

    markup: str


@dataclass(frozen=True)
class Cell:
    """A table cell: what is shown, what it is sorted by, and whether it stands on the left."""

    shown: str | Raw
    value: float | str | None = None
    left: bool = False


def text(value: Any) -> str:
    """Return a value as escaped text; `Raw` passes."""
    return value.markup if isinstance(value, Raw) else html.escape(str(value), quote=True)


def number(value: float | None, digits: int = 3) -> Cell:
    """Return a cell with a number, or a dash for None."""
    if value is None or not math.isfinite(value):
        return Cell(DASH, None)
    return Cell(f"{value:.{digits}f}", value)


def label(value: Any) -> Cell:
    """Return a left-aligned cell with a text."""
    return Cell(
        value if isinstance(value, Raw) else str(value), "" if isinstance(value, Raw) else str(value), left=True
    )


def table(
    head: Sequence[str], rows: Sequence[Sequence[Cell]], *, sortable: bool = False, chosen: int | None = None
) -> str:
    """Return a table in a box that scrolls sideways; columns are aligned as in the first row.

    `chosen` is the index of a row to stress.
    """
    left = [cell.left for cell in rows[0]] if rows else [True] * len(head)
    heads = "".join(f"<th{_kind(side)}>{text(name)}</th>" for name, side in zip(head, left, strict=True))
    body = "".join(
        f"<tr{' class=chosen' if index == chosen else ''}>{''.join(map(_cell, row))}</tr>"
        for index, row in enumerate(rows)
    )
    box = "scroll tall" if sortable and len(rows) > 12 else "scroll"
    kind = ' class="sortable"' if sortable else ""
    return f'<div class="{box}"><table{kind}><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def section(key: str, title: str, content: str) -> str:
    """Return a titled section with an anchor."""
    return f'<section id="{text(key)}"><h2>{text(title)}</h2>{content}</section>'


def missing(what: str) -> str:
    """Return a paragraph that says that something is not there (yet)."""
    return f'<p class="missing">{text(what)}</p>'


def note(what: str) -> str:
    """Return a paragraph of explanation."""
    return f'<p class="note">{text(what)}</p>'


def bullets(items: Sequence[str]) -> str:
    """Return a list of sentences."""
    return f"<ul>{''.join(f'<li>{text(item)}</li>' for item in items)}</ul>" if items else ""


def pairs(items: Sequence[tuple[str, Any]]) -> str:
    """Return a list of terms and values."""
    return f"<dl>{''.join(f'<dt>{text(term)}</dt><dd>{text(value)}</dd>' for term, value in items)}</dl>"


def folded(title: str, content: str) -> str:
    """Return content that opens on a click."""
    return f"<details><summary>{text(title)}</summary>{content}</details>"


def chip(word: str, kind: str) -> Raw:
    """Return a word in a coloured frame; kind is good, warn or bad."""
    return Raw(f'<span class="chip {kind}">{text(word)}</span>')


def figure(title: str, value: str, remark: str = "") -> str:
    """Return one headline figure."""
    kind = ' class="long"' if len(value) > 14 else ""
    remark = f"<span>{text(remark)}</span>" if remark else ""
    return f'<div class="figure"><span>{text(title)}</span><b{kind}>{text(value)}</b>{remark}</div>'


def duration(seconds: float | None) -> str:
    """Return a time span in words."""
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    if minutes < 60:
        return f"{minutes:.1f} min"
    return f"{int(minutes // 60)} h {int(minutes % 60)} min"


def interval_text(interval: Sequence[float] | None) -> str:
    """Return a 95 % interval in words, empty if there is none."""
    return f"95 % interval {interval[0]:.3f} to {interval[1]:.3f}" if interval else ""


def times(values: Sequence[float]) -> str:
    """Return sizes or spacings joined by a multiplication sign, without useless zeros."""
    return " \N{MULTIPLICATION SIGN} ".join(f"{value:.4g}" for value in values)


def _kind(left: bool) -> str:
    return ' class="text"' if left else ""


def _cell(cell: Cell) -> str:
    kind = "text" if cell.left else "none" if cell.value is None else ""
    if cell.left and isinstance(cell.shown, str) and len(cell.shown) > 48:
        kind = "text wrap"
    value = "" if cell.value is None else text(cell.value)
    return f'<td class="{kind}" data-value="{value}">{text(cell.shown)}</td>'
