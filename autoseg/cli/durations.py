"""Time spans on the command line: `10m`, `1h30m`, `90s`, `2d`, or plain seconds."""

from __future__ import annotations

import math
import re

from autoseg.errors import UserError

UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
PATTERN = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


def parse_duration(text: str | float) -> float:
    """Return the seconds that `text` means; anything but a positive span is a UserError."""
    match = PATTERN.fullmatch(str(text).strip().lower().replace(" ", ""))
    seconds = 0.0
    if match:
        seconds = sum(float(part) * UNITS[unit] for part, unit in zip(match.groups(), UNITS, strict=True) if part)
    if not (0 < seconds < math.inf):
        raise UserError(f"{text!r} is not a time span", mend="write it like 90s, 10m, 1h30m, 2d, or as plain seconds")
    return seconds


def format_duration(seconds: float) -> str:
    """Return a span in words as short as useful: `8 s`, `9 min 30 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
