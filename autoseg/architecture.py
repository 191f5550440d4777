"""The contract of a network: built from a NetworkSpec alone, split into encode and decode."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from autoseg.network_room import check_network
from autoseg.network_sizing import NetworkSizing
from autoseg.plans import NetworkSpec


class Architecture(NetworkSizing, nn.Module):
    """Base class of networks: `__init__(spec)`, `encode`, `decode`; `forward = decode(encode(x))`.

    x (B, C, *S) -> logits (B, K, *S) without activation, or with `spec.deep_supervision` in training mode a list of
    logits, highest resolution first. `eval()` always gives the single full-resolution tensor.
    """

    def __init__(self, spec: NetworkSpec):
        super().__init__()
        check_network(type(self), spec)
        self.spec = spec
        self.options = self.read_options(spec)

    def output_weights(self) -> list[float] | None:
        """Return the weights of the deep-supervision outputs in the loss, highest resolution first.

        None: nnU-Net's, halved from one resolution to the next. An output of full resolution keeps the full target.
        """
        return None

    def rate_factors(self, *, pretrained: bool) -> Mapping[str, float]:
        """Return {start of parameter names: factor of the learning rate}; the first that fits counts, else it is 1.

        The trainer's setting `own_rates` asks for it; a recipe sets that. `pretrained`: the run starts from weights.
        """
        return {}

    def undecayed(self) -> Collection[str]:
        """Return the names of the parameters that the network's authors leave out of weight decay.

        The trainer's setting `own_decay` asks for it; a recipe sets that.
        """
        return ()

    def takes_regions(self) -> bool:
        """Return whether outputs can be activated one by one, as overlapping regions need; else by softmax only."""
        return True

    def check_images(self, description: Mapping[str, Any]) -> None:
        """Raise UserError, or warn, where images to be predicted are not made as those of the training were.

        `description`: the dataset.json in their folder or in the data set that it belongs to, empty without one.
        Prediction of a folder asks for it.
        """

    def translate_weights(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return weights, as published by the network's authors, under this network's names; others as they are.

        `train --pretrained` asks for it before it loads what fits by name and shape.
        """
        return weights

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return feature maps, high to low resolution, for x (B, C, *S)."""
        raise NotImplementedError

    def decode(self, features: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """Return logits (B, K, *S), or the deep-supervision list while training."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Return `decode(encode(x))`."""
        return self.decode(self.encode(x))
