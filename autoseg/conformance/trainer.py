"""The contract of a trainer: typed settings, methods that fit, and a short training that works and repeats."""

from __future__ import annotations

import inspect
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from autoseg.conformance.findings import Finding, attempt, require
from autoseg.conformance.tiny_workspace import CONFIGURATIONS, PLANS, make_workspace
from autoseg.plugins import Found, find, load
from autoseg.storage import file_hash, read_json
from autoseg.training import Trainer, declared_settings, pretrain, train
from autoseg.training.checkpoint import WEIGHTS_FILE

STEPS = 3


def check(found: Found, trainer: type[Trainer]) -> Iterator[Finding]:
    """Yield one finding per check; the trainings run on a made-up data set of a few small cases."""
    plugin = f"trainer {found.name}"
    yield attempt(plugin, "is a Trainer", lambda: _is_trainer(trainer))
    yield attempt(plugin, "settings are typed", lambda: _settings(trainer))
    yield attempt(plugin, "methods fit the contract", lambda: _methods(trainer))
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_workspace(Path(folder))
        weights: dict[str, str] = {}  # by configuration: the hash of what was trained
        for configuration in CONFIGURATIONS:
            yield attempt(
                plugin,
                f"{configuration}: trains {STEPS} steps",
                lambda name=configuration: _trains(found, trainer, dataset, Path(folder), name, weights),
            )
        yield attempt(
            plugin,
            "the same seed gives the same weights",
            lambda: _repeats(found, trainer, dataset, Path(folder), weights),
        )


def _is_trainer(trainer: type[Trainer]) -> None:
    require(isinstance(trainer, type) and issubclass(trainer, Trainer), "it must derive Trainer")


def _settings(trainer: type[Trainer]) -> None:
    declared = declared_settings(trainer)
    for name, kind in declared.items():
        require(hasattr(trainer, name), f"setting {name} needs a default value")
        try:
            TypeAdapter(kind).validate_python(getattr(trainer, name), strict=True)
        except ValidationError:
            require(isinstance(getattr(trainer, name), int) and kind is float, f"the default of {name} is no {kind}")
    for base in trainer.__mro__[: trainer.__mro__.index(Trainer)]:
        for name, value in vars(base).items():
            plain = isinstance(value, (bool, int, float, str, tuple)) and not name.startswith("_")
            require(
                not plain or name in declared or name in base.__annotations__,
                f"{name} has no type, so it cannot be set; write `{name}: {type(value).__name__} = {value!r}`",
            )


def _methods(trainer: type[Trainer]) -> None:
    """An overridden method must take what the training loop gives to the method of the base class."""
    for name, base in inspect.getmembers(Trainer, inspect.isfunction):
        own = getattr(trainer, name)
        if own is base or name == "__init__":
            continue
        given = [
            parameter
            for parameter in inspect.signature(base).parameters.values()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty
        ]
        try:
            inspect.signature(own).bind(*given)
        except TypeError as error:
            names = ", ".join(parameter.name for parameter in given)
            require(False, f"{name} must take ({names}): {error}")


def _run(found: Found, trainer: type[Trainer], dataset: str, workspace: Path, configuration: str) -> Path:
    options = {
        "trainer": found.reference,
        "plans_name": PLANS,
        "settings": {"steps": STEPS},
        "device": "cpu",
        "deterministic": True,
        "restart": True,
        "workspace": workspace,
    }
    runs = (
        train(dataset, configuration, "0", **options)
        if trainer.needs_labels
        else pretrain(dataset, configuration, **options)
    )
    return runs[0]


def _trains(
    found: Found,
    trainer: type[Trainer],
    dataset: str,
    workspace: Path,
    configuration: str,
    weights: dict[str, str],
) -> None:
    for name in trainer.builds_on:
        _run(find("trainer", name), load("trainer", name), dataset, workspace, configuration)
    run = _run(found, trainer, dataset, workspace, configuration)
    record = read_json(run / "run.json")
    require(record["status"] == "finished", f"the run must finish, but is {record['status']}")
    require(record["steps_done"] == STEPS, f"{STEPS} steps were asked for, {record['steps_done']} were done")
    events = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [event["loss"] for event in events if event.get("event") == "step"]
    require(all(math.isfinite(loss) for loss in losses), f"losses must be finite, got {losses}")
    weights[configuration] = file_hash(run / WEIGHTS_FILE)


def _repeats(found: Found, trainer: type[Trainer], dataset: str, workspace: Path, weights: Mapping[str, str]) -> None:
    configuration = CONFIGURATIONS[0]
    require(configuration in weights, f"no training of {configuration} came to its end, so none can be repeated")
    again = file_hash(_run(found, trainer, dataset, workspace, configuration) / WEIGHTS_FILE)
    require(again == weights[configuration], "two trainings with one seed ended with different weights")
