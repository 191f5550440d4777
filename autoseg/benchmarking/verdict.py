"""What the scores allow to say: standings, comparisons of all pairs, and a winner only where there is one."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
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
    cases: int
    p: float
    corrected: float
    margin: float | None  # what the means of so many runs of equally good methods may differ by; None: unknown
    ranks_agree: bool = True  # with the mean: not so where a few bad cases outweigh many that are a little better

    @property
    def below_noise(self) -> bool:
        """Return whether other seeds or folds alone could have made the difference."""
        return self.margin is not None and abs(self.difference) <= self.margin

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
    standings: tuple[Standing, ...]
    comparisons: tuple[Comparison, ...]
    winner: str | None  # None also where the best one has a single run: that cannot tell a method from its luck
    not_worse: tuple[str, ...]  # that cannot be told from the best one, the best one left out
    tau: tuple[float, float, float] | None  # Kendall's, of bootstrap rankings to this one: mean and interval
    inter_deviation: float | None  # of the means of different methods
    intra_deviation: float | None  # of runs of one method, over seeds and folds
    notes: tuple[str, ...] = ()

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
    cases: int
    ranks_agree: bool
    p: float


@dataclass
class _Draft:
    standings: list[Standing]
    pairs: list[_Pair]
    draws: dict[str, np.ndarray] = field(default_factory=dict)
    tau: tuple[float, float, float] | None = None


def judge(
    scores: Mapping[str, Mapping[str, Scores]],
    *,
    notes: Mapping[str, tuple[str, ...]] | None = None,
    seed: int = 0,
    resamples: int = paired.RESAMPLES,
) -> tuple[list[Verdict], list[Overall]]:
    """Return the verdict on every data set, and the ranking over all of them if there are several.

    `scores`: data set -> competitor -> scores, see `statistics`. p-values are corrected over all pairs of all data
    sets. Neither the order of data sets nor that of competitors changes anything.
    """
    drafts = {name: _draft(name, dict(sorted(field.items())), seed, resamples) for name, field in scores.items()}
    order = [(name, index) for name in sorted(drafts) for index in range(len(drafts[name].pairs))]
    corrected = dict(zip(order, paired.holm([drafts[name].pairs[index].p for name, index in order]), strict=True))
    verdicts = []
    for name, draft in drafts.items():
        said = (notes or {}).get(name, ())
        verdicts.append(_verdict(name, scores[name], draft, corrected, len(order), said))
    return verdicts, _overall(drafts)


def _draft(name: str, field: dict[str, Scores], seed: int, resamples: int) -> _Draft:
    entries = list(field)
    means = np.array([paired.foreground_mean(paired.case_table(scores)) for scores in field.values()])
    draws = paired.bootstrap_means(field, stream=name, seed=seed, resamples=resamples)
    ranks, drawn = paired.ranks(means), paired.ranks(np.stack([draws[entry] for entry in entries], axis=1))
    firsts = (drawn == drawn.min(axis=1, keepdims=True)) / (drawn == drawn.min(axis=1, keepdims=True)).sum(
        axis=1, keepdims=True
    )
    standings = []
    for index, entry in enumerate(entries):
        runs = paired.run_means(field[entry])
        low, high = np.percentile(drawn[:, index], paired.INTERVAL)
        standings.append(
            Standing(
                entry, float(means[index]), paired.interval(draws[entry]), len(runs),
                _first(paired.pooled_deviation([runs])), float(ranks[index]), float(drawn[:, index].mean()),
                (float(low), float(high)), float(firsts[:, index].mean()),
            )
        )  # fmt: skip
    standings.sort(key=lambda standing: (standing.rank, standing.entry))
    ordered = [standing.entry for standing in standings]
    pairs = []
    for first, second in itertools.combinations(ordered, 2):
        differences = paired.paired_differences(field[first], field[second])
        gap = means[entries.index(first)] - means[entries.index(second)]
        agree = paired.rank_sign(differences) * gap >= 0
        pairs.append(_Pair(first, second, float(gap), paired.interval(draws[first] - draws[second]),
                           len(differences), bool(agree), paired.signed_rank_p(differences)))  # fmt: skip
    tau = None
    if len(entries) > 1:
        taus = paired.kendall_taus(drawn, ranks)
        taus = taus[~np.isnan(taus)]
        if taus.size:
            tau = (float(taus.mean()), *map(float, np.percentile(taus, paired.INTERVAL)))
    return _Draft(standings, pairs, dict(zip(entries, drawn.T, strict=True)), tau)


def _verdict(
    name: str, field: Mapping[str, Scores], draft: _Draft, corrected: Mapping[tuple[str, int], float], comparisons: int,
    notes: tuple[str, ...],
) -> Verdict:  # fmt: skip
    intra = _first(paired.pooled_deviation([paired.run_means(scores) for scores in field.values()]))
    noise, counts = paired.own_noise(field), {standing.entry: standing.runs for standing in draft.standings}
    means = [standing.mean for standing in draft.standings]
    inter = float(np.std(means, ddof=1)) if len(means) > 1 else None

    def margin(first: str, second: str) -> float | None:
        seeds = paired.noise_margin(noise[first], counts[first], noise[second], counts[second])
        known = [each for each in (seeds, paired.fold_margin(field[first], field[second])) if each is not None]
        return max(known, default=None)

    found = tuple(
        Comparison(pair.first, pair.second, pair.difference, pair.interval, pair.cases, pair.p,
                   corrected[name, index], margin(pair.first, pair.second), pair.ranks_agree)
        for index, pair in enumerate(draft.pairs)
    )  # fmt: skip
    best, runs = draft.standings[0].entry, draft.standings[0].runs
    against = [comparison for comparison in found if comparison.first == best]
    open_ones = tuple(comparison.second for comparison in against if not comparison.decided)
    cases = len(paired.case_table(next(iter(field.values()))))
    winner = best if against and not open_ones and runs > 1 else None
    warnings = _warnings(found, cases, comparisons, intra, against)
    return Verdict(name, cases, tuple(draft.standings), found, winner, open_ones, draft.tau, inter, intra,
                   (*notes, *warnings))  # fmt: skip


def _first(found: tuple[float, int] | None) -> float | None:
    return None if found is None else found[0]


def _warnings(
    found: tuple[Comparison, ...], cases: int, comparisons: int, intra: float | None, against: list[Comparison]
) -> list[str]:
    said = []
    if found and paired.smallest_p(cases) * comparisons >= LEVEL:
        said.append(
            f"With {cases} cases no difference, however large, can pass the correction for {comparisons} comparisons: "
            "no winner is possible here. More folds (more cases), or fewer methods in one campaign, would change that."
        )
    if cases < FEW_CASES:
        said.append(f"With {cases} cases bootstrap intervals are narrower than they should be.")
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
