"""The verdict in sentences."""

from __future__ import annotations

from collections.abc import Mapping

from autoseg.benchmarking.statistics import FEWEST_FOLDS
from autoseg.benchmarking.tables import listed
from autoseg.benchmarking.verdict import FEW_CASES, Verdict

MOST_NAMED = 8
FEWEST_METHODS = 3  # whose deviation tells something of a data set
SEPARATING = 2.0  # ratio of the deviations from which on a data set tells methods apart


def verdict_sentences(verdict: Verdict, names: Mapping[str, str]) -> list[str]:
    """Return the result on one data set: a winner, or that there is none and what cannot be told apart."""
    best = verdict.standings[0]
    leader, dice = names[best.entry], f"{best.mean:.3f}"
    if len(verdict.standings) == 1:
        return [f"Only {leader} has finished runs ({dice}); there is nothing to compare it with."]
    if verdict.winner is not None:
        several = verdict.folds >= FEWEST_FOLDS
        seeds = "seeds" if best.runs > verdict.folds else "runs of one seed"
        noise = f"{seeds} or folds" if several else seeds
        return [
            f"{leader} is best {'' if several else 'on this split '}with a mean Dice of {dice}: better than every "
            "other method, each with a 95 % interval of the difference that excludes zero, a corrected p below 0.05, "
            f"and by more than {noise} may make."
        ]
    if verdict.barred is not None:
        return [
            f"No winner. {leader} has the highest mean Dice ({dice}), but failed on a part of this campaign: "
            f"{verdict.barred}"
        ]
    if not verdict.not_worse:
        return [
            f"No winner. On these cases {leader} is best with a mean Dice of {dice}, beyond chance, but by one run, "
            "which cannot tell a method from its luck: add seeds (--seeds 3)."
        ]
    others = [names[entry] for entry in verdict.not_worse]
    return [
        f"No winner. {leader} has the highest mean Dice ({dice}), but {len(others)} of the other "
        f"{len(verdict.standings) - 1} cannot be told from it: {listed(others, MOST_NAMED)}."
    ]


def stability_sentences(verdict: Verdict, names: Mapping[str, str]) -> list[str]:
    """Return how firm the ranking is, and whether the data set separates methods at all."""
    said = []
    if verdict.tau is not None:
        mean, low, high = verdict.tau
        said.append(
            f"Rankings of resampled cases and seeds agree with this one by Kendall's tau {mean:.2f} on average (95 % "
            f"of them {low:.2f} to {high:.2f}; 1 is the same order)."
        )
    if verdict.suitability is not None and verdict.inter_deviation is not None and verdict.intra_deviation is not None:
        enough = len(verdict.standings) >= FEWEST_METHODS and verdict.units >= FEW_CASES
        words = "so the data set hardly separates the methods"
        if verdict.suitability >= SEPARATING:
            words = "so the data set separates the methods" if enough else "of too few methods or cases to say more"
        said.append(
            f"Means of methods deviate by {verdict.inter_deviation:.4f}, runs of one method by "
            f"{verdict.intra_deviation:.4f}: a ratio of {verdict.suitability:.1f}, {words}."
        )
        if verdict.winner is not None and verdict.suitability < SEPARATING:
            said.append("The winner is told by differences on the same cases and folds, which deviate less.")
    return said
