"""Draws the data flow of a network: it is run on fake tensors, with hooks, and what depends on what is followed.

Nothing is computed, and no weights are allocated.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autoseg.architecture import Architecture
from autoseg.planning.memory import with_fake_tensors
from autoseg.plans import NetworkSpec

Grid = tuple[int, ...]
VERBS = {"mul": "multiply", "cat": "concat", "sub": "subtract"}
LARGE, SHARE = 0.75, 0.25  # of the weights at a grid: what may be named, what is worth a second name
SMALL = 0.1  # of the weights at a grid: what is no decoder stage
FOREIGN = 0.4  # of a module's weights, used at other grids: it is no block of this one
PARTS = ("Mlp", "MixFFN", "DropPath")  # of blocks, which are named instead
EXTRA_TOKENS = 8  # class and storage tokens beside those of the grid


@dataclass(frozen=True)
class Event:
    """One call of a module that gave a map: where, and on which encoder maps it depends (none while encoding)."""

    module: nn.Module
    inside: tuple[nn.Module, ...]
    grid: Grid
    channels: int
    origins: frozenset[int]
    keeps_size: bool  # what it was given has the same grid

    @property
    def is_leaf(self) -> bool:
        """Return whether the module has no parts."""
        return not list(self.module.children())


@dataclass
class Row:
    """All that happens at one resolution."""

    encoder: list[int] = field(default_factory=list)  # channels of the maps that `encode` returns
    joins: list[str] = field(default_factory=list)
    decoder: int | None = None  # channels
    outputs: int = 0
    names: tuple[str, str] = ("", "")  # what encoder and decoder are made of
    is_used: bool = True


class Origins(TorchDispatchMode):
    """Follows on which encoder maps every storage depends, and which operations bring different ones together."""

    def __init__(self) -> None:
        super().__init__()
        self.joins: list[tuple[int, str]] = []  # the finest map that takes part, the operation
        self.used: set[int] = set()
        self._of: dict[int, frozenset[int]] = {}
        self._alive: list[torch.Tensor] = []  # storages are known by address, so none may be freed

    def mark(self, tensor: torch.Tensor, origins: frozenset[int]) -> None:
        """Say what a tensor depends on."""
        self._alive.append(tensor)
        self._of[tensor.untyped_storage()._cdata] = origins

    def of(self, tensor: torch.Tensor) -> frozenset[int]:
        """Return the numbers of the encoder maps that a tensor depends on."""
        return self._of.get(tensor.untyped_storage()._cdata, frozenset())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {origins for tensor in tensors_in((args, kwargs)) if (origins := self.of(tensor))}
        result = func(*args, **(kwargs or {}))
        together = frozenset().union(*given)
        for tensor in tensors_in(result):
            self.mark(tensor, together | self.of(tensor))
        if given:
            self.used |= together
        if len(given) > 1:
            name = func.overloadpacket.__name__.rstrip("_")
            self.joins.append((min(together), "attend" if "attention" in name or "mm" in name else name))
        return result


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """Return the tensors of nested arguments or results."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def build(architecture: type[Architecture], spec: NetworkSpec) -> tuple[Architecture, FakeTensorMode]:
    """Return the network with fake weights and the mode that they live in."""
    with FakeTensorMode() as mode:
        try:
            return architecture(spec), mode
        except DataDependentOutputException:
            pass
    try:
        with torch.device("meta"), RealLinspace():
            network = architecture(spec)
    except (RuntimeError, NotImplementedError):  # reads other values, too: with weights, then
        network = architecture(spec)
    with mode:
        return with_fake_tensors(network), mode  # type: ignore[return-value]


