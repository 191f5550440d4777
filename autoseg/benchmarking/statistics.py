"""Paired statistics over cases: bootstrap draws, signed ranks, Holm's correction, agreement of rankings.

The scores of a competitor on a data set are `{fold: array (seeds, cases, names)}`, NaN where a Dice is undefined
because neither prediction nor reference shows the name. Means are those of the evaluation: over the seeds of a case,
then over the cases of a name, then over names, undefined ones left out each time.

`units` tells which cases are not independent of each other, such as the images of one patient, or one case that two
folds score: a name per row of `case_table`, without them every case is a unit of its own. Units are drawn whole in
the bootstrap, and count once in the test of signed ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from autoseg.randomness import generator

Scores = Mapping[str, np.ndarray]  # fold -> (seeds, cases, names)


class Noise(NamedTuple):
    """A difference of means with its standard error and degrees of freedom, all of the same means."""

    difference: float
    error: float
    degrees: int


RESAMPLES = 2000
TYPICAL_DEGREES = 4  # degrees of freedom that the field's typical noise counts for in that of one competitor
FEWEST_FOLDS = 3  # that a deviation between folds is taken from
INTERVAL = (2.5, 97.5)
_CHUNK = 4_000_000  # numbers in one array of bootstrap draws


def nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the mean of the defined entries along an axis, NaN where there is none."""
    defined = ~np.isnan(values)
    count = defined.sum(axis)
    total = np.where(defined, values, 0).sum(axis)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def case_table(scores: Scores) -> np.ndarray:
    """Return (cases of all folds, names), the mean over seeds."""
    return np.concatenate([nan_mean(scores[fold], 0) for fold in sorted(scores)])


def foreground_mean(table: np.ndarray) -> float:
    """Return the mean over names of their means over cases, of a table (cases, names)."""
    return float(nan_mean(nan_mean(table, 0), 0))


def run_means(scores: Scores) -> list[float]:
    """Return the foreground mean of every single run (fold and seed)."""
    return [foreground_mean(table) for fold in sorted(scores) for table in scores[fold]]


def mean_of_runs(scores: Scores) -> float:
    """Return the mean of all runs: what the noise between runs is that of, where `foreground_mean` pools cases."""
    return float(nan_mean(np.array(run_means(scores)), 0))


def bootstrap_means(
    field: Mapping[str, Scores],
    *,
    stream: str,
    units: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, np.ndarray]:
    """Return, for every competitor, its foreground mean in each bootstrap draw (resamples,).

    In a draw all competitors see the same cases, whole units drawn with replacement; the seeds of each are drawn
    with replacement for itself, per fold: one fewer than there are, since the usual bootstrap of two or three values is
    far too narrow (Rao and Wu 1988). The numbers depend on the names of `stream` and competitors, not on their order.
    """
    unit = unit_of_rows(units, len(case_table(next(iter(field.values())))))
    count = int(unit.max(initial=-1)) + 1
    drawn = generator(seed, f"benchmark/{stream}/cases").integers(count, size=(resamples, count))
    of_units = np.zeros((resamples, count))
    np.add.at(of_units, (np.arange(resamples)[:, None], drawn), 1)
    weights = of_units[:, unit]
    return {name: _draws(scores, weights, f"benchmark/{stream}/{name}", seed) for name, scores in field.items()}


def unit_of_rows(units: Sequence[str] | None, rows: int) -> np.ndarray:
    """Return the number of the unit of every row, (rows,)."""
    return np.arange(rows) if units is None else np.unique(list(units), return_inverse=True)[1]


