"""What may be said: a winner only where every comparison is decided."""

import dataclasses

import numpy as np
import pytest

from autoseg.benchmarking.estimating import Estimate, as_dict, undecidable
from autoseg.benchmarking.verdict import judge
from autoseg.benchmarking.words import stability_sentences, verdict_sentences

CASES = 30


def scores(mean, *, seeds=3, noise=0.002, spread=0.05, stream=0, cases=CASES):
    """Scores of a method: cases of different difficulty, the same for all, and noise between runs and cases."""
    difficulty = np.random.default_rng(99).normal(0, spread, cases)
    rng = np.random.default_rng(stream)
    values = mean + difficulty + rng.normal(0, noise, (seeds, 1)) + rng.normal(0, 0.005, (seeds, cases))
    return {"0": np.clip(values, 0, 1)[:, :, None]}


def judged(field, **options):
    verdicts, _ = judge({"data": field}, resamples=500, **options)
    return verdicts[0]


def test_a_clear_difference_has_a_winner():
    verdict = judged({"a": scores(0.8, stream=1), "b": scores(0.7, stream=2), "c": scores(0.75, stream=3)})
    assert verdict.winner == "a"
    assert verdict.not_worse == ()
    assert [standing.entry for standing in verdict.standings] == ["a", "c", "b"]
    assert verdict.standings[0].share_first == 1.0
    assert verdict.tau == pytest.approx((1.0, 1.0, 1.0))
    (sentence,) = verdict_sentences(verdict, {"a": "A", "b": "B", "c": "C"})
    assert sentence.startswith("A is best on this split with a mean Dice of 0.8")
    assert sentence.endswith("by more than seeds may make.")
    assert any("holds for this split" in note for note in verdict.notes)


def test_identical_methods_have_no_winner():
    same = scores(0.8)
    verdict = judged({"a": same, "b": same})
    (comparison,) = verdict.comparisons
    assert (comparison.difference, comparison.p, comparison.corrected, comparison.decided) == (0, 1, 1, False)
    assert verdict.winner is None
    assert verdict.not_worse == ("b",)
    assert [standing.rank for standing in verdict.standings] == [1.5, 1.5]
    assert "No winner" in verdict_sentences(verdict, {"a": "A", "b": "B"})[0]


def test_one_that_cannot_be_told_apart_is_enough_for_no_winner():
    near = scores(0.8, stream=1)
    verdict = judged({"a": near, "b": {"0": near["0"] - 1e-6 * np.sign(np.arange(CASES) % 2 - 0.4)[None, :, None]},
                      "c": scores(0.6, stream=3)})  # fmt: skip
    assert verdict.winner is None
    assert len(verdict.not_worse) == 1
    assert "c" not in verdict.not_worse


def test_a_single_run_cannot_win():
    verdict = judged({"a": scores(0.8, seeds=1, stream=1), "b": scores(0.6, seeds=1, stream=2)})
    assert verdict.comparisons[0].decided
    assert verdict.winner is None
    assert "luck" in verdict_sentences(verdict, {"a": "A", "b": "B"})[0]
    assert any("noise between runs is unknown" in note for note in verdict.notes)
    assert verdict.suitability is None


def test_an_interval_with_zero_or_a_large_p_decides_nothing():
    rng = np.random.default_rng(7)
    first = 0.8 + rng.normal(0, 0.1, (2, CASES, 1))
    verdict = judged({"a": {"0": first}, "b": {"0": first - rng.normal(0.001, 0.05, (2, CASES, 1))}})
    comparison = verdict.comparisons[0]
    assert comparison.interval[0] < 0 < comparison.interval[1]
    assert not comparison.decided


def test_p_is_corrected_over_all_pairs_of_all_data_sets():
    field = {"a": scores(0.8, stream=1), "b": scores(0.7, stream=2), "c": scores(0.6, stream=3)}
    alone, _ = judge({"x": {"a": field["a"], "b": field["b"]}}, resamples=50)
    verdicts, overall = judge({"x": field, "y": field}, resamples=50)
    assert alone[0].comparisons[0].corrected == pytest.approx(alone[0].comparisons[0].p)
    pair = verdicts[0].comparison("b", "a")
    assert pair.corrected == pytest.approx(6 * pair.p)  # all six have the smallest p there is
    assert [one.entry for one in overall] == ["a", "b", "c"]
    assert overall[0].mean_rank == pytest.approx(1)
    assert overall[0].share_first == pytest.approx(1)


def test_order_changes_nothing():
    field = {name: scores(0.7 + 0.01 * index, stream=index, seeds=2) for index, name in enumerate("abcd")}
    forward, _ = judge({"x": field, "y": field}, resamples=100)
    backward, _ = judge({"y": dict(reversed(field.items())), "x": dict(reversed(field.items()))}, resamples=100)
    assert forward == list(reversed(backward))


