"""Numbers in nnU-Net's plans that would fail late, in a network or in front of an image, are refused by field."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from autoseg.errors import UserError
from autoseg.plans import Configuration, Plans, parse

LARGEST_SIZE = 4096  # of patches and features; real ones stay far below
LARGEST_KERNEL = 64
MOST_STAGES = 32
THEIRS = {  # our name of a field of the plans -> nnU-Net's
    "original_median_spacing": "original_median_spacing_after_transp",
    "original_median_shape": "original_median_shape_after_transp",
    "median_shape": "median_image_size_in_voxels", "normalization": "normalization_schemes",
    "use_mask": "use_mask_for_norm", "features": "features_per_stage", "blocks_encoder": "n_conv_per_stage",
    "blocks_decoder": "n_conv_per_stage_decoder",
}  # fmt: skip
FAULTY_FIELD = re.compile(r"\b(field [\w.]*?)(\w+)((?:\.\d+)*:)")


def stage_count(value: Any, where: Path) -> int:
    """Return the number of stages; lists are made of this length, so it is looked at first."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_STAGES:
        raise UserError(f"field architecture.n_stages is {value!r}; it must be 1 to {MOST_STAGES}", where=where)
    return value


def check_transposes(forward: Any, backward: Any, where: Path) -> None:
    """Raise UserError unless both are orders of the axes, and the second undoes the first."""
    for field, axes in (("transpose_forward", forward), ("transpose_backward", backward)):
        if not isinstance(axes, list) or sorted(map(str, axes)) != ["0", "1", "2"]:
            raise UserError(f"field {field} is {axes!r}; it must be an order of 0, 1, 2", where=where)
    if [forward[int(axis)] for axis in backward] != [0, 1, 2]:
        raise UserError(
            f"field transpose_backward is {list(backward)}, which does not undo transpose_forward {list(forward)}",
            where=where,
        )


def check_plans(plans: Plans, where: Path) -> None:
    """Raise UserError for spacings and sizes that no data set can have."""
    _positive("original_median_spacing_after_transp", plans.original_median_spacing, where)
    _positive("original_median_shape_after_transp", plans.original_median_shape, where)
    for configuration in plans.configurations.values():
        _check_configuration(configuration, plans, where)


def _check_configuration(configuration: Configuration, plans: Plans, where: Path) -> None:
    field = f"configurations.{configuration.name}"
    spec = configuration.network
    _positive(f"{field}.spacing", configuration.spacing, where)
    _positive(f"{field}.median_image_size_in_voxels", configuration.median_shape, where)
    _positive(f"{field}.patch_size", configuration.patch_size, where, below=LARGEST_SIZE)
    _positive(f"{field}.batch_size", (configuration.batch_size,), where, below=LARGEST_SIZE)
    field += ".architecture"
    _positive(f"{field}.features_per_stage", spec.features, where, below=LARGEST_SIZE)
    for kernel, stride in zip(spec.kernel_sizes, spec.strides, strict=True):
        _positive(f"{field}.kernel_sizes", kernel, where, below=LARGEST_KERNEL)
        _positive(f"{field}.strides", stride, where, below=LARGEST_KERNEL)
    for blocks in (spec.blocks_encoder, spec.blocks_decoder):
        _positive(f"{field}.n_conv_per_stage", blocks, where, below=LARGEST_KERNEL)


def parse_as_theirs(model: type[BaseModel], content: Any, where: Path, *, within: str = "") -> Any:
    """Validate as `plans.parse` does, but tell faults by the names that nnU-Net's plans have for the fields."""
    try:
        return parse(model, content, where, within=within)
    except UserError as error:
        what = FAULTY_FIELD.sub(lambda found: found[1] + THEIRS.get(found[2], found[2]) + found[3], error.what)
        raise UserError(what, where=where, mend=error.mend) from None


def _positive(field: str, values: Sequence[float], where: Path, *, below: float = math.inf) -> None:
    if not all(0 < value < below for value in values):  # nan is not either
        limit = "" if below == math.inf else f", below {below}"
        raise UserError(f"field {field} is {list(values)}; it must be positive{limit} and finite", where=where)


def check_tensor(name: str, value: torch.Tensor, where: Path) -> None:
    """Raise UserError unless the tensor is one of real, finite numbers that stand side by side."""
    if value.layout is not torch.strided or value.is_quantized or not value.is_floating_point():
        kind = f"{value.dtype}, {value.layout}"
        raise UserError(f"tensor {name!r} of network_weights is not one of real numbers ({kind})", where=where)
    if value.is_meta or not bool(torch.isfinite(value).all()):
        raise UserError(
            f"tensor {name!r} of network_weights holds numbers that are not finite",
            where=where,
            mend="copy the file again, or choose another checkpoint: the training may have diverged",
        )
