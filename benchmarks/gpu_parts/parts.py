"""The parts, in the order of their importance, and which of them a request needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Part:
    """One process: the module of this package whose `measure` it calls, and how long it may take.

    What runs `ahead` is not timed and runs beside others, before anything that is; it `serves` other parts, which take
    longer without it, and those that have it in `after` not at all. The times are estimates for an H200 with 16 cores,
    made without one: 2 to 3 minutes for all that runs ahead, half a minute to one and a half for each part then.
    """

    name: str
    module: str
    seconds: float  # it is stopped then
    least: float = 20.0  # it is not begun where fewer are left
    arguments: dict[str, Any] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    ahead: bool = False
    serves: tuple[str, ...] = ()


def _compiling(timed: str, module: str, after: tuple[str, ...] = (), **arguments: Any) -> Part:
    """Return the part that fills the compiler's cache, which all processes share, for a part that is timed."""
    return Part(
        f"compile {timed}", module, 240, arguments={**arguments, "compile_only": True}, after=after, ahead=True,
        serves=(timed,),
    )  # fmt: skip


PLAIN, RESIDUAL, CHANNELS_LAST = "autoseg step plain", "autoseg step resenc_l", "autoseg step plain channels_last"
THEIR_PLAIN, THEIR_RESIDUAL = "nnunet step plain", "nnunet step resenc_l"
DATA = ("workspace",)
PARTS = (
    Part("workspace", "workspace", 150, ahead=True, serves=(PLAIN, RESIDUAL, CHANNELS_LAST)),
    _compiling(THEIR_RESIDUAL, "nnunet_step", network="resenc_l"),
    _compiling(THEIR_PLAIN, "nnunet_step", network="plain"),
    _compiling(RESIDUAL, "autoseg_step", DATA, network="resenc_l"),
    _compiling(PLAIN, "autoseg_step", DATA, network="plain"),
    _compiling(CHANNELS_LAST, "autoseg_step", DATA, network="plain", layout="channels_last"),
    Part("card", "card", 60),
    Part(PLAIN, "autoseg_step", 200, 60, {"network": "plain"}, DATA),
    Part(THEIR_PLAIN, "nnunet_step", 200, 40, {"network": "plain"}),
    Part("autoseg prediction", "autoseg_prediction", 120, 25),
    Part("nnunet prediction", "nnunet_prediction", 150, 25),
    Part(RESIDUAL, "autoseg_step", 200, 60, {"network": "resenc_l", "augments": False}, DATA),
    Part(THEIR_RESIDUAL, "nnunet_step", 200, 40, {"network": "resenc_l"}),
    Part(CHANNELS_LAST, "autoseg_step", 120, 30, {"network": "plain", "layout": "channels_last"}, DATA),
)
NAMES = tuple(part.name for part in PARTS)


def chosen(only: Sequence[str], *, compiles: bool) -> list[Part]:
    """Return the parts asked for (none: all), with what they need and what serves them."""
    wanted = set(only or (part.name for part in PARTS if not part.ahead))
    for part in reversed(PARTS):  # what is needed stands before
        if part.serves and wanted & set(part.serves) and (compiles or part.name in DATA):
            wanted.add(part.name)
        if part.name in wanted:
            wanted.update(part.after)
    return [part for part in PARTS if part.name in wanted]
