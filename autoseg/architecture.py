"""The contract of a network: built from a NetworkSpec alone, split into encode and decode."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from autoseg.errors import UserError
from autoseg.network_room import check_network
from autoseg.plans import NetworkSpec


class Architecture(nn.Module):
    """Base class of networks: `__init__(spec)`, `encode`, `decode`; `forward = decode(encode(x))`.

    x (B, C, *S) -> logits (B, K, *S) without activation, or with `spec.deep_supervision` in training mode a list of
    logits, highest resolution first. `eval()` always gives the single full-resolution tensor.
    """

    dims: ClassVar[tuple[int, ...]] = (2, 3)
    recipe: ClassVar[Mapping[str, Any]] = {}  # trainer settings that the network needs, where its authors name some
    trainer: ClassVar[str | None] = None  # name of the trainer that its authors' method needs; None: the supervised one
    defaults: ClassVar[Mapping[str, Any]] = {}  # the options that `spec.options` may set
    choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {}  # what an option may be, where that is a short list

    def __init__(self, spec: NetworkSpec):
        super().__init__()
        check_network(type(self), spec)
        self.spec = spec
        self.options = self.read_options(spec)

    @classmethod
    def read_options(cls, spec: NetworkSpec) -> dict[str, Any]:
        """Return all options, defaults included; raises UserError for one that is unknown or has no such value."""
        cls.check_options(spec.options)
        return {**cls.defaults, **spec.options}

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise UserError for an option that is unknown or has no such value, as far as a short list tells."""
        known = ", ".join(cls.defaults) or "none"
        for name, value in options.items():
            if name not in cls.defaults:
                raise UserError(
                    f"{cls.__name__} has no option {name!r}", where="network.options", mend=f"its options: {known}"
                )
            if name in cls.choices and value not in cls.choices[name]:
                allowed = ", ".join(map(str, cls.choices[name]))
                raise UserError(
                    f"{cls.__name__} cannot take {name}={value!r}", where="network.options", mend=f"one of: {allowed}"
                )

    @classmethod
    def patch_multiple(cls, spec: NetworkSpec) -> tuple[int, ...]:
        """Return, per axis, the number that a patch size must be a multiple of."""
        return spec.total_stride

    @classmethod
    def options_for(
        cls, options: Mapping[str, Any], channel_names: Sequence[str], description: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the options with what the data tell, by their channels' names and their dataset.json.

        Planning asks for it before `adapt_spec`, training again; raises UserError where they do not suit the data.
        """
        return dict(options)

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Return the spec with this architecture's own widths, depths and options; the planner calls it once."""
        return spec

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
