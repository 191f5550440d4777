"""The matrix of runs: entries (network, trainer, recipe) times data sets, folds and seeds."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autoseg import plugins
from autoseg.benchmarking.options import options_of_each
from autoseg.benchmarking.question import Question, Recipe
from autoseg.benchmarking.recipes import PRECISION, own_settings, recipe_of
from autoseg.errors import UserError

USUAL_TRAINER = "supervised"
log = logging.getLogger(__name__)
ALL = "all"


@dataclass(frozen=True)
class Plugin:
    """A network or trainer: its name, what finds it in another process, its class, and a network's options."""

    name: str
    reference: str
    kind: Any
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One competitor."""

    architecture: Plugin
    trainer: Plugin
    recipe: Recipe

    @property
    def name(self) -> str:
        """Return what people call it: the network, and what else is unusual."""
        trainer = "" if self.trainer.name == USUAL_TRAINER else f" + {self.trainer.name}"
        recipe = "" if self.recipe == "common" else f" ({self.recipe} recipe)"
        return f"{self.architecture.name}{trainer}{recipe}"

    @property
    def key(self) -> str:
        """Return a name for files."""
        return f"{self.architecture.name}-{self.trainer.name}-{self.recipe}"


@dataclass(frozen=True)
class Run:
    """One training: an entry on a fold of a data set, with a seed."""

    dataset: str
    entry: Entry
    fold: str
    seed: int

    @property
    def key(self) -> str:
        """Return the name of the run in the record."""
        return f"{self.dataset}/{self.entry.key}/fold_{self.fold}/seed_{self.seed}"

    def __str__(self) -> str:
        return f"{self.dataset}, {self.entry.name}, fold {self.fold}, seed {self.seed}"


def competitors(question: Question, root: Path) -> tuple[list[Entry], dict[str, str]]:
    """Return the competitors, and {name: reason} of networks that cannot be loaded.

    A network is trained by the trainer that it names in its own recipe only, and only where the question names none.
    """
    architectures, broken = find_all("architecture", question.architectures, root)
    options = options_of_each(question.network_options, {one.name: one.kind for one in architectures}, broken)
    architectures = [replace(one, options=options[one.name]) for one in architectures]
    trainers, unusable = find_all("trainer", question.trainers or (USUAL_TRAINER,), root)
    if unusable:
        raise UserError(next(iter(unusable.values())))
    for trainer in trainers if question.trainers else ():
        _tell_limits(trainer, architectures)
    named: dict[str, Plugin] = {}
    if not question.trainers and question.kinds != ("common",):
        named = named_trainers(architectures, root)
    return entries_of(question, architectures, trainers, named), broken


def _tell_limits(trainer: Plugin, architectures: Sequence[Plugin]) -> None:
    """Warn of networks that a trainer which was asked for does nothing of its own to."""
    names = trainer.kind.only_for
    others = [one.name for one in architectures if names and one.name not in names]
    if others:
        log.warning(
            "trainer %s concerns %s only; it trains %s as %s does", trainer.name, ", ".join(names), ", ".join(others),
            USUAL_TRAINER,
        )  # fmt: skip


def find_all(kind: plugins.Kind, references: Sequence[str], root: Path) -> tuple[list[Plugin], dict[str, str]]:
    """Return the plug-ins asked for, each once, and {name: reason} of those that cannot be loaded.

    An unknown name is a UserError with the closest ones.
    """
    if kind == "architecture" and tuple(references) == (ALL,):
        references = [found.name for found in plugins.list_plugins(kind, root)]
    loaded: dict[str, Plugin] = {}
    broken: dict[str, str] = {}
    for reference in references:
        found = plugins.find(kind, reference, root)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", found.name):
            raise UserError(f"{kind} {found.name!r} cannot be part of a file name", where=found.path)
        other = loaded.get(found.name)
        if other is not None and other.reference != found.reference:
            raise UserError(
                f"two {kind}s are called {found.name!r}: {other.reference} and {found.reference}", mend="rename one"
            )
        try:
            kind_class = plugins.load(kind, f"{found.path}:{found.name}", root)  # no second search through all files
            loaded[found.name] = Plugin(found.name, found.reference, kind_class)
        except UserError as error:
            broken[found.name] = str(error)
    return list(loaded.values()), broken


def named_trainers(architectures: Sequence[Plugin], root: Path) -> dict[str, Plugin]:
    """Return {name: trainer} of the trainers that networks name as their authors' own; one not there is a UserError."""
    named: dict[str, Plugin] = {}
    for architecture in architectures:
        name = architecture.kind.trainer
        if name is None or name in named:
            continue
        try:
            loaded, broken = find_all("trainer", [name], root)
        except UserError as error:
            raise UserError(
                f"architecture {architecture.name!r} names the trainer {name!r}: {error.what}",
                where=error.where, mend="correct its attribute `trainer`, or choose one for all: --trainers supervised",
            ) from None  # fmt: skip
        if broken:
            raise UserError(f"the trainer that architecture {architecture.name!r} names: {broken[name]}")
        named[name] = loaded[0]
    return named


