"""What the scores allow to say: standings, comparisons of all pairs, and a winner only where there is one."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from autoseg.benchmarking import statistics as paired
from autoseg.benchmarking.statistics import Scores

LEVEL = 0.05
FEW_CASES = 10  # below, the percentile bootstrap is known to be too narrow


@dataclass(frozen=True)
class Standing:
    """One competitor on one data set."""

    entry: str
    mean: float
    interval: tuple[float, float] | None
    runs: int
    deviation: float | None  # between runs (seeds and folds)
    rank: float
    mean_rank: float  # over bootstrap draws
    rank_interval: tuple[float, float]
    share_first: float


@dataclass(frozen=True)
class Comparison:
    """Two competitors on one data set: the first minus the second."""

    first: str
    second: str
    difference: float
    interval: tuple[float, float] | None
    units: int  # independent ones: patients, where cases are grouped
    rank_p: float  # of the signed ranks over units, alone
    p: float  # the largest of that, of the noise between runs, and of that between folds
    corrected: float
    margin: float | None  # what the means of so many runs of equally good methods may differ by; None: unknown
    ranks_agree: bool = True  # with the mean: not so where a few bad cases outweigh many that are a little better
    below_noise: bool = False  # other seeds or folds alone could have made the difference

    @property
    def decided(self) -> bool:
        """Return whether one is better: an interval without zero, a corrected p below 0.05 whose ranks say the same as
        the mean, and a difference beyond the noise.
        """
        if self.interval is None or self.below_noise or not self.ranks_agree:
            return False
        return not self.interval[0] <= 0 <= self.interval[1] and self.corrected < LEVEL


@dataclass(frozen=True)
class Verdict:
    """Everything about one data set; `standings` best first, all pairs in their order."""

    dataset: str
    cases: int
    units: int  # independent ones among them: patients, where cases are grouped
    folds: int
    standings: tuple[Standing, ...]
    comparisons: tuple[Comparison, ...]
    winner: str | None  # None also where the best one is barred, or has a single run: that may be its luck
    not_worse: tuple[str, ...]  # that cannot be told from the best one, the best one left out
    tau: tuple[float, float, float] | None  # Kendall's, of bootstrap rankings to this one: mean and interval
    inter_deviation: float | None  # of the means of different methods
    intra_deviation: float | None  # of runs of one method, over seeds and folds
    notes: tuple[str, ...] = ()
    barred: str | None = None  # why the best one cannot be called the winner, whatever its mean

    @property
    def suitability(self) -> float | None:
        """Return how far methods differ more than runs do: small means the data set cannot tell them apart."""
        if self.inter_deviation is None or not self.intra_deviation:
            return None
        return self.inter_deviation / self.intra_deviation

    def comparison(self, first: str, second: str) -> Comparison | None:
        """Return the comparison of two competitors, in whichever order it is kept."""
        return next((c for c in self.comparisons if {c.first, c.second} == {first, second}), None)


@dataclass(frozen=True)
class Overall:
    """A competitor over all data sets that it was run on with all others."""

    entry: str
    mean_rank: float
    rank_interval: tuple[float, float]
    share_first: float


@dataclass(frozen=True)
class _Pair:
    first: str
    second: str
    difference: float
    interval: tuple[float, float] | None
    units: int
    ranks_agree: bool
    rank_p: float
    p: float
    margin: float | None
    below_noise: bool


@dataclass
class _Draft:
    standings: list[Standing]
    pairs: list[_Pair]
    cases: int
    units: int
    draws: dict[str, np.ndarray] = field(default_factory=dict)
    tau: tuple[float, float, float] | None = None


def judge(
    scores: Mapping[str, Mapping[str, Scores]],
    *,
    notes: Mapping[str, tuple[str, ...]] | None = None,
    units: Mapping[str, Sequence[str] | None] | None = None,
    barred: Mapping[str, Mapping[str, str]] | None = None,
    seed: int = 0,
    resamples: int = paired.RESAMPLES,
) -> tuple[list[Verdict], list[Overall]]:
    """Return the verdict on every data set, and the ranking over all of them if there are several.

    `scores`: data set -> competitor -> scores; `units`: data set -> the unit of every case, see `statistics`; `barred`:
    data set -> competitor -> why it cannot win. p-values are corrected over all pairs of all data sets. Neither the
    order of data sets nor that of competitors changes anything.
    """
    drafts = {
        name: _draft(name, dict(sorted(field.items())), (units or {}).get(name), seed, resamples)
        for name, field in scores.items()
    }
    order = [(name, index) for name in sorted(drafts) for index in range(len(drafts[name].pairs))]
    corrected = dict(zip(order, paired.holm([drafts[name].pairs[index].p for name, index in order]), strict=True))
    verdicts = []
    for name, draft in drafts.items():
        found = tuple(
            Comparison(pair.first, pair.second, pair.difference, pair.interval, pair.units, pair.rank_p,
                       pair.p, corrected[name, index], pair.margin, pair.ranks_agree, pair.below_noise)
            for index, pair in enumerate(draft.pairs)
        )  # fmt: skip
        said, kept = (notes or {}).get(name, ()), (barred or {}).get(name, {})
        verdicts.append(_verdict(name, scores[name], draft, found, len(order), said, kept))
    return verdicts, _overall(drafts)


def _draft(name: str, field: dict[str, Scores], units: Sequence[str] | None, seed: int, resamples: int) -> _Draft:
    entries = list(field)
    tables = {entry: paired.case_table(scores) for entry, scores in field.items()}
    means = {entry: paired.foreground_mean(table) for entry, table in tables.items()}
    draws = paired.bootstrap_means(field, stream=name, units=units, seed=seed, resamples=resamples)
    ranks = paired.ranks(np.array([means[entry] for entry in entries]))
    drawn = paired.ranks(np.stack([draws[entry] for entry in entries], axis=1))
    firsts = (drawn == drawn.min(axis=1, keepdims=True)) / (drawn == drawn.min(axis=1, keepdims=True)).sum(
        axis=1, keepdims=True
    )
    standings = []
    for index, entry in enumerate(entries):
        runs = paired.run_means(field[entry])
        low, high = np.percentile(drawn[:, index], paired.INTERVAL)
        standings.append(
            Standing(
                entry, means[entry], paired.interval(draws[entry]), len(runs),
                _first(paired.pooled_deviation([runs])), float(ranks[index]), float(drawn[:, index].mean()),
                (float(low), float(high)), float(firsts[:, index].mean()),
            )
        )  # fmt: skip
    standings.sort(key=lambda standing: (standing.rank, standing.entry))
    tau = None
    if len(entries) > 1:
        taus = paired.kendall_taus(drawn, ranks)
        taus = taus[~np.isnan(taus)]
        if taus.size:
            tau = (float(taus.mean()), *map(float, np.percentile(taus, paired.INTERVAL)))
    rows = next(iter(tables.values()))
    count = len(np.unique(paired.unit_of_rows(units, len(rows))))
    return _Draft(
        standings, _pairs(standings, field, units, draws), len(rows), count, dict(zip(entries, drawn.T, strict=True)),
        tau,
    )  # fmt: skip


def _pairs(
    standings: Sequence[Standing], field: Mapping[str, Scores], units: Sequence[str] | None,
    draws: Mapping[str, np.ndarray],
) -> list[_Pair]:  # fmt: skip
    """Return every pair, the better mean first.

    Its p is the largest of all its tests, so that correcting it for many comparisons holds for each of them: noise
    that all cases of a run share is none that a test over cases can see.
    """
    noise = paired.own_noise(field)
    pairs = []
    for one, other in itertools.combinations(standings, 2):
        first, second = one.entry, other.entry
        differences = paired.paired_differences(field[first], field[second], units)
        gap = one.mean - other.mean
        of_runs = paired.mean_of_runs(field[first]) - paired.mean_of_runs(field[second])
        found = (
            paired.run_noise_of(of_runs, noise[first], one.runs, noise[second], other.runs),
            paired.fold_noise(field[first], field[second]),
        )
        known = [each for each in found if each is not None]
        rank_p = paired.signed_rank_p(differences)
        p = max([rank_p, *map(paired.noise_p, known)])
        agree = all(sign * gap >= 0 for sign in (paired.rank_sign(differences), *(each.difference for each in known)))
        margin = max(map(paired.margin_of, known), default=None)
        within = any(abs(each.difference) <= paired.margin_of(each) for each in known)
        span = paired.interval(draws[first] - draws[second])
        pairs.append(_Pair(first, second, float(gap), span, len(differences), bool(agree), rank_p, p, margin, within))
    return pairs


def _verdict(
    name: str, field: Mapping[str, Scores], draft: _Draft, found: tuple[Comparison, ...], comparisons: int,
    notes: tuple[str, ...], barred: Mapping[str, str],
) -> Verdict:  # fmt: skip
    intra = _first(paired.pooled_deviation([paired.run_means(scores) for scores in field.values()]))
    means = [standing.mean for standing in draft.standings]
    inter = float(np.std(means, ddof=1)) if len(means) > 1 else None
    best, runs = draft.standings[0].entry, draft.standings[0].runs
    against = [comparison for comparison in found if comparison.first == best]
    open_ones = tuple(comparison.second for comparison in against if not comparison.decided)
    folds = len(next(iter(field.values())))
    winner = best if against and not open_ones and runs > 1 and best not in barred else None
    warnings = _warnings(found, draft, comparisons, intra, against, folds)
    return Verdict(name, draft.cases, draft.units, folds, tuple(draft.standings), found, winner, open_ones, draft.tau,
                   inter, intra, (*notes, *warnings), barred.get(best))  # fmt: skip


def _first(found: tuple[float, int] | None) -> float | None:
    return None if found is None else found[0]


def _warnings(
    found: tuple[Comparison, ...], draft: _Draft, comparisons: int, intra: float | None, against: list[Comparison],
    folds: int,
) -> list[str]:  # fmt: skip
    said, counted = [], f"{draft.units} cases"
    if draft.units < draft.cases:
        counted = f"{draft.units} groups of cases"
        said.append(
            f"The {draft.cases} cases are of {draft.units} groups (patients, or cases that several folds score), which "
            "count as one each in tests and intervals: cases of a group are no independent evidence."
        )
    if found and paired.smallest_p(draft.units) * comparisons >= LEVEL:
        said.append(
            f"With {counted} no difference, however large, can pass the correction for {comparisons} comparisons: "
            "no winner is possible here. More folds (more cases), or fewer methods in one campaign, would change that."
        )
    if draft.units < FEW_CASES:
        said.append(f"With {counted} bootstrap intervals are narrower than they should be.")
    if found and folds < paired.FEWEST_FOLDS:
        said.append(
            f"{folds} fold(s): how much differences vary from one split to another is unknown, and what is said here "
            "holds for this split. More folds would tell, where the data set has them (--folds cv)."
        )
    if intra is None:
        said.append(
            "Every method has one run only, so the noise between runs is unknown and the intervals do not contain it: "
            "add seeds (--seeds 3)."
        )
    close = [comparison for comparison in against if comparison.below_noise]
    if close:
        said.append(
            f"The lead of the best method over {len(close)} other(s) is no larger than what other seeds or folds make "
            f"of it (up to {max(c.margin or 0 for c in against if c.below_noise):.4f}) and must not be claimed."
        )
    turned = [comparison.second for comparison in against if not comparison.ranks_agree]
    if turned:
        said.append(
            f"Most cases say the opposite of the mean for {len(turned)} other(s): the best mean comes from a few cases "
            "where the other method fails. That is no difference to be claimed either way; look at those cases."
        )
    return said


def _overall(drafts: Mapping[str, _Draft]) -> list[Overall]:
    """Return the ranking over data sets by mean rank among those that were run on all of them."""
    common = set.intersection(*(set(draft.draws) for draft in drafts.values())) if drafts else set()
    if len(drafts) < 2 or len(common) < 2:
        return []
    entries = sorted(common)
    ranked = []
    for name in sorted(drafts):
        placed = np.stack([drafts[name].draws[entry] for entry in entries], axis=1)
        ranked.append(paired.ranks(-placed))  # among the common ones only
    mean = np.mean(ranked, axis=0)
    lowest = mean == mean.min(axis=1, keepdims=True)
    firsts = lowest / lowest.sum(axis=1, keepdims=True)
    result = []
    for index, entry in enumerate(entries):
        low, high = np.percentile(mean[:, index], paired.INTERVAL)
        result.append(
            Overall(entry, float(mean[:, index].mean()), (float(low), float(high)), float(firsts[:, index].mean()))
        )
    return sorted(result, key=lambda overall: (overall.mean_rank, overall.entry))
