"""Instance norm of feature maps that lie with the channels last, on a CPU.

torch's own brings such maps into the other layout, twice where the next convolution wants the channels last again. Here
a map is a matrix with voxels times channels in its columns, so that torch's fast batch norm of matrices does the work,
block of rows by block of rows: a block stays in the cache between the passes over it, and its sums are short enough to
lose nothing. Blocks are joined in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

COLUMNS = 1024  # voxels times channels in a row: enough for vectors, however few the channels
ROWS = 512  # of a block: with as many columns 1 to 2 MiB, as caches are
SMALL = 2**16  # values of an image below which the steps of a loop over images take longer than torch's copies
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def may_normalise(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Return whether `instance_norm` takes these: more than one voxel of two or three axes, and the number formats."""
    single = all(parameter is None or parameter.dtype == torch.float32 for parameter in (weight, bias))
    formats = single and x.dtype in (torch.float32, torch.bfloat16)
    return formats and x.ndim in FORMATS and x.numel() > 0 and math.prod(x.shape[2:]) > 1


def instance_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Return what `torch.nn.functional.instance_norm` returns for x (B, C, *S), with the channels last.

    x is single precision or bfloat16; weight and bias (C) are single precision or None; eps is above 0. The gradient,
    too, can be differentiated.
    """
    layout = FORMATS[x.ndim]
    if x.numel() < SMALL * x.shape[0]:
        return right_gradient(F.instance_norm(x, weight=weight, bias=bias, eps=eps)).contiguous(memory_format=layout)
    return _Normalisation.apply(x.contiguous(memory_format=layout), weight, bias, eps)[0]


def normalise(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Return what `instance_norm` returns, in the place of x where it has the channels last; x is lost, no gradient."""
    if x.numel() < SMALL * x.shape[0] or not x.is_contiguous(memory_format=FORMATS[x.ndim]):
        return instance_norm(x, weight, bias, eps)
    _normalise_into(x, x, weight, bias, eps)
    return x


def right_gradient(normalised: Tensor) -> Tensor:
    """Return what torch's instance norm gave, seeing to it that its gradient will be right.

    torch (2.13) takes the gradient of a single image for one with the channels first, also where it has them last: its
    gradients by input, weight and bias are then wrong, without a word. A ReLU in between hides that, a GELU does not.
    """
    return _ContiguousGradient.apply(normalised) if normalised.requires_grad else normalised


class _ContiguousGradient(torch.autograd.Function):
    """The same values, whose gradient has the channels first; a hook would be lost where an activation is in place."""

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous()


