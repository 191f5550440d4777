"""The statistics of the referee, against values made by hand, against scipy, and against what must not matter."""

import numpy as np
import pytest
from scipy import stats

from autoseg.benchmarking.statistics import (
    Noise,
    bootstrap_means,
    case_table,
    fold_noise,
    foreground_mean,
    holm,
    interval,
    kendall_taus,
    margin_of,
    nan_mean,
    noise_p,
    own_noise,
    paired_differences,
    pooled_deviation,
    ranks,
    run_means,
    run_noise,
    run_noise_of,
    signed_rank_p,
    smallest_p,
)
from autoseg.evaluation.summary import bootstrap_interval, summarize

NAN = float("nan")


def scores(values, fold="0"):
    """Scores of one name: a list of seeds, each a list of cases."""
    return {fold: np.array(values, dtype=float)[:, :, None]}


def test_holm_by_hand():
    # sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2 -> 0.06 (not below the one before), 0.5 * 1
    assert holm([0.03, 0.5, 0.01, 0.02]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.4, 0.6]) == pytest.approx([0.8, 0.8])
    assert holm([]) == []
    assert max(holm([0.9, 0.95, 0.99])) == 1.0


def test_signed_ranks_by_hand():
    # ranks 1 2 3 4 5, the second is negative: W- = 2; 3 of 32 sign patterns have a sum of 0, 1 or 2; two sides
    assert signed_rank_p(np.array([0.1, -0.2, 0.3, 0.4, 0.5])) == pytest.approx(2 * 3 / 32)
    assert signed_rank_p(np.array([0.1, 0.2, 0.3, 0.4, 0.5])) == pytest.approx(2 / 32)
    assert smallest_p(5) == pytest.approx(2 / 32)
    assert signed_rank_p(np.zeros(7)) == 1.0
    assert signed_rank_p(np.array([])) == 1.0


def test_signed_ranks_as_scipy():
    drawn = np.random.default_rng(3).normal(0.2, 1, 40)
    assert signed_rank_p(drawn) == pytest.approx(stats.wilcoxon(drawn).pvalue)
    assert signed_rank_p(np.concatenate([drawn, np.zeros(5)])) == pytest.approx(stats.wilcoxon(drawn).pvalue)


def test_means_leave_out_what_is_undefined():
    table = np.array([[0.5, NAN], [0.7, NAN], [NAN, 0.2]])
    assert foreground_mean(table) == pytest.approx((0.6 + 0.2) / 2)
    assert foreground_mean(np.array([[0.5, NAN], [0.7, NAN]])) == pytest.approx(0.6)
    assert np.isnan(foreground_mean(np.full((2, 2), NAN)))
    seeds = {"0": np.array([[[0.4], [NAN]], [[0.6], [0.8]]])}  # the second case is defined with one seed
    assert case_table(seeds)[:, 0] == pytest.approx([0.5, 0.8])
    assert run_means(seeds) == pytest.approx([0.4, 0.7])


def test_means_are_those_of_the_evaluation():
    rng = np.random.default_rng(0)
    table = np.where(rng.random((9, 3)) < 0.3, NAN, rng.random((9, 3)))
    cases = {f"case {i}": {f"name {k}": {"dice": None if np.isnan(v) else v} for k, v in enumerate(row)}
             for i, row in enumerate(table)}  # fmt: skip
    assert foreground_mean(table) == pytest.approx(summarize(cases)["foreground_mean"]["dice"])


def test_bootstrap_of_one_seed_is_as_wide_as_the_evaluations():
    table = np.random.default_rng(1).random((30, 2))
    drawn = bootstrap_means({"a": {"0": table[None]}}, stream="x", resamples=4000)["a"]
    assert interval(drawn) == pytest.approx(bootstrap_interval(table, resamples=4000), abs=0.01)
    assert drawn.mean() == pytest.approx(foreground_mean(table), abs=0.01)


def test_a_constant_difference_has_an_interval_of_one_point():
    values = np.random.default_rng(2).random((1, 12)).tolist()
    field = {"a": scores(np.array(values) + 0.05), "b": scores(values)}
    drawn = bootstrap_means(field, stream="x", resamples=300)
    assert interval(drawn["a"] - drawn["b"]) == pytest.approx((0.05, 0.05))
    assert paired_differences(field["a"], field["b"]) == pytest.approx(np.full(12, 0.05))


