"""Means over defined entries, seeded bootstrap, JSON and CSV."""

import csv
import json

import numpy as np
import pytest

from autoseg.evaluation import Scores, summarize, write_summary
from autoseg.evaluation.summary import bootstrap_interval

CASES = {
    "case_2": {"a": Scores(dice=0.5, iou=1 / 3, hd95=2.0, nsd=0.4, tp=1, fp=1, fn=1), "b": Scores()},
    "case_1": {
        "a": Scores(dice=1.0, iou=1.0, hd95=0.0, nsd=1.0, tp=1, fp=0, fn=0),
        "b": Scores(dice=0.0, iou=0.0, nsd=0.0),
    },
}


def test_undefined_scores_are_left_out():
    summary = summarize(CASES, tolerance_mm=2)
    assert list(summary["cases"]) == ["case_1", "case_2"]
    assert summary["mean"]["a"]["dice"] == pytest.approx(0.75)
    assert summary["mean"]["b"]["dice"] == 0
    assert summary["mean"]["b"]["hd95"] is None
    assert (summary["mean"]["a"]["cases"], summary["mean"]["b"]["cases"]) == (2, 1)
    assert (summary["mean"]["a"]["hd95_missing"], summary["mean"]["b"]["hd95_missing"]) == (0, 1)
    assert summary["foreground_mean"]["dice"] == pytest.approx(0.375)
    assert summary["foreground_mean"]["hd95"] == pytest.approx(1.0)
    assert summary["tolerance_mm"] == 2


def test_no_case_and_one_case():
    assert summarize({})["foreground_mean"]["dice"] is None
    one = summarize({"x": CASES["case_1"]})
    assert one["bootstrap"]["dice"] is None  # an interval from one case would look certain


def test_bootstrap_is_seeded_and_matches_a_plain_loop():
    table = np.random.default_rng(3).random((12, 2))
    table[0, 1] = np.nan
    low, high = bootstrap_interval(table, seed=5)
    assert (low, high) == tuple(bootstrap_interval(table, seed=5))
    assert (low, high) != tuple(bootstrap_interval(table, seed=6))
    random = np.random.default_rng(0)
    means = [np.nanmean(table[random.integers(12, size=12)], axis=0).mean() for _ in range(4000)]
    assert (low, high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.02)


def test_bootstrap_of_equal_cases_has_no_width():
    assert bootstrap_interval(np.full((5, 2), 0.8)) == pytest.approx([0.8, 0.8])


def test_files(tmp_path):
    write_summary(summarize(CASES), tmp_path / "summary.json")
    assert json.loads((tmp_path / "summary.json").read_text())["cases"]["case_2"]["b"]["dice"] is None
    rows = list(csv.DictReader((tmp_path / "summary.csv").read_text().splitlines()))
    assert [(row["case"], row["label"]) for row in rows] == [
        ("case_1", "a"), ("case_1", "b"), ("case_2", "a"), ("case_2", "b"),
    ]  # fmt: skip
    assert rows[2]["hd95"] == "2.0"
    assert rows[3]["dice"] == ""
