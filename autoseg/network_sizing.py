"""What planning asks of a network's class. Without torch, whose import takes seconds and most of planning's memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from autoseg.errors import UserError
from autoseg.plans import NetworkSpec


class NetworkSizing:
    """The part of an `Architecture` that plans are made from; no network is built for it.

    An architecture may keep it in a class of its own, in a module that does not import torch, inherit from that, and
    name it: `@register.architecture("name", sizing="module:Class")`. Plans that need no network are made from it alone.
    """

    dims: ClassVar[tuple[int, ...]] = (2, 3)
    recipe: ClassVar[Mapping[str, Any]] = {}  # trainer settings that the network needs, where its authors name some
    # Settings of its authors that only `own_recipe=published` has, such as a loss that the engine's does better than.
    as_published: ClassVar[Mapping[str, Any]] = {}
    trainer: ClassVar[str | None] = None  # name of the trainer that its authors' method needs; None: the supervised one
    defaults: ClassVar[Mapping[str, Any]] = {}  # the options that `spec.options` may set
    choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {}  # what an option may be, where that is a short list

    @classmethod
    def read_options(cls, spec: NetworkSpec) -> dict[str, Any]:
        """Return all options, defaults included; raises UserError for one that is unknown or has no such value."""
        cls.check_options(spec.options)
        return {**cls.defaults, **spec.options}

    @classmethod
    def published_recipe(cls) -> dict[str, Any]:
        """Return all trainer settings that the network's authors name."""
        return {**cls.recipe, **cls.as_published}

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
        """Return the spec with this architecture's own widths, depths and options, for every size a planner tries."""
        return spec