def _draws(scores: Scores, weights: np.ndarray, stream: str, seed: int) -> np.ndarray:
    resamples = len(weights)
    chosen = {}
    for fold, values in scores.items():
        count = len(values)
        drawn = generator(seed, f"{stream}/{fold}").integers(count, size=(resamples, max(1, count - 1)))
        chosen[fold] = (drawn[:, :, None] == np.arange(count)).sum(1).astype(float)  # (resamples, seeds)
    cases, names = case_table(scores).shape
    step = max(1, _CHUNK // (cases * names))
    parts = []
    for start in range(0, resamples, step):
        part = slice(start, start + step)
        tables = np.concatenate([_weighted(chosen[fold][part], scores[fold]) for fold in sorted(scores)], axis=1)
        defined = ~np.isnan(tables)
        counts = np.einsum("ru,ruk->rk", weights[part], defined.astype(float))
        sums = np.einsum("ru,ruk->rk", weights[part], np.where(defined, tables, 0))
        of_names = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
        parts.append(nan_mean(of_names, 1))
    return np.concatenate(parts)


def _weighted(chosen: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the mean over the drawn seeds (resamples, cases, names)."""
    defined = ~np.isnan(values)
    counts = np.einsum("rs,suk->ruk", chosen, defined.astype(float))
    sums = np.einsum("rs,suk->ruk", chosen, np.where(defined, values, 0))
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def interval(draws: np.ndarray) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of bootstrap draws, None if none is defined."""
    defined = draws[~np.isnan(draws)]
    if not defined.size:
        return None
    low, high = np.percentile(defined, INTERVAL)
    return float(low), float(high)


def paired_differences(first: Scores, second: Scores, units: Sequence[str] | None = None) -> np.ndarray:
    """Return first minus second of every unit where both are defined.

    The mean over the names of a case and over seeds, then over the cases of the unit.
    """
    difference = nan_mean(case_table(first), 1) - nan_mean(case_table(second), 1)
    unit = unit_of_rows(units, len(difference))
    defined = ~np.isnan(difference)
    found, row = np.unique(unit[defined], return_inverse=True)
    counts = np.bincount(row, minlength=len(found))
    return np.bincount(row, difference[defined], minlength=len(found)) / counts


def signed_rank_p(differences: np.ndarray) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test; 1 where nothing differs."""
    nonzero = differences[differences != 0]
    if not nonzero.size:
        return 1.0
    return float(stats.wilcoxon(nonzero).pvalue)


def rank_sign(differences: np.ndarray) -> int:
    """Return which way the signed ranks point: 1 upwards, -1 downwards, 0 neither.

    A few cases that collapse move a mean against most of the cases: the test's p is then small for the other method.
    """
    placed = stats.rankdata(np.abs(differences[differences != 0]))
    return int(np.sign((placed * np.sign(differences[differences != 0])).sum()))


def smallest_p(cases: int) -> float:
    """Return the smallest p that so many cases can give: all differences of one sign."""
    return min(1.0, 2.0 ** (1 - cases))


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values corrected for being many (Holm 1979), in the given order."""
    corrected = [0.0] * len(values)
    highest = 0.0
    for position, index in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        highest = max(highest, min(1.0, (len(values) - position) * values[index]))
        corrected[index] = highest
    return corrected


def ranks(scores: np.ndarray) -> np.ndarray:
    """Return ranks (..., competitors), 1 for the highest score; ties share the mean of their ranks, NaN is last."""
    return stats.rankdata(-np.where(np.isnan(scores), -np.inf, scores), axis=-1)


def kendall_taus(draws: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return Kendall's tau-b between the ranking of each draw (resamples, n) and a reference ranking (n,)."""
    upper = np.triu_indices(draws.shape[1], 1)
    signs = np.sign(draws[:, upper[0]] - draws[:, upper[1]])
    wanted = np.sign(reference[upper[0]] - reference[upper[1]])
    scale = np.sqrt((signs != 0).sum(1) * float((wanted != 0).sum()))
    return np.divide(signs @ wanted, scale, out=np.full(len(draws), np.nan), where=scale > 0)


def pooled_deviation(groups: Sequence[Sequence[float]]) -> tuple[float, int] | None:
    """Return standard deviation and degrees of freedom within groups of values, None where each has one value."""
    groups = [[value for value in group if not np.isnan(value)] for group in groups]
    degrees = sum(len(group) - 1 for group in groups)
    if degrees < 1:
        return None
    squares = sum(float(np.var(group)) * len(group) for group in groups if len(group))
    return float(np.sqrt(squares / degrees)), degrees


def run_noise(field: Mapping[str, Scores]) -> tuple[float, int] | None:
    """Return by how much two runs of one competitor differ on the same cases: deviation and degrees of freedom.

    Between the seeds of a fold where there are several; else what is left between folds once the difficulty of each
    fold and the level of each competitor are taken out. None where every competitor has one run.
    """
    seeds = [[foreground_mean(table) for table in scores[fold]] for scores in field.values() for fold in sorted(scores)]
    within = pooled_deviation(seeds)
    if within is not None:
        return within
    means = np.array([run_means(scores) for scores in field.values()])  # one run per competitor and fold
    means = means[~np.isnan(means).any(1)]
    degrees = (means.shape[0] - 1) * (means.shape[1] - 1)
    if degrees < 1:
        return None
    left = means - means.mean(1, keepdims=True) - means.mean(0, keepdims=True) + means.mean()
    return float(np.sqrt((left**2).sum() / degrees)), degrees


def own_noise(field: Mapping[str, Scores]) -> dict[str, tuple[float, int] | None]:
    """Return by how much runs of each competitor differ on the same cases: deviation and degrees of freedom.

    A few seeds tell little, so each variance is drawn towards the typical one of the field, which counts as
    `TYPICAL_DEGREES` more: the median, which one unsteady competitor does not move. Where a competitor has one seed it
    is `run_noise`, that of all together.
    """
    common = run_noise(field)
    own = {
        entry: pooled_deviation([[foreground_mean(table) for table in scores[fold]] for fold in sorted(scores)])
        for entry, scores in field.items()
    }
    known = [found for found in own.values() if found]
    most = sum(degrees for _, degrees in known)  # that the whole field has
    # The median of a sample's variance lies below the variance by this factor, a lot where there are few seeds.
    typical = np.median([dev**2 * degrees / stats.chi2.ppf(0.5, degrees) for dev, degrees in known]) if known else 0.0

    def drawn(deviation: float, degrees: int) -> tuple[float, int]:
        total = degrees + TYPICAL_DEGREES
        return float(np.sqrt((deviation**2 * degrees + typical * TYPICAL_DEGREES) / total)), min(total, most)

    return {entry: drawn(*found) if found else common for entry, found in own.items()}


def fold_noise(first: Scores, second: Scores) -> Noise | None:
    """Return the mean over folds of the difference between two methods, as it differs from fold to fold.

    None below three folds. Source: nnU-Net Revisited (Isensee et al. 2024): a difference below the noise from fold to
    fold is none.
    """
    differences = _fold_means(first) - _fold_means(second)
    differences = differences[~np.isnan(differences)]
    if len(differences) < FEWEST_FOLDS:
        return None
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    return Noise(float(differences.mean()), float(error), len(differences) - 1)


def _fold_means(scores: Scores) -> np.ndarray:
    """Return the mean of the runs of each fold; folds may have different numbers of seeds."""
    return np.array([np.mean(run_means({fold: scores[fold]})) for fold in sorted(scores)])


def run_noise_of(
    difference: float, first: tuple[float, int] | None, runs: int, second: tuple[float, int] | None, other_runs: int
) -> Noise | None:
    """Return the difference of the means of so many runs, by the noise of either method; None where it is unknown."""
    if first is None or second is None:
        return None
    error = float(np.sqrt(first[0] ** 2 / runs + second[0] ** 2 / other_runs))
    return Noise(difference, error, min(first[1], second[1]))


def margin_of(noise: Noise) -> float:
    """Return by how much two methods that are equally good differ at most, at 95 %."""
    return float(stats.t.ppf(0.975, noise.degrees) * noise.error)


def noise_p(noise: Noise) -> float:
    """Return the two-sided p of a difference of means by Student's t; 1 where there is no difference."""
    if noise.difference == 0:
        return 1.0
    return 0.0 if noise.error == 0 else float(2 * stats.t.sf(abs(noise.difference) / noise.error, noise.degrees))