def test_seeds_widen_the_interval_by_their_own_noise():
    cases = np.full(10, 0.8)
    field = {"a": scores([cases - 0.1, cases, cases + 0.1])}
    drawn = bootstrap_means(field, stream="x", resamples=4000)["a"]
    # cases are all alike, so only seeds are drawn: the standard error of three runs that deviate by 0.1
    assert drawn.std() == pytest.approx(0.1 / np.sqrt(3), rel=0.05)


def test_folds_have_seeds_and_cases_of_their_own():
    both = {"0": np.full((2, 3, 1), 0.5), "1": np.full((1, 2, 1), 1.0)}
    assert foreground_mean(case_table(both)) == pytest.approx((3 * 0.5 + 2 * 1.0) / 5)
    assert run_means(both) == pytest.approx([0.5, 0.5, 1.0])
    drawn = bootstrap_means({"a": both}, stream="x", resamples=2000)["a"]
    assert drawn.mean() == pytest.approx(0.7, abs=0.01)
    assert set(np.round(drawn, 6)) == {0.5, 0.6, 0.7, 0.8, 0.9, 1.0}  # one of six numbers of fold-1 cases


def test_draws_depend_on_names_not_on_order():
    rng = np.random.default_rng(4)
    field = {name: scores(rng.random((3, 8))) for name in "abc"}
    one = bootstrap_means(field, stream="x", resamples=50)
    other = bootstrap_means(dict(reversed(field.items())), stream="x", resamples=50)
    assert all(np.array_equal(one[name], other[name]) for name in field)
    assert not np.array_equal(one["a"], bootstrap_means(field, stream="y", resamples=50)["a"])
    assert not np.array_equal(one["a"], bootstrap_means(field, stream="x", resamples=50, seed=1)["a"])


def test_large_tables_are_drawn_in_parts(monkeypatch):
    field = {"a": scores(np.random.default_rng(5).random((2, 20)))}
    whole = bootstrap_means(field, stream="x", resamples=60)["a"]
    monkeypatch.setattr("autoseg.benchmarking.statistics._CHUNK", 100)
    assert np.allclose(whole, bootstrap_means(field, stream="x", resamples=60)["a"])


def test_pairs_leave_out_cases_that_one_side_does_not_define():
    first = {"0": np.array([[[0.9, NAN], [NAN, NAN], [0.5, 0.7]]])}
    second = {"0": np.array([[[0.8, NAN], [0.0, NAN], [0.5, 0.5]]])}
    assert paired_differences(first, second) == pytest.approx([0.1, 0.1])


def test_ranks_share_ties_and_put_the_undefined_last():
    assert ranks(np.array([0.9, 0.7, 0.9, NAN])).tolist() == [1.5, 3, 1.5, 4]


def test_kendall_as_scipy():
    rng = np.random.default_rng(6)
    reference, drawn = np.arange(7.0), np.round(rng.random((20, 7)) * 5)
    expected = [stats.kendalltau(row, reference).statistic for row in drawn]
    assert kendall_taus(drawn, reference) == pytest.approx(expected)
    assert kendall_taus(reference[None], reference)[0] == 1.0


def test_pooled_deviation_is_within_groups():
    assert pooled_deviation([[1.0, 3.0], [10.0, 12.0], [5.0]]) == pytest.approx((np.sqrt(2), 2))
    assert pooled_deviation([[1.0, 2.0, 3.0], [4.0]]) == pytest.approx((1.0, 2))
    assert pooled_deviation([[1.0], [2.0]]) is None


def test_noise_is_between_seeds_of_a_fold():
    hard = {"0": np.full((2, 3, 1), 0.5) + np.array([0.01, -0.01])[:, None, None], "1": np.full((2, 3, 1), 0.9)}
    deviation, degrees = run_noise({"a": hard, "b": hard})
    assert degrees == 4
    assert deviation == pytest.approx(np.sqrt((0.0002 + 0.0002) / 4))


def test_noise_of_one_seed_is_between_folds_without_their_difficulty():
    easy_and_hard = {str(fold): np.full((1, 2, 1), level) for fold, level in enumerate((0.9, 0.5, 0.7))}
    better = {fold: values + 0.05 for fold, values in easy_and_hard.items()}
    assert run_noise({"a": easy_and_hard, "b": better}) == pytest.approx((0.0, 2), abs=1e-9)
    assert run_noise({"a": {"0": np.full((1, 2, 1), 0.5)}}) is None


