"""Labels, regions, ignore values, partial labels <-> network targets and outputs.

Three numberings meet here. *Raw* values are the integers in the user's files, any integers. *Internal* values are 0 for
background, 1..K for the foreground values in increasing raw order, K+1 for "ignore", and -1 for "outside the non-zero
region" (see preprocessing). *Outputs* are the channels of the network: with plain labels K+1 of them (softmax, channel
= internal value), with regions one per region (sigmoid).
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from autoseg.errors import UserError
from autoseg.plans import Frozen

OUTSIDE = -1
LOWEST, HIGHEST = -(2**63), 2**63 - 1  # what a label map can hold

RawValue = Annotated[int, Field(ge=LOWEST, le=HIGHEST)]


class Labels(Frozen):
    """The label definition of a data set, in the user's names and raw values."""

    values: dict[str, tuple[RawValue, ...]]  # foreground name -> raw values; several values make it a region
    background: RawValue = 0
    ignore: tuple[RawValue, ...] = ()  # raw values that carry no information
    regions: bool = False  # True: one sigmoid output per entry of `values`
    paint_order: tuple[str, ...] = ()  # regions only: painted in this order, later ones over earlier ones
    paint_values: tuple[RawValue, ...] = ()  # regions only: the raw value painted for each name of paint_order

    @cached_property
    def foreground_values(self) -> tuple[int, ...]:
        """Raw values of the foreground in increasing order; internal value = position + 1."""
        found = {value for values in self.values.values() for value in values}
        return tuple(sorted(found - {self.background}))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of what is evaluated, in the order of the outputs: classes without background, or regions."""
        return tuple(self.values)

    @property
    def num_outputs(self) -> int:
        """Return the number of network outputs."""
        return len(self.values) if self.regions else len(self.values) + 1

    @property
    def ignore_index(self) -> int | None:
        """Return the internal value of "ignore", or None."""
        return len(self.foreground_values) + 1 if self.ignore else None

    @cached_property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """For every name the internal values that belong to it."""
        position = {value: index + 1 for index, value in enumerate(self.foreground_values)}
        return tuple(tuple(position[v] for v in values if v in position) for values in self.values.values())

    def to_internal(self, raw: np.ndarray, where: str = "label map") -> np.ndarray:
        """Map raw values (any shape, integer) to internal values as int16; undeclared values are a UserError."""
        present = np.unique(raw)
        table = {self.background: 0}
        table |= {value: index + 1 for index, value in enumerate(self.foreground_values)}
        table |= dict.fromkeys(self.ignore, self.ignore_index)
        unknown = [int(value) for value in present if int(value) not in table]
        if unknown:
            raise UserError(
                f"label value(s) {unknown} are not declared; declared are {sorted(table)}",
                where=where,
                mend="correct the label map, or declare the value under labels in dataset.json",
            )
        internal = np.zeros(raw.shape, dtype=np.int16)
        for value in present:
            if table[int(value)]:
                internal[raw == value] = table[int(value)]
        return internal

    def to_raw(self, internal: np.ndarray) -> np.ndarray:
        """Map internal foreground values back to raw values, in the smallest fitting integer type."""
        values = (self.background, *self.foreground_values, *self.ignore[:1])
        table = np.asarray(values, dtype=np.int64)
        return table[np.clip(internal, 0, None)].astype(smallest_integer_type(values))

    def paint(self, region_masks: np.ndarray) -> np.ndarray:
        """Paint boolean masks (R, *S), in output order, into an internal label map (*S), by `paint_order`."""
        position = {value: index + 1 for index, value in enumerate(self.foreground_values)}
        painted = np.zeros(region_masks.shape[1:], dtype=np.int16)
        for index, value in self.painting:
            painted[region_masks[index].astype(bool)] = position[value]
        return painted

    @property
    def painting(self) -> tuple[tuple[int, int], ...]:
        """For regions: (output index, raw value) in the order of painting."""
        names = list(self.values)
        return tuple((names.index(n), v) for n, v in zip(self.paint_order, self.paint_values, strict=True))


def smallest_integer_type(values: tuple[int, ...]) -> np.dtype:
    """Return the smallest of uint8, int16, uint16, int32, int64 that holds all `values`."""
    for kind in (np.uint8, np.int16, np.uint16, np.int32):
        limits = np.iinfo(kind)
        if limits.min <= min(values) and max(values) <= limits.max:
            return np.dtype(kind)
    return np.dtype(np.int64)


def labels_from_description(description: dict[str, Any], where: str = "dataset.json") -> Labels:
    """Build `Labels` from the `labels` and `regions_class_order` fields of an nnU-Net dataset.json.

    Values may be integers or lists (regions). "background" is required and need not be 0; "ignore" may hold several
    values. Without `regions_class_order` the paint order follows from inclusion: larger regions first.
    """
    fields = description.get("labels")
    if not isinstance(fields, dict) or not fields:
        raise UserError(
            f"field labels must be an object, got {fields!r}",
            where=where,
            mend='write "labels": {"background": 0, "tumour": 1}',
        )
    parsed = {str(name): _values(name, value, where) for name, value in fields.items()}
    if "background" not in parsed or len(parsed["background"]) != 1:
        raise UserError(
            "field labels needs an entry 'background' with one integer", where=where, mend='add "background": 0'
        )
    background = parsed.pop("background")[0]
    ignore = parsed.pop("ignore", ())
    if not parsed:
        raise UserError("field labels has no foreground entry", where=where, mend="name at least one structure")
    regions = any(len(values) > 1 for values in parsed.values())
    _no_clashes(parsed, background, ignore, regions, where)
    if not regions:
        parsed = dict(sorted(parsed.items(), key=lambda item: item[1]))
        return Labels(values=parsed, background=background, ignore=ignore)
    order, values = _paint_order(parsed, description.get("regions_class_order"), where)
    return Labels(
        values=parsed, background=background, ignore=ignore, regions=True, paint_order=order, paint_values=values
    )


def _values(name: str, value: Any, where: str) -> tuple[int, ...]:
    entries = value if isinstance(value, (list, tuple)) else [value]
    if not entries or any(isinstance(entry, bool) or not isinstance(entry, int) for entry in entries):
        raise UserError(
            f"field labels.{name} must be an integer or a list of integers, got {value!r}",
            where=where,
            mend="write the value that the structure has in the label maps",
        )
    beyond = [entry for entry in entries if not LOWEST <= entry <= HIGHEST]
    if beyond:
        raise UserError(
            f"field labels.{name} is {beyond[0]}, which no label map can hold",
            where=where,
            mend="write the value that the structure has in the label maps, an integer of at most 64 bits",
        )
    return tuple(entries)


def _no_clashes(
    parsed: dict[str, tuple[int, ...]], background: int, ignore: tuple[int, ...], regions: bool, where: str
) -> None:
    for name, values in parsed.items():
        clash = set(values) & {background, *ignore}
        if clash:
            raise UserError(
                f"field labels.{name} uses {sorted(clash)}, which is background or ignore",
                where=where,
                mend="give every structure a value of its own",
            )
    if background in ignore:
        raise UserError(
            f"field labels.ignore uses {background}, which is background",
            where=where,
            mend="give what is to be ignored a value of its own",
        )
    flat = list(parsed.values())
    if not regions and len(set(flat)) != len(flat):
        raise UserError("two entries of labels share one value", where=where, mend="give every structure its own value")


def _paint_order(parsed: dict[str, tuple[int, ...]], given: Any, where: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """nnU-Net's regions_class_order lists the value painted for each region, in the order of the entries."""
    names = list(parsed)
    if given is not None:
        allowed = {value for values in parsed.values() for value in values}
        fits = isinstance(given, list) and len(given) == len(names)
        fits = fits and all(isinstance(value, int) and value in allowed for value in given)
        if not fits:
            raise UserError(
                f"field regions_class_order must list one declared value for each of {names}, got {given!r}",
                where=where,
                mend="leave the field out (the order then follows from inclusion) or list one value per region",
            )
        return tuple(names), tuple(given)
    order = sorted(names, key=lambda name: -len(parsed[name]))  # stable: equal sizes keep their order
    values = []
    for position, name in enumerate(order):
        covered = {value for later in order[position + 1 :] for value in parsed[later]}
        own = [value for value in parsed[name] if value not in covered]
        if not own:
            raise UserError(
                f"region {name!r} has no value that smaller regions do not cover, so a label map cannot show it",
                where=where,
                mend="give the region a value of its own, or set regions_class_order",
            )
        values.append(own[0])
    return tuple(order), tuple(values)
