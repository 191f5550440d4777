"""Settings of a trainer: annotated class attributes, typed, with the origin of every value.

Precedence: code default < plan < length of the run < architecture < recipe file < command line. The first three only
touch what the trainer left as the base class has it: a method that names an attribute anew means its own value.
"""

from __future__ import annotations

import difflib
import inspect
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, get_origin

from pydantic import TypeAdapter, ValidationError

from autoseg.errors import UserError
from autoseg.regular_files import refuse_irregular

LENGTH = "length of the run"  # origin of what suits the steps that a time budget leaves, or that the user asked for


@dataclass(frozen=True)
class Setting:
    """One resolved setting: its value and where that came from."""

    value: Any
    origin: str


def declared_settings(trainer: type) -> dict[str, Any]:
    """Return the annotated public class attributes of a trainer as {name: type}; ClassVar ones are not settings.

    A subclass that has no use for a setting of its base annotates it anew, as a ClassVar.
    """
    settings: dict[str, Any] = {}
    for base in reversed(trainer.__mro__[:-1]):
        for name, annotation in inspect.get_annotations(base, eval_str=True).items():
            if get_origin(annotation) is ClassVar or annotation is ClassVar:
                settings.pop(name, None)
            elif not name.startswith("_"):
                settings[name] = annotation
    return settings


def resolve_settings(
    trainer: type,
    *,
    plan: Mapping[str, Any],
    recipe: Mapping[str, Any],
    given: Mapping[str, Any],
    base: type,
    length: Mapping[str, Any] | None = None,
    architecture: Mapping[str, Any] | None = None,
) -> dict[str, Setting]:
    """Merge the six sources; an unknown name or a wrong type is a UserError before any data is touched.

    `plan` holds the values that the plan proposes, `length` those that suit the number of steps where the plan was made
    for another, `architecture` those that the network's authors trained it with, `recipe` those of a TOML file, `given`
    those of `--set` (text or typed), `base` the class whose defaults plan, length and architecture may replace.
    """
    types = declared_settings(trainer)
    resolved = {name: Setting(getattr(trainer, name), "default") for name in types}
    for origin, source in (("plan", plan), (LENGTH, length or {}), ("architecture", architecture or {})):
        for name, value in source.items():
            redefined = any(name in vars(cls) for cls in trainer.__mro__ if cls is not base and issubclass(cls, base))
            if name in types and not redefined:
                resolved[name] = Setting(value, origin)
    for origin, source in (("recipe", recipe), ("command line", given)):
        for name, value in source.items():
            resolved[name] = Setting(_typed(name, value, types, trainer), origin)
    return resolved


def read_recipe(path: Path | None) -> dict[str, Any]:
    """Read a recipe: a TOML file with `name = value` lines."""
    if path is None:
        return {}
    refuse_irregular(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("the recipe does not exist", where=path, mend="correct the path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"not a readable recipe: {error}", where=path, mend="write `name = value` lines") from None


def parse_assignments(assignments: list[str], *, option: str = "--set") -> dict[str, str]:
    """Turn `["name=value", ...]` of a repeatable `option` into a dict; what has no `=` is a UserError."""
    pairs = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UserError(f"{option} {text!r} is not of the form name=value", mend=f"for example {option} size=3")
        pairs[name.strip()] = value.strip()
    return pairs


def _typed(name: str, value: Any, types: Mapping[str, Any], trainer: type) -> Any:
    if name not in types:
        close = difflib.get_close_matches(name, types, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else f"choose from {', '.join(sorted(types))}"
        raise UserError(f"trainer {trainer.__name__} has no setting {name!r}", mend=hint)
    adapter = TypeAdapter(types[name])
    if isinstance(value, str) and value.lower() in ("none", "null") and _takes_none(adapter):
        value = None
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise UserError(
            f"setting {name} cannot be {value!r}: {reason}", mend=f"the default is {getattr(trainer, name)!r}"
        ) from None


def _takes_none(adapter: TypeAdapter[Any]) -> bool:
    """Tell whether None is a value of a type; where it is not, "none" may be one of its words."""
    try:
        adapter.validate_python(None)
    except ValidationError:
        return False
    return True
