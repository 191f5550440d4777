"""Medians, ratios, verdicts and the table of the side-by-side benchmark, by hand."""

import pytest
from sides.figures import MIB, Sample, Target, line_through, medians, ratio, spread, summarize, table_row, verdict


def samples(*seconds, memory=100 * MIB):
    return [Sample(s, 2 * s, memory, memory / 2) for s in seconds]


def test_median_of_each_column():
    found = medians([Sample(3, 1, 10, 5), Sample(1, 9, 30, 4), Sample(2, 2, 20, 6)])
    assert found == Sample(2, 2, 20, 5)


def test_no_samples_are_an_error():
    with pytest.raises(ValueError, match="nothing was measured"):
        medians([])


def test_ratio_and_verdict():
    assert ratio(1, 4) == 0.25
    assert ratio(1, 0) is None
    assert verdict(0.33, 0.33) == "reached"
    assert verdict(0.34, 0.33) == "missed"
    assert verdict(0.1, None) == "no target"
    assert verdict(None, 0.3) == "not measured"


def test_spread_is_relative_to_the_median():
    assert spread(samples(9, 10, 12)) == pytest.approx(0.3)


def test_summary_of_both_sides():
    found = summarize(samples(1, 2, 3), samples(4, 8, 40, memory=400 * MIB), Target(0.3, 0.2))
    assert found["ratios"] == {"seconds": 0.25, "cpu_seconds": 0.25, "tree_bytes": 0.25, "largest_bytes": 0.25}
    assert (found["time_verdict"], found["memory_verdict"]) == ("reached", "missed")
    assert found["pairs"] == 3
    assert found["nnunet_samples"][2]["seconds"] == 40


def test_summary_with_one_side_has_no_ratio():
    found = summarize(samples(1), [], Target(0.3))
    assert found["ratios"]["seconds"] is None
    assert found["time_verdict"] == "not measured"
    assert "1 / -" in table_row("export", "ct", found)


def test_row_names_ratio_and_targets():
    row = table_row("predict", "cardiac", summarize(samples(1), samples(4), Target(0.35, 0.5)))
    assert "1 / 4" in row
    assert "0.25" in row
    assert row.endswith("time <= 0.35: reached; memory <= 0.5: missed")


def test_line():
    found = line_through([(25, 51), (50, 101), (100, 201), (200, 401)])
    assert found["slope"] == pytest.approx(2)
    assert found["intercept"] == pytest.approx(1)
    assert found["r_squared"] == pytest.approx(1)
    assert line_through([(1, 3), (10, 300)])["exponent"] == pytest.approx(2)
    assert line_through([(1, 5), (2, 5), (4, 5)])["r_squared"] == 1
