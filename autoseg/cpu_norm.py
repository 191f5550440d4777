"""Instance norm of feature maps that lie with the channels last, on a CPU.

torch's own brings such maps into the other layout, twice where the next convolution wants the channels last again. Here
a map is a matrix with voxels times channels in its columns, so that torch's fast batch norm of matrices does the work,
block of rows by block of rows: a block stays in the cache between the passes over it, and its sums are short enough to
lose nothing. Blocks are joined in double precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

COLUMNS = 1024  # voxels times channels in a row: enough for vectors, however few the channels
ROWS = 512  # of a block: 1 to 2 MiB, as caches are
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def may_normalise(x: Tensor, weight: Tensor | None) -> bool:
    """Return whether `instance_norm` takes these: more than one voxel of two or three axes, and the number formats."""
    formats = x.dtype in (torch.float32, torch.bfloat16) and (weight is None or weight.dtype == torch.float32)
    return x.ndim in FORMATS and formats and len(x) > 0 and x[0, 0].numel() > 1


def instance_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Return what `torch.nn.functional.instance_norm` returns for x (B, C, *S), with the channels last.

    x is single precision or bfloat16; weight and bias (C) are single precision or None. The gradient, too, can be
    differentiated.
    """
    x = x.contiguous(memory_format=FORMATS[x.ndim])
    return _InstanceNorm.apply(x, weight, bias, eps)[0]


class _InstanceNorm(torch.autograd.Function):
    """Instance norm, and the mean and variance (B, C) of each channel that its gradient needs."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        y = torch.empty_like(x)
        mean, variance = x.new_empty((2, *x.shape[:2]), dtype=torch.float32)
        weight, bias = _affine(x, weight, bias)
        for i in range(len(x)):
            rows = _as_rows(x[i])
            mean[i], variance[i] = _moments(rows, x.shape[1])
            _normalise(rows, _repeated(rows, weight, bias, mean[i], variance[i]), eps, out=_as_rows(y[i]))
        return y, mean, variance

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, ctx.eps = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, weight, bias, *output[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, variance = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated in its turn
            return *_differentiable(gradient, (x, weight, bias), ctx.eps, ctx.needs_input_grad), None
        gradient = gradient.contiguous(memory_format=FORMATS[x.ndim])
        of_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        of_weight, of_bias = torch.zeros((2, x.shape[1]), dtype=torch.float64)
        scale = _affine(x, weight, bias)[0]
        for i in range(len(x)):
            rows, sloped = _as_rows(x[i]), _as_rows(gradient[i])
            products, sums = _gradient_sums(sloped, rows, mean[i], variance[i], ctx.eps)
            of_weight += products
            of_bias += sums
            if of_x is not None:
                deviation = (variance[i] + ctx.eps).sqrt()
                voxels = x[i, 0].numel()
                factors = (
                    scale / deviation,
                    -scale * products / voxels / deviation**2,
                    -scale * sums / voxels / deviation,
                )
                _combine(sloped, rows, _repeated(rows, *factors, mean[i]), out=_as_rows(of_x[i]))
        return of_x, _like(weight, of_weight), _like(bias, of_bias), None


def _like(parameter: Tensor | None, gradient: Tensor) -> Tensor | None:
    return None if parameter is None else gradient.to(parameter.dtype)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return scale and shift (C) in single precision, where there are none as ones and zeros."""
    channels = x.shape[1]
    return torch.ones(channels) if weight is None else weight, torch.zeros(channels) if bias is None else bias


def _as_rows(image: Tensor) -> Tensor:
    """Return a view of (C, *S), channels last, as a matrix with a few voxels times the channels in each row."""
    channels, voxels = len(image), image[0].numel()
    most = max(COLUMNS // channels, 1)
    together = next(number for number in range(most, 0, -1) if voxels % number == 0)
    return image.movedim(0, -1).view(voxels // together, together * channels)


def _repeated(rows: Tensor, *values: Tensor) -> list[Tensor]:
    """Return values (C) as they apply to the columns of a matrix, in single precision."""
    return [value.float().repeat(rows.shape[1] // len(value)) for value in values]


def _moments(rows: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance (C) in double precision, joined from those of blocks."""
    none = rows.new_zeros(rows.shape[1], dtype=torch.float32)  # says that sums are of single precision
    blocks = rows.split(ROWS)
    found = [torch.batch_norm_update_stats(block, none, none, 0.0) for block in blocks]
    shape = len(blocks), -1, channels
    means = torch.stack([mean for mean, _ in found]).double().view(shape)
    variances = torch.stack([variance for _, variance in found]).double().view(shape)
    shares = torch.tensor([len(block) for block in blocks], dtype=torch.float64)[:, None, None]
    shares = shares / (len(rows) * means.shape[1])
    mean = (means * shares).sum((0, 1))
    return mean, ((variances + (means - mean) ** 2) * shares).sum((0, 1))


def _normalise(rows: Tensor, columns: list[Tensor], eps: float, out: Tensor) -> None:
    """Write the normalised rows to `out`; `columns` are scale, shift, mean and variance."""
    unused = torch.empty(0), torch.empty(0)
    torch.native_batch_norm(rows, *columns, training=False, momentum=0.0, eps=eps, out=(out, *unused))


def _gradient_sums(gradient: Tensor, rows: Tensor, mean: Tensor, variance: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return per channel (C) the sums of the gradient times the normalised values, and of the gradient, in double."""
    channels = len(mean)
    one, mean, variance = _repeated(rows, torch.ones(channels), mean, variance)
    products, sums = torch.zeros((2, channels), dtype=torch.float64)
    for sloped, block in zip(gradient.split(ROWS), rows.split(ROWS), strict=True):
        _, product, total = torch.ops.aten.native_batch_norm_backward(
            sloped, block, one, mean, variance, None, None, False, eps, [False, True, True]
        )
        products += product.double().view(-1, channels).sum(0)
        sums += total.double().view(-1, channels).sum(0)
    return products, sums


def _combine(gradient: Tensor, rows: Tensor, columns: list[Tensor], out: Tensor) -> None:
    """Write the gradient by the input: gradient times first column, centred rows times second, plus third."""
    of_gradient, of_rows, constant, mean = columns
    for sloped, block, found in zip(gradient.split(ROWS), rows.split(ROWS), out.split(ROWS), strict=True):
        total = torch.addcmul(constant, sloped.float(), of_gradient)
        found.copy_(total.addcmul_(block.float() - mean, of_rows))


def _differentiable(
    gradient: Tensor, inputs: tuple[Tensor | None, ...], eps: float, wanted: tuple[bool, ...]
) -> Iterator[Tensor | None]:
    """Give the gradients by torch's own instance norm, which can be differentiated again."""
    x, weight, bias = inputs
    y = F.instance_norm(x, weight=weight, bias=bias, eps=eps)
    gradient = gradient.contiguous()  # of a single image torch takes others for what they are not
    asked = [tensor for tensor, want in zip(inputs, wanted, strict=False) if want]
    found = iter(torch.autograd.grad(y, asked, gradient, create_graph=True))
    return (next(found) if want else None for want in wanted[: len(inputs)])
