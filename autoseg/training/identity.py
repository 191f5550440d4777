"""What makes a run the same run: a second start with other settings, seed or data must not pass for the first one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoseg import plugins
from autoseg.errors import UserError
from autoseg.storage import file_hash
from autoseg.training.checkpoint import STATE_FILE, WEIGHTS_FILE
from autoseg.training.log import RUN_FILE, read_run
from autoseg.training.pretrained import find_weights
from autoseg.training.trainer import Trainer

logger = logging.getLogger("autoseg.training")
# What may change between the starts of one run: how it is watched and carried out, not what is learned.
FREE_SETTINGS = frozenset({"checkpoint_minutes", "compile", "observed_cases", "stop_on_collapse"})
INPUTS = "input files"  # of the trainer, by their content
PLUGIN_FILES = ("trainer file", "architecture file")
MEND = "give the options of the first start, keep both with --name NAME, or train anew with --restart"


def identity(trainer: Trainer, reference: str, pretrained: Path | None) -> dict[str, Any]:
    """Return what two starts must share to be one run, as values for JSON; `reference` is that of the trainer."""
    context = trainer.context
    plugin_files = {
        f"{kind} file": plugins.loose_file(kind, name, context.workspace_root)
        for kind, name in (("trainer", reference), ("architecture", context.configuration.architecture))
    }
    inputs = sorted(file_hash(file) for file in trainer.inputs())
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
    difference = None if kept is None else _difference(kept, asked)
    if difference is not None:
        raise UserError(f"this folder holds a run with {difference}", where=folder, mend=MEND)


def makes_room(folder: Path, record: Mapping[str, Any]) -> bool:
    """Return whether the run of this run.json stopped before it had learnt anything to keep."""
    learnt = (folder / STATE_FILE).is_file() or (folder / WEIGHTS_FILE).is_file()
    return not learnt and record.get("status") in ("failed", "interrupted")


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