class RealLinspace(TorchFunctionMode):
    """Lets networks read the rates of stochastic depth, which are drawn by linspace, while all else has no values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}), **({"device": "cpu"} if func is torch.linspace else {}))


def draw(network: Architecture, mode: FakeTensorMode) -> str:
    """Return the picture, one line per resolution: encoder maps, joins, decoder map, outputs."""
    spec = network.spec
    rows = run(network.train(), mode)
    lines = [("", "encoder", "", "joins", "", "decoder", "outputs")]
    for grid in sorted(rows, key=math.prod, reverse=True):
        row = rows[grid]
        join = ", ".join(repeated(Counter(row.joins)))
        start, arrow = ("──", "──▶" if row.decoder else "──▲") if row.encoder and row.is_used else ("", "")
        if row.encoder and not join:
            join = "up" if row.is_used else "(no skip)"
            arrow = arrow and "──▲"
        lines.append(
            (
                shape(grid),
                cell(", ".join(repeated(Counter(map(str, row.encoder)))), row.names[0]),
                start,
                join,
                arrow,
                cell(str(row.decoder or ""), row.names[1]),
                "".join(f"──▶ {entry}" for entry in repeated({str(spec.num_outputs): row.outputs})),
            )
        )
    return "\n".join([f"image {spec.in_channels} x {shape(spec.patch_size)}", *columns(lines)])


def repeated(counts: Mapping[str, int]) -> list[str]:
    """Return entries with how often they are there, where that is more than once."""
    return [f"{entry} (x{count})" if count > 1 else entry for entry, count in counts.items() if count]


def shape(grid: Sequence[int]) -> str:
    """Return sizes as in 224 x 224."""
    return " x ".join(map(str, grid))


def cell(channels: str, name: str) -> str:
    """Return channels and what makes the map."""
    return f"{channels:>4}  {name}".rstrip() if channels or name else ""


def columns(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield lines with their entries below one another; empty columns vanish."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(entry.ljust(width) for entry, width in zip(line, widths, strict=True) if width).rstrip()


def run(network: Architecture, mode: FakeTensorMode) -> dict[Grid, Row]:
    """Run the network once in training mode and return what happened at every resolution."""
    spec = network.spec
    with mode, torch.no_grad():
        with recording(network, None) as encoding:
            found = network.encode(torch.empty(1, spec.in_channels, *spec.patch_size))
        with Origins() as origins, recording(network, origins) as decoding:
            maps = [feature.clone() for feature in found]
            for number, feature in enumerate(maps):
                origins.mark(feature, frozenset({number}))
            outputs = tensors_in(network.decode(maps))
    grids = [tuple(feature.shape[2:]) for feature in maps]
    rows = {grid: Row() for grid in {*grids, *(tuple(output.shape[2:]) for output in outputs)}}
    finest = {grid: [number for number, other in enumerate(grids) if other == grid] for grid in rows}
    for event in decoding.events:
        rows.setdefault(event.grid, Row())
    for number, grid in enumerate(grids):
        rows[grid].encoder.append(maps[number].shape[1])
        rows[grid].is_used = bool(origins.used & set(finest[grid]))
    for number, verb in origins.joins:
        rows[grids[number]].joins.append(VERBS.get(verb, verb))
    for output in outputs:
        rows[tuple(output.shape[2:])].outputs += 1
    deepest = grids[-1]
    for grid, row in rows.items():
        last = len(maps) - 1
        if row.joins or grid != deepest:
            joined = {last, *(finest[grid][:1] if row.joins else ())}
            row.decoder = decoder_channels(decoding.events, grid, joined, spec.num_outputs)
            row.decoder = row.decoder or decoder_channels(decoding.events, grid, {last}, spec.num_outputs)
        row.names = (made_of(encoding.events, grid), made_of(decoding.events, grid) if row.decoder else "")
    return {grid: row for grid, row in rows.items() if row.encoder or row.decoder or row.outputs}


def decoder_channels(events: Sequence[Event], grid: Grid, needed: set[int], num_outputs: int) -> int | None:
    """Return the channels of a decoder stage: the last outermost heavy module's that depends on the `needed` maps."""
    events = [event for event in events if event.channels != num_outputs]
    ups = {id(event.module) for event in events if event.grid != grid}  # of which the parts here are not shown
    there = [event for event in events if event.grid == grid and needed <= event.origins]
    there = [event for event in there if not (event.is_leaf and ups & {*map(id, event.inside[-1:])})]
    most = max((weights(event.module) for event in there), default=0)
    heavy = [event for event in there if weights(event.module) > SMALL * most]
    return min(reversed(heavy), key=lambda event: len(event.inside)).channels if heavy else None


