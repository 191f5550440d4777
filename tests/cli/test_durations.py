"""Time spans on the command line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.cli.durations import format_duration, parse_duration
from autoseg.errors import UserError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("1h 30m 5s", 5405),
        ("2d", 172800),
        ("45", 45),
        ("0.5h", 1800),
        ("1.5", 1.5),
        ("2H", 7200),
        ("1m30", 90),
        (600.0, 600),
    ],
)
def test_spans(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-5", "5x", "m", "1m1h", "ten", "nan", "inf", "1e3", "10 minutes"])
def test_what_is_no_span_is_told(text):
    with pytest.raises(UserError, match=r"is not a time span\n.*10m"):
        parse_duration(text)


@given(days=st.integers(0, 5), hours=st.integers(0, 30), minutes=st.integers(0, 90), seconds=st.integers(1, 90))
def test_parts_add_up(days, hours, minutes, seconds):
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert parse_duration(f"{days}d{hours}h{minutes}m{seconds}s") == total


def test_in_words():
    assert format_duration(8.4) == "8 s"
    assert format_duration(570) == "9 min 30 s"
    assert format_duration(7500) == "2 h 5 min"
    assert format_duration(59.7) == "1 min 0 s"