def test_few_cases_cannot_decide_and_it_is_said():
    verdict = judged({"a": scores(0.9, cases=4, stream=1), "b": scores(0.5, cases=4, stream=2)})
    assert verdict.winner is None  # the smallest p of four cases is 0.125
    assert any("no difference, however large" in note for note in verdict.notes)
    assert any("narrower than they should be" in note for note in verdict.notes)


def test_a_lead_within_the_noise_between_runs_is_not_claimed():
    cases = np.random.default_rng(0).normal(0.8, 0.005, CASES)
    field = {"a": {"0": np.stack([cases + 0.06, cases, cases + 0.03])[:, :, None]},
             "b": {"0": np.stack([cases, cases + 0.04, cases - 0.01])[:, :, None]}}  # fmt: skip
    verdict = judged(field)
    comparison = verdict.comparisons[0]
    assert comparison.rank_p < 1e-6  # cases alone would decide it
    assert comparison.corrected > 0.05
    assert comparison.below_noise
    assert verdict.winner is None
    assert any("must not be claimed" in note for note in verdict.notes)
    assert verdict.suitability < 2
    assert "hardly separates" in " ".join(stability_sentences(verdict, {}))


def test_a_mean_that_most_cases_contradict_is_no_winner():
    """The second method is a little better on 35 of 40 cases and fails on five: a small p, but for the second."""
    rng = np.random.default_rng(3)
    first = 0.8 + rng.normal(0, 0.001, (3, 40))
    second = first + 0.01 + rng.normal(0, 0.002, (3, 40))
    second[:, :5] = 0.1
    verdict = judged({"first": {"0": first[:, :, None]}, "second": {"0": second[:, :, None]}})
    (comparison,) = verdict.comparisons
    assert comparison.first == "first"
    assert comparison.interval[0] > 0
    assert comparison.corrected < 0.05
    assert not comparison.ranks_agree
    assert not comparison.decided
    assert verdict.winner is None
    assert any("Most cases say the opposite of the mean" in note for note in verdict.notes)


def test_a_lead_within_the_noise_between_folds_is_not_claimed():
    rng = np.random.default_rng(4)
    cases = {str(fold): 0.8 + rng.normal(0, 0.005, 20) for fold in range(5)}
    gaps = dict(zip(cases, (0.10, 0.08, -0.01, -0.02, 0.06), strict=True))
    two = {fold: np.stack([values, values + 0.001]) for fold, values in cases.items()}
    field = {"a": {fold: (values + gaps[fold])[:, :, None] for fold, values in two.items()},
             "b": {fold: values[:, :, None] for fold, values in two.items()}}  # fmt: skip
    verdict = judged(field)
    (comparison,) = verdict.comparisons
    assert comparison.rank_p < 0.05
    # by hand: mean 0.042, deviation 0.05404, times t(4) 2.7764 over the root of 5
    assert comparison.margin == pytest.approx(2.7764 * 0.05404 / np.sqrt(5), rel=1e-3)
    assert comparison.below_noise
    assert verdict.winner is None


def test_false_winners_are_rare():
    """Methods that are the same but for the noise of seeds and cases."""
    named = 0
    for trial in range(40):
        field = {name: scores(0.8, noise=0.02, stream=10 * trial + index) for index, name in enumerate("abc")}
        named += judged(field).winner is not None
    assert named <= 4


def test_suitability_by_hand():
    field = {"a": {"0": np.full((2, 3, 1), 0.6) + np.array([0.01, -0.01])[:, None, None]},
             "b": {"0": np.full((2, 3, 1), 0.8) + np.array([0.01, -0.01])[:, None, None]}}  # fmt: skip
    verdict = judged(field)
    assert verdict.inter_deviation == pytest.approx(0.2 / np.sqrt(2))
    assert verdict.intra_deviation == pytest.approx(0.02 / np.sqrt(2))
    assert verdict.suitability == pytest.approx(10)


def test_one_method_alone_is_no_comparison():
    verdict = judged({"a": scores(0.8)})
    assert verdict.winner is None
    assert verdict.tau is None
    assert "nothing to compare" in verdict_sentences(verdict, {"a": "A"})[0]


def test_a_dry_run_says_where_no_winner_is_possible():
    def estimate(dataset, entries, cases):
        return Estimate(dataset, entries, entries, 0, cases, None, 1.0, 1.0, "")

    assert undecidable([estimate("a", 2, 8), estimate("b", 2, 7)]) == []  # 2 * 2**-6 is below 0.05
    (said,) = undecidable([estimate("a", 2, 6), estimate("b", 2, 7)])
    assert said.startswith("a: no winner is possible, as with 6 cases")
    assert "2 comparisons" in said
    assert len(undecidable([estimate("a", 30, 8), estimate("b", 30, 40)])) == 1
    assert undecidable([estimate("a", 1, 2)]) == []
    patients = dataclasses.replace(estimate("c", 2, 20), units=5)
    assert "with 5 groups of 20 cases no difference" in undecidable([patients])[0]
    assert as_dict([estimate("a", 30, 8)])["warnings"] == undecidable([estimate("a", 30, 8)])