def test_margin_by_hand():
    noise = run_noise_of(0.1, (0.02, 4), 3, (0.02, 9), 1)
    assert noise == pytest.approx((0.1, 0.02 * np.sqrt(4 / 3), 4))
    assert margin_of(noise) == pytest.approx(2.7764 * 0.02 * np.sqrt(4 / 3), rel=1e-4)
    other = run_noise_of(0.1, (0.01, 4), 1, (0.02, 4), 4)
    assert margin_of(other) == pytest.approx(2.7764 * np.sqrt(0.0001 + 0.0001), rel=1e-4)
    assert run_noise_of(0.1, None, 3, (0.02, 4), 1) is None


def test_p_of_a_difference_beside_its_noise():
    assert noise_p(Noise(2.7764 * 0.01, 0.01, 4)) == pytest.approx(0.05, rel=1e-3)  # t of four degrees, two sides
    assert noise_p(Noise(-2.7764 * 0.01, 0.01, 4)) == noise_p(Noise(2.7764 * 0.01, 0.01, 4))
    assert noise_p(Noise(0.0, 0.01, 4)) == noise_p(Noise(0.0, 0.0, 4)) == 1.0
    assert noise_p(Noise(0.1, 0.0, 4)) == 0.0


def test_noise_between_folds_is_that_of_the_difference_it_stands_beside():
    """Folds of unequal seeds, and a label that one fold has alone: by hand, from the means of the runs of each fold."""
    first = {"0": np.array([[[0.9, 0.8]], [[0.7, 0.6]]]), "1": np.array([[[0.8, NAN]]]), "2": np.array([[[0.7, NAN]]])}
    second = {"0": np.array([[[0.5, 0.5]]]), "1": np.array([[[0.7, NAN]]]), "2": np.array([[[0.7, NAN]]])}
    found = fold_noise(first, second)  # differences 0.75 - 0.5, 0.1 and 0
    assert found == pytest.approx((0.35 / 3, np.std([0.25, 0.1, 0.0], ddof=1) / np.sqrt(3), 2))
    assert fold_noise({"0": first["0"]}, {"0": second["0"]}) is None


def test_cases_of_a_unit_count_once():
    first = {"0": np.array([[[0.9], [0.7], [0.5]]]), "1": np.array([[[0.9]]])}
    second = {"0": np.array([[[0.8], [0.4], [0.5]]]), "1": np.array([[[0.5]]])}
    units = ("p", "p", "q", "q")  # a case of fold 1 is of the second patient, too
    assert paired_differences(first, second, units) == pytest.approx([(0.1 + 0.3) / 2, (0.0 + 0.4) / 2])
    undefined = {"0": np.array([[[0.8], [0.4], [NAN]]]), "1": np.array([[[NAN]]])}
    assert paired_differences(first, undefined, units) == pytest.approx([0.2])  # nothing is known of the second


def test_units_are_drawn_whole():
    """Two patients, of one case with 0 and of three with 1: a draw has none, one or both of either."""
    field = {"a": {"0": np.array([[[0.0], [1.0], [1.0], [1.0]]])}}
    drawn = bootstrap_means(field, stream="x", units=("p", "q", "q", "q"), resamples=2000)["a"]
    assert set(np.round(drawn, 6)) == {0.0, 0.75, 1.0}
    assert np.mean(drawn == 0.75) == pytest.approx(0.5, abs=0.04)


def runs_around(level, *offsets):
    return {"0": np.stack([np.full((2, 1), level + offset) for offset in offsets])}


def test_an_unsteady_competitor_does_not_make_the_others_noisy():
    steady = {"a": runs_around(0.8, -0.01, 0, 0.01), "b": runs_around(0.7, -0.01, 0, 0.01)}
    alone = own_noise(steady)
    beside = own_noise({**steady, "c": runs_around(0.3, -0.2, 0, 0.2)})
    typical = 1e-4 * 2 / 1.386294  # the variance 1e-4 of two degrees of freedom over the median of its distribution
    assert alone["a"] == pytest.approx((np.sqrt((2e-4 + 4 * typical) / 6), 4))  # all four that the field has
    assert beside["a"] == pytest.approx((alone["a"][0], 6))
    assert beside["c"] == pytest.approx((np.sqrt((2 * 0.04 + 4 * typical) / 6), 6))


def test_a_competitor_with_one_run_has_the_noise_of_all():
    field = {"a": runs_around(0.8, -0.01, 0.01), "b": runs_around(0.7, 0.0)}
    assert own_noise(field)["b"] == run_noise(field)
    assert own_noise({"b": field["b"]}) == {"b": None}


def test_mean_of_nothing_is_undefined_without_a_warning():
    assert np.isnan(nan_mean(np.array([NAN, NAN]), 0))
    assert interval(np.array([NAN])) is None
