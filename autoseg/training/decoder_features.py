"""The decoder's feature maps of any architecture, without asking it for them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.plans import NetworkSpec


class _Call(NamedTuple):
    module: nn.Module
    given: Tensor | None
    returned: Tensor
    outer: bool  # called by the decoder itself, not by one of its modules


class DecoderFeatures:
    """Keeps the decoder's maps of a network below its last one, highest resolution first, each of another size.

    They are what goes into the lower heads of its deep supervision, the modules that return its outputs. Where these do
    not lie at several resolutions (one output, or all at full resolution), or take logits, they are, per size of an
    encoder map, the last one of that size that a module which the decoder calls returns, else one inside of these; both
    with the encoder's number of channels, if there is one. One pass finds all of it. `maps` holds the maps (B, C, *S)
    of the last pass in training mode.
    """

    def __init__(self, network: Architecture):
        self._kept: dict[int, Tensor] = {}
        outputs, below, calls = _watched_pass(network)
        heads = [next((call for call in calls if call.returned is output), None) for output in outputs]
        given = [head.given for head in heads if head is not None and head.given is not None]
        sizes = {each.shape[2:] for each in given}
        if len(sizes) == len(outputs) > 1 and any(each.shape[1] != network.spec.num_outputs for each in given):
            for position, head in enumerate(heads[1:]):
                head.module.register_forward_pre_hook(self._before(position, head.given.shape))
            self._count = len(heads) - 1
            return
        found = _last_of_each_size(calls, below, network.spec)
        for position, call in enumerate(found):
            call.module.register_forward_hook(self._after(position, call.returned.shape))
        self._count = len(found)

    @property
    def maps(self) -> list[Tensor]:
        """The maps of the last pass."""
        return [self._kept[position] for position in range(self._count)]

    def _before(self, position: int, shape: torch.Size) -> Any:
        return lambda _module, inputs: self._keep(position, shape, inputs[0])

    def _after(self, position: int, shape: torch.Size) -> Any:
        return lambda _module, _inputs, output: self._keep(position, shape, output)

    def _keep(self, position: int, shape: torch.Size, each: Tensor) -> None:
        if each.shape[1:] == shape[1:]:  # a module may be used at several sizes
            self._kept[position] = each


def _watched_pass(network: Architecture) -> tuple[list[Tensor], list[Tensor], list[_Call]]:
    """Return the outputs of the network in training mode, the maps below the decoder, and what its modules returned."""
    calls: list[_Call] = []
    inside: list[nn.Module] = []

    def enter(module: nn.Module, _inputs: tuple[Any, ...]) -> None:
        inside.append(module)

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        inside.pop()
        if isinstance(output, Tensor):
            given = next((each for each in inputs if isinstance(each, Tensor)), None)
            calls.append(_Call(module, given, output, not inside))

    was_training = network.training
    parameter = next(network.parameters())
    with torch.no_grad():
        image = torch.zeros(1, network.spec.in_channels, *network.spec.patch_size, device=parameter.device)
        below = network.train().encode(image)
        hooks = [module.register_forward_pre_hook(enter) for module in network.modules()]
        hooks += [module.register_forward_hook(note) for module in network.modules()]
        outputs = network.decode(below)
    for hook in hooks:
        hook.remove()
    network.train(was_training)
    return [outputs] if isinstance(outputs, Tensor) else list(outputs), below, calls


def _last_of_each_size(calls: list[_Call], below: list[Tensor], spec: NetworkSpec) -> list[_Call]:
    """Return the last call of the size of each encoder map between full resolution and the lowest one."""
    found = []
    sizes = {each.shape[2:]: each.shape[1] for each in reversed(below)}
    left_out = {torch.Size(spec.patch_size), below[-1].shape[2:]}
    for size in sorted(sizes.keys() - left_out, reverse=True):
        of_size = [call for call in calls if call.returned.shape[2:] == size]
        of_size = [call for call in of_size if call.returned.shape[1] != spec.num_outputs]
        outer = [call for call in of_size if call.outer]
        alike = [call for call in of_size if call.returned.shape[1] == sizes[size]]
        found += ([call for call in outer if call in alike] or outer or alike or of_size)[-1:]
    return found
