"""The parts, in the order of their importance, and which of them a request needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Part:
    """One process: the module of this package whose `measure` it calls, and how long it may take.

    What runs `ahead` is not timed and runs beside others, before anything that is; it `serves` other parts, which take
    longer without it, and those that have it in `after` not at all.
    """

    name: str
    module: str
    seconds: float  # it is stopped then
    least: float = 20.0  # it is not begun where fewer are left
    arguments: dict[str, Any] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    ahead: bool = False
    serves: tuple[str, ...] = ()


def _compiling(side: str, network: str, after: tuple[str, ...]) -> Part:
    """Return the part that fills the compiler's cache, which all processes share, for a part that is timed."""
    return Part(
        f"compile {side} {network}", f"{side}_step", 240, arguments={"network": network, "compile_only": True},
        after=after, ahead=True, serves=(f"{side} step {network}",),
    )  # fmt: skip


DATA = ("workspace",)
OURS = ("autoseg step plain", "autoseg step resenc_l", "autoseg step plain channels_last")
PARTS = (
    Part("workspace", "workspace", 150, ahead=True, serves=OURS),
    _compiling("nnunet", "resenc_l", ()),
    _compiling("nnunet", "plain", ()),
    _compiling("autoseg", "resenc_l", DATA),
    _compiling("autoseg", "plain", DATA),
    Part("card", "card", 60),
    Part("autoseg step plain", "autoseg_step", 200, 60, {"network": "plain"}, DATA),
    Part("nnunet step plain", "nnunet_step", 200, 40, {"network": "plain"}),
    Part("autoseg prediction", "autoseg_prediction", 120, 25),
    Part("nnunet prediction", "nnunet_prediction", 150, 25),
    Part("autoseg step resenc_l", "autoseg_step", 200, 60, {"network": "resenc_l", "augments": False}, DATA),
    Part("nnunet step resenc_l", "nnunet_step", 200, 40, {"network": "resenc_l"}),
    Part("autoseg step plain channels_last", "autoseg_step", 120, 50,
         {"network": "plain", "layout": "channels_last"}, DATA),
)  # fmt: skip
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