def made_of(events: Sequence[Event], grid: Grid) -> str:
    """Return the blocks that gave maps of a size, as in "2 ConvBlock": those that hold most weights.

    What is a block at one size is one at all, even where most of its weights work on a smaller map inside.
    """
    leaves = [event for event in events if event.is_leaf]
    blocks = {type(event.module) for event in events if event.keeps_size and is_block(event, leaves)}
    left = {
        id(event.module): event
        for event in events
        if event.grid == grid and ((event.keeps_size and type(event.module) in blocks) or is_block(event, leaves))
    }
    names: list[str] = []
    most = 0
    while left and len(names) < 2:
        kinds: dict[type, list[Event]] = {}
        for event in left.values():
            kinds.setdefault(type(event.module), []).append(event)
        own = {kind: found for kind, found in kinds.items() if not kind.__module__.startswith("torch.")} or kinds
        totals = {kind: sum(weights(event.module) for event in found) for kind, found in own.items()}
        largest = max(totals.values())
        most = most or largest
        if largest < SHARE * most:
            break
        heavy = [kind for kind in own if totals[kind] >= LARGE * largest]
        # of a stage, its blocks and their parts: what is there more than once, and of that the outermost
        kind = min(heavy, key=lambda kind: (len(own[kind]) == 1, len(own[kind]), -totals[kind]))
        names.append(f"{len(own[kind])} {kind.__name__}" if len(own[kind]) > 1 else kind.__name__)
        chosen = {id(event.module) for event in own[kind]}
        around = {id(module) for event in own[kind] for module in event.inside}
        rest = [event for event in left.values() if id(event.module) not in chosen | around]
        left = {id(event.module): event for event in rest if not chosen & {*map(id, event.inside)}}
    return ", ".join(names)


def is_block(event: Event, leaves: Sequence[Event]) -> bool:
    """Return whether a module deserves a name: it has weights, is no container, works at the resolution of its map."""
    kind, total = type(event.module), weights(event.module)
    if not total or kind.__name__ in PARTS or (kind.__module__.startswith("torch.") and "Conv" not in kind.__name__):
        return False
    inner = {id(leaf.module): leaf for leaf in leaves if event.module in leaf.inside}.values()
    foreign = sum(weights(leaf.module) for leaf in inner if leaf.grid != event.grid)
    return foreign <= FOREIGN * total and len({leaf.grid for leaf in inner}) <= 2


def weights(module: nn.Module) -> int:
    """Return the number of trained and fixed weights of a module."""
    return sum(math.prod(parameter.shape) for parameter in module.parameters())


class recording:
    """Notes, while it lasts, every call of a module of the network that returns a map."""

    def __init__(self, network: Architecture, origins: Origins | None):
        self.network, self.origins = network, origins
        self.events: list[Event] = []
        self._stack: list[nn.Module] = []
        self._handles: list[Any] = []

    def __enter__(self) -> recording:
        for module in self.network.modules():
            self._handles.append(module.register_forward_pre_hook(lambda module, _: self._stack.append(module)))
            self._handles.append(module.register_forward_hook(self._note))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _note(self, module: nn.Module, given: Any, result: Any) -> None:
        self._stack.pop()
        grids = {found[0] for tensor in tensors_in(given) if (found := seen_as_map(tensor, self.network.spec))}
        for tensor in tensors_in(result):
            if as_map := seen_as_map(tensor, self.network.spec):
                origins = self.origins.of(tensor) if self.origins else frozenset()
                self.events.append(Event(module, tuple(self._stack), *as_map, origins, as_map[0] in grids))


def seen_as_map(tensor: torch.Tensor, spec: NetworkSpec) -> tuple[Grid, int] | None:
    """Return grid and channels of a map of the one image, channels first or last, or of its tokens; None for others."""
    sizes = tuple(tensor.shape)
    if sizes[:1] != (1,):
        return None
    if len(sizes) == spec.dims + 2:
        for grid, channels in ((sizes[2:], sizes[1]), (sizes[1:-1], sizes[-1])):
            if is_grid(grid, spec):
                return grid, channels
    if len(sizes) == 3 and spec.dims == 2:
        side = math.isqrt(sizes[1])
        if sizes[1] - side**2 <= EXTRA_TOKENS and is_grid((side, side), spec):
            return (side, side), sizes[2]
    return None


def is_grid(grid: Grid, spec: NetworkSpec) -> bool:
    """Return whether the planned patch, divided by one number along all axes, has this size."""
    steps = {edge / size for edge, size in zip(spec.patch_size, grid, strict=True)}
    return len(steps) == 1 and next(iter(steps)).is_integer()
