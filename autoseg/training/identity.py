"""What makes a run the same run: a second start with other settings, seed or data must not pass for the first one."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoseg import plugins
from autoseg.errors import InputsGone, UserError
from autoseg.storage import file_hash
from autoseg.training.checkpoint import STATE_FILE, WEIGHTS_FILE
from autoseg.training.log import RUN_FILE, is_trained, read_run
from autoseg.training.pretrained import find_weights
from autoseg.training.trainer import Trainer

logger = logging.getLogger("autoseg.training")
# What may change between the starts of one run: how it is watched and carried out, not what is learned.
FREE_SETTINGS = frozenset({"checkpoint_minutes", "compile", "observed_cases", "stop_on_collapse"})
LATER_SETTINGS = {"own_decay": False}  # that earlier versions did not have, at what they did
INPUTS = "input files"  # of the trainer, by their content
PLUGIN_FILES = ("trainer file", "architecture file")
MEND = "give the options of the first start, keep both with --name NAME, or train anew with --restart"


def identity(trainer: Trainer, reference: str, pretrained: Path | None, *, kept: Path | None = None) -> dict[str, Any]:
    """Return what two starts must share to be one run, as values for JSON; `reference` is that of the trainer.

    `kept` is the folder of a run that may be the one: where it is finished it needs its input files no more, and those
    that are gone are taken as it recorded them. None: the run is to be trained anew.
    """
    context = trainer.context
    plugin_files = {
        f"{kind} file": plugins.loose_file(kind, name, context.workspace_root)
        for kind, name in (("trainer", reference), ("architecture", context.configuration.architecture))
    }
    inputs = _inputs(trainer, None if kept is None else _learnt_from(kept))
    return {
        **{name: None if file is None else file_hash(file) for name, file in plugin_files.items()},
        "seed": context.seed,
        "settings": {name: s.value for name, s in sorted(trainer.settings.items()) if name not in FREE_SETTINGS},
        "plan": context.configuration.model_dump(mode="json", exclude={"training"}),
        "training cases": sorted(context.training_cases),
        "unlabelled cases": sorted(context.unlabelled_cases),
        "pretrained weights": None if pretrained is None else file_hash(find_weights(pretrained)),
        **({INPUTS: inputs} if inputs else {}),
    }


def _inputs(trainer: Trainer, learnt_from: list[str] | None) -> list[str]:
    """Return the checksums of the input files; those `learnt_from` where none or only some of them are left."""
    try:
        found = sorted(file_hash(file) for file in trainer.inputs())
    except InputsGone:
        if learnt_from is None:
            raise
        return learnt_from
    return found if learnt_from is None or not Counter(found) <= Counter(learnt_from) else learnt_from


def _learnt_from(folder: Path) -> list[str] | None:
    """Return the checksums of the input files that the run in `folder` recorded; None where none is finished."""
    record = read_run(folder) if (folder / RUN_FILE).is_file() else {}
    return list((record.get("identity") or {}).get(INPUTS, [])) if is_trained(record) else None


def check_same_run(folder: Path, asked: Mapping[str, Any]) -> None:
    """Raise UserError, naming the first difference, when `folder` holds a run of another identity.

    What stopped before it had learnt anything to keep makes room. A stopped run goes on with a changed plug-in file,
    which is told; a finished one does not pass for the changed method.
    """
    if not (folder / RUN_FILE).is_file():
        return
    found = read_run(folder)
    if makes_room(folder, found):
        return
    kept = found.get("identity")
    if kept is not None and INPUTS not in kept:  # earlier versions recorded none
        kept = {**kept, INPUTS: asked.get(INPUTS)}
    if kept is not None and found.get("status") != "finished":  # a plug-in may be mended on the way
        for name in PLUGIN_FILES:
            if kept.get(name) != asked.get(name):
                logger.warning("the %s changed since %s was started; the run goes on with it", name, folder)
        kept = {**kept, **{name: asked.get(name) for name in PLUGIN_FILES}}
    if kept is not None:
        kept = {**kept, "settings": {**LATER_SETTINGS, **kept.get("settings", {})}}
    difference = None if kept is None else _difference(kept, asked)
    if difference is not None:
        raise UserError(f"this folder holds a run with {difference}", where=folder, mend=MEND)


def makes_room(folder: Path, record: Mapping[str, Any]) -> bool:
    """Return whether the run of this run.json stopped before it had learnt anything to keep."""
    return not has_learnt(folder) and record.get("status") in ("failed", "interrupted")


def has_learnt(folder: Path) -> bool:
    """Return whether the run in `folder` has learnt anything to keep."""
    return (folder / STATE_FILE).is_file() or (folder / WEIGHTS_FILE).is_file()


def _difference(kept: Any, asked: Any, name: str = "") -> str | None:
    """Return the first difference in words, such as "seed 0, not 1"."""
    if isinstance(kept, Mapping) and isinstance(asked, Mapping):
        for key in sorted({*kept, *asked}):
            found = _difference(kept.get(key), asked.get(key), f"{name} {key}".strip())
            if found is not None:
                return found
        return None
    if _plain(kept) == _plain(asked):
        return None
    if name.endswith("cases"):
        return f"{len(kept)} {name}, not {len(asked)}" if len(kept) != len(asked) else f"other {name}"
    if name in PLUGIN_FILES:
        return f"another {name}, or an earlier version of it"
    if name == INPUTS:
        return f"other {name}, such as teachers,"
    if name == "pretrained weights":
        return f"other {name}" if kept and asked else f"{'' if kept else 'no '}{name}"
    return f"{name} {kept}, not {asked}"


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
