"""Names of cases that are one name: in one data set, in training and testing, or on the disks of some systems."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from autoseg.raw.dataset import Case
from autoseg.raw.problems import Problem, short


def on_disk(name: str) -> str:
    """Return what is the same for names that are one file on Windows or macOS, where case does not count."""
    return unicodedata.normalize("NFC", name).casefold()


def doubled_names(kept: Sequence[Case], test: Sequence[Case], file: Path) -> list[Problem]:
    """Return what is wrong with the names of the cases that training sees, and of those for testing; `file` lists them.

    The former are stored in one folder, under their names; those for testing are predicted into one of their own.
    """
    return [*_doubles(kept, file), *_alike(kept), *_alike(test), *_in_both(kept, test)]


def _doubles(cases: Iterable[Case], file: Path) -> Iterator[Problem]:
    seen = set()
    for case in cases:
        if case.id in seen:
            mend = "give every case a name of its own"
            yield Problem("two cases have this name", str(file), case=case.id, mend=mend)
        seen.add(case.id)


def _alike(cases: Iterable[Case]) -> Iterator[Problem]:
    """Yield a warning for every name that another one differs from only in what some systems do not see."""
    seen: dict[str, str] = {}
    for case in cases:
        other = seen.setdefault(on_disk(case.id), case.id)
        if other == case.id:
            continue
        by_form = other.casefold() != case.id.casefold()  # which looks the same, so the codes are shown
        how, shown = ("Unicode form", ascii(other)) if by_form else ("letter case", repr(other))
        yield Problem(
            f"the name differs from that of case {short(shown)} by its {how} alone: on Windows or macOS the files that "
            "are written for one would replace those for the other",
            str(case.images[0]),
            case=case.id,
            value=other,
            mend="rename one of the two cases",
            severity="warning",
        )


def _in_both(kept: Iterable[Case], test: Iterable[Case]) -> Iterator[Problem]:
    """Yield a warning for every name for testing that training has, too: what is trained on may be tested on."""
    seen = {on_disk(case.id): case for case in kept}
    for case in test:
        other = seen.get(on_disk(case.id))
        if other is not None:
            what, image = "training" if other.label else "unlabelled", other.images[0]
            yield Problem(
                f"one of the {what} cases has this name, too: {short(f'{image.parent.name}/{image.name}')}",
                str(case.images[0]),
                case=case.id,
                mend="remove one of them if they show one patient, else rename one",
                severity="warning",
            )