class _Normalisation(torch.autograd.Function):
    """Instance norm, and the mean and variance (B, C) of each channel that its gradient needs."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return x normalised, scaled and shifted, and mean and variance in single precision."""
        y = torch.empty_like(x)
        mean, variance = _normalise_into(y, x, weight, bias, eps)
        return y, mean, variance

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, _, ctx.eps = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, weight, *output[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients by x, weight and bias, as far as they are needed."""
        x, weight, mean, variance = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated in its turn
            return *_differentiable(gradient, x, weight, ctx.eps, ctx.needs_input_grad), None
        gradient = gradient.contiguous(memory_format=FORMATS[x.ndim])
        of_images = zip(*_gradient_sums(gradient, x, mean, variance, ctx.eps), strict=True)
        products, sums = (torch.stack(found) for found in of_images)
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        moments = mean, variance + ctx.eps
        return (
            _gradient_by_input(gradient, x, weight, moments, (products, sums)) if needs_x else None,
            products.sum(0).float() if needs_weight else None,
            sums.sum(0).float() if needs_bias else None,
            None,
        )


def _normalise_into(
    y: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Write x, normalised, scaled and shifted, into y, which may be x; returns mean and variance (B, C)."""
    mean, variance = x.new_empty((2, *x.shape[:2]), dtype=torch.float32)
    scale, shift = (_filled(x, value, parameter) for value, parameter in ((1.0, weight), (0.0, bias)))
    for image, normalised, its_mean, its_variance in zip(x, y, mean, variance, strict=True):
        rows = _as_rows(image)
        its_mean[:], its_variance[:] = _moments(rows, x.shape[1])
        columns = _repeated(rows, scale, shift, its_mean, its_variance)
        unused = [rows.new_empty(0, dtype=torch.float32) for _ in range(2)]
        out = (_as_rows(normalised), *unused)
        torch.native_batch_norm(rows, *columns, training=False, momentum=0.0, eps=eps, out=out)
    return mean, variance


def _filled(x: Tensor, value: float, parameter: Tensor | None) -> Tensor:
    """Return the parameter, or where there is none as many times the value as x has channels."""
    return x.new_full((x.shape[1],), value, dtype=torch.float32) if parameter is None else parameter


def _as_rows(image: Tensor) -> Tensor:
    """Return a view of (C, *S), channels last, as a matrix with a few voxels times the channels in each row."""
    channels, voxels = image.shape[0], math.prod(image.shape[1:])
    most = max(COLUMNS // channels, 1)
    per_row = next(number for number in range(most, 0, -1) if voxels % number == 0)
    return image.movedim(0, -1).view(voxels // per_row, per_row * channels)


def _repeated(rows: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Return values (C) as they apply to the columns of a matrix."""
    stacked = torch.stack(values)
    return stacked.repeat(1, rows.shape[1] // stacked.shape[1]).unbind()


def _moments(rows: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance (C) in double precision, joined from those of blocks."""
    running = rows.new_zeros(rows.shape[1], dtype=torch.float32)  # torch takes bfloat16 with single precision so only
    blocks = rows.split(ROWS)
    found = [torch.batch_norm_update_stats(block, running, running, 0.0) for block in blocks]
    means, variances = (torch.stack(part).double().view(len(blocks), -1, channels) for part in zip(*found, strict=True))
    heights = [block.shape[0] for block in blocks]
    shares = means.new_tensor(heights)[:, None, None] / (rows.shape[0] * means.shape[1])
    mean = (means * shares).sum((0, 1))
    return mean, ((variances + (means - mean) ** 2) * shares).sum((0, 1))


def _gradient_sums(
    gradient: Tensor, x: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give for each image the sums (C) of gradient times normalised value, and of gradient; blocks add up in double."""
    channels = x.shape[1]
    one = _filled(x, 1.0, None)
    for slopes, image, *moments in zip(gradient, x, mean, variance, strict=True):
        rows = _as_rows(image)
        columns = _repeated(rows, one, *moments)
        found = [
            torch.ops.aten.native_batch_norm_backward(
                slope, block, *columns, None, None, False, eps, [False, True, True]
            )[1:]
            for slope, block in zip(_as_rows(slopes).split(ROWS), rows.split(ROWS), strict=True)
        ]
        yield tuple(torch.stack(part).double().view(-1, channels).sum(0) for part in zip(*found, strict=True))


def _gradient_by_input(
    gradient: Tensor, x: Tensor, weight: Tensor | None, moments: tuple[Tensor, Tensor], sums: tuple[Tensor, Tensor]
) -> Tensor:
    """Return the gradient by x: the gradient times one column, centred values times another, and a third."""
    of_x, voxels = torch.empty_like(x), math.prod(x.shape[2:])
    mean, deviation = moments[0], moments[1].sqrt()
    scale = _filled(x, 1.0, weight) / deviation
    factors = scale, -scale * sums[0] / voxels / deviation, -scale * sums[1] / voxels, mean
    for slopes, image, found, *values in zip(gradient, x, of_x, *(factor.float() for factor in factors), strict=True):
        rows = _as_rows(image)
        by_gradient, by_value, constant, its_mean = _repeated(rows, *values)
        blocks = (_as_rows(part).split(ROWS) for part in (slopes, image, found))
        for slope, block, out in zip(*blocks, strict=True):
            total = torch.addcmul(constant, slope.float(), by_gradient)
            out.copy_(total.addcmul_(block.float() - its_mean, by_value))
    return of_x


def _differentiable(
    gradient: Tensor, x: Tensor, weight: Tensor | None, eps: float, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Return the gradients by torch's own instance norm, which can be differentiated again."""
    y = right_gradient(F.instance_norm(x, weight=weight, eps=eps))
    inputs = [tensor for tensor, want in zip((x, weight), wanted, strict=False) if want]
    found = iter(torch.autograd.grad(y, inputs, gradient, create_graph=True) if inputs else ())
    of_x, of_weight = (next(found) if want else None for want in wanted[:2])
    return of_x, of_weight, gradient.sum((0, *range(2, x.ndim)), dtype=torch.float32) if wanted[2] else None
