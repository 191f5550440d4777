"""The decoder's feature maps of any architecture with deep supervision, without asking it for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError


class DecoderFeatures:
    """Keeps what goes into the heads of a network: the decoder's maps, highest resolution first.

    The heads are found by one pass: they are the modules that return the deep-supervision outputs. `maps` holds the
    maps (B, C, *S) of the last forward pass in training mode.
    """

    def __init__(self, network: Architecture):
        self.maps: list[Tensor] = []
        heads = _heads(network)
        self._order = {head: position for position, head in enumerate(heads)}
        for head in heads:
            head.register_forward_pre_hook(self._keep)

    def _keep(self, head: nn.Module, inputs: tuple[Any, ...]) -> None:
        position = self._order[head]
        self.maps = [*self.maps, *[inputs[0]] * (position + 1 - len(self.maps))]
        self.maps[position] = inputs[0]


def _heads(network: Architecture) -> list[nn.Module]:
    """Return, per output of the network in training mode, the innermost module that returns it."""
    calls: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda module, _inputs, output: calls.append((module, output)))
        for module in network.modules()
    ]
    was_training = network.training
    parameter = next(network.parameters())
    with torch.no_grad():
        image = torch.zeros(1, network.spec.in_channels, *network.spec.patch_size, device=parameter.device)
        outputs = network.train()(image)
    network.train(was_training)
    for hook in hooks:
        hook.remove()
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    found = [next((module for module, value in calls if value is output), None) for output in outputs]
    heads = [module for module in found if module is not None and not isinstance(module, Architecture)]
    if len(heads) != len(outputs):
        raise UserError(f"the decoder of {type(network).__name__} does not end in modules, so its maps are not known")
    return heads