def entries_of(
    question: Question,
    architectures: Sequence[Plugin],
    trainers: Sequence[Plugin],
    named: Mapping[str, Plugin] | None = None,
) -> list[Entry]:
    """Return the competitors; where nobody chose a recipe, own and common are the same and one entry.

    `named`: trainers that networks name; but in the common recipe such a network is trained by its own.
    """
    from autoseg.training import Trainer

    named = named or {}
    for trainer in (*trainers, *named.values()):
        if not trainer.kind.needs_labels:
            raise UserError(
                f"trainer {trainer.name!r} is a pretraining method and predicts no labels", mend="leave it out"
            )
    entries = []
    for trainer in trainers:
        for architecture in architectures:
            kinds, own = list(question.kinds), named.get(architecture.kind.trainer, trainer)
            if own.name == trainer.name and not own_settings(architecture.kind, own.kind, Trainer):
                kinds = list(dict.fromkeys("common" if kind == "own" else kind for kind in kinds))
            entries += [Entry(architecture, trainer if kind == "common" else own, kind) for kind in kinds]
    return entries


def content_of(entry: Entry, steps: int, shared: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the entry's recipe file."""
    from autoseg.training import Trainer

    return recipe_of(entry.recipe, steps, shared, entry.architecture.kind, entry.trainer.kind, Trainer)


def distinct(entries: Sequence[Entry], shared: Mapping[str, Any]) -> tuple[list[Entry], list[tuple[Entry, Entry]]]:
    """Return the entries that differ, and (twin, entry) of those whose recipe comes out as that of another entry.

    Of twins the common recipe stays, then the own one; of trainers that do the same to a network, the usual one.
    """
    twins: list[tuple[Entry, Entry]] = []
    kept: list[Entry] = []
    order = ("common", "own", "published")
    for entry in sorted(entries, key=lambda one: (order.index(one.recipe), one.trainer.name != USUAL_TRAINER)):
        twin = next((other for other in kept if _same(entry, other, shared)), None)
        if twin is None:
            kept.append(entry)
        else:
            twins.append((entry, twin))
    return [entry for entry in entries if entry in kept], twins


def _same(one: Entry, other: Entry, shared: Mapping[str, Any]) -> bool:
    """Return whether two entries train the same network in the same way."""
    from autoseg.training import Trainer

    if (one.architecture.name, _at_work(one)) != (other.architecture.name, _at_work(other)):
        return False
    recipes = [content_of(entry, 1000, shared) for entry in (one, other)]
    names = {*recipes[0], *recipes[1], *one.architecture.kind.recipe} - {PRECISION}  # that is in no recipe's hands
    usual = {name: getattr(one.trainer.kind, name, getattr(Trainer, name, None)) for name in names}
    first, second = ({**usual, **recipe, PRECISION: None} for recipe in recipes)
    return first == second


def _at_work(entry: Entry) -> str:
    """Return the trainer that makes a difference to the network."""
    names = entry.trainer.kind.only_for
    return entry.trainer.name if not names or entry.architecture.name in names else USUAL_TRAINER


def in_words(twin: Entry, kept: Entry) -> str:
    """Return why a competitor is the same as another one."""
    if twin.trainer.name != kept.trainer.name:
        return f"trainer {twin.trainer.name} trains {twin.architecture.name} as {kept.trainer.name} does"
    recipe = "the common one" if kept.recipe == "common" else "its own one"
    return f"at this length its {twin.recipe} recipe is {recipe}"


def runs_of(dataset: str, entries: Sequence[Entry], folds: Sequence[str], seed: int) -> Iterator[Run]:
    """Yield the runs of one seed on a data set."""
    for fold in folds:
        yield from (Run(dataset, entry, fold, seed) for entry in entries)
