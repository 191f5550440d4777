"""Floating point operations, counted as torch runs them: matrix products, convolutions, attention and scans.

torch's own counter takes the weight gradient of a convolution in groups for that of a full one, does not know the
attention kernel of CPUs, and counts what a fused kernel computes twice in its backward pass. Here a multiply-add counts
as two, and attention the same whichever kernel computes it, so that methods and devices can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

KERNELS = (  # of attention; each version of torch has some of them
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math_for_mps",
)
Shape = Sequence[int]


def operation_counter() -> FlopCounterMode:
    """Return a context that counts: `get_total_flops()` after it."""
    return FlopCounterMode(display=False, custom_mapping=_formulas())


def _formulas() -> dict[Any, Callable[..., int]]:
    """Return the formulas that replace or complete those of torch, for the operators that it has."""
    formulas: dict[Any, Callable[..., int]] = {
        torch.ops.aten.convolution_backward: _convolution_backward,
        torch.ops.aten.mkldnn_convolution: _convolution,  # networks on a CPU ask for it by name
    }
    for name in KERNELS:
        for operator, formula in ((name, _attention), (f"{name}_backward", _attention_backward)):
            if hasattr(torch.ops.aten, operator):
                formulas[getattr(torch.ops.aten, operator)] = formula
    return formulas


def _convolution(x: Shape, weight: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    return 2 * x[0] * math.prod(out_shape[2:]) * math.prod(weight)


def _convolution_backward(
    grad: Shape, x: Shape, weight: Shape, _bias: Any, _stride: Any, _padding: Any, _dilation: Any, transposed: bool,
    _output_padding: Any, _groups: int, wanted: Sequence[bool], **_: Any,
) -> int:  # fmt: skip
    """Return the operations of the gradients of input and weights: each pairs the voxels as the forward pass does.

    Every weight meets every voxel of the output once (of the input, where transposed); that a voxel meets the weights
    of its group only is in the shape of the weights.
    """
    voxels = math.prod((x if transposed else grad)[2:])
    return sum(wanted[:2]) * 2 * x[0] * voxels * math.prod(weight)


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Return the operations of two products: queries by keys, and the weights found by values."""
    *batches, queries, width = query
    return 2 * math.prod(batches) * queries * key[-2] * (width + value[-1])


def _attention_backward(_grad: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Return the operations of the four products of the gradients, not of the weights that a kernel finds anew."""
    return 2 * _attention(query, key, value)
