"""The frame of every page: style, header, navigation, footer; one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from importlib import resources

import autoseg
from autoseg.reporting.markup import SORT_SCRIPT, text


def shell(
    title: str,
    *,
    kind: str,
    subtitle: str,
    figures: str,
    navigation: Sequence[tuple[str, str]],
    sections: Sequence[str],
) -> str:
    """Return a whole page; `subtitle`, `figures` and `sections` are markup, `navigation` pairs of anchor and title."""
    style = resources.files("autoseg.reporting").joinpath("report.css").read_text(encoding="utf-8")
    links = "".join(f'<a href="#{text(key)}">{text(name)}</a>' for key, name in navigation)
    made = datetime.now().astimezone()
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}: autoseg {text(kind)}</title><style>{style}</style></head><body>"
        f'<header><p class="kind">autoseg {text(kind)}</p><h1>{text(title)}</h1>{subtitle}'
        f'<div class="figures">{figures}</div></header>'
        f'<nav aria-label="Sections"><div>{links}</div></nav><main>{"".join(sections)}</main>'
        f"<footer>Made by autoseg {text(autoseg.__version__)} on {made:%Y-%m-%d at %H:%M %Z}.</footer>"
        f"<script>{SORT_SCRIPT}</script></body></html>\n"
    )
