"""Fast Fourier convolution: a local part of the channels and a global one that is convolved in the Fourier domain.

A 1x1 convolution of the Fourier coefficients reaches the whole map at once and takes it as periodic. Transforms run in
float32 also under autocast.

Source: Chi et al. 2020, Fast Fourier Convolution, NeurIPS, with kernels of 1 as in Farshad et al. 2022, Y-Net,
arXiv:2204.07613; written from the description.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.normalization import make_norm
from torch import Tensor, nn


class FourierUnit(nn.Module):
    """x (B, C, *S) -> (B, C, *S): transform over `axes` of S, 1x1 convolution, norm, ReLU, transform back.

    The convolution has the real and the imaginary part of channel c as its channels 2 c and 2 c + 1.
    """

    def __init__(self, dims: int, width: int, axes: Sequence[int], norm: str):
        super().__init__()
        conv, _, _ = conv_classes(dims)
        self.axes = tuple(axis + 2 for axis in axes)
        self.conv = conv(2 * width, 2 * width, 1, bias=False)
        self.norm = make_norm(dims, norm, 2 * width)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the filtered map."""
        y = self.act(self.norm(self.conv(self.spectrum(x).to(x.dtype))))
        return self.image(y, [x.shape[axis] for axis in self.axes]).to(x.dtype)

    def spectrum(self, x: Tensor) -> Tensor:
        """Return the coefficients as real channels (B, 2 C, *S with the last of `axes` halved), float32."""
        with torch.autocast(x.device.type, enabled=False):
            coefficients = torch.fft.rfftn(x.float(), dim=self.axes, norm="ortho")
            return torch.view_as_real(coefficients).movedim(-1, 2).flatten(1, 2)

    def image(self, y: Tensor, sizes: Sequence[int]) -> Tensor:
        """Undo `spectrum` for maps of these sizes along `axes`."""
        with torch.autocast(y.device.type, enabled=False):
            pairs = y.float().unflatten(1, (-1, 2)).movedim(2, -1).contiguous()
            return torch.fft.irfftn(torch.view_as_complex(pairs), s=list(sizes), dim=self.axes, norm="ortho")


class SpectralTransform(nn.Module):
    """x (B, a, *S) -> (B, b, *S): at half of b channels, the map, its Fourier unit and that of its parts, added.

    The local Fourier unit cuts the first channels into halves along every axis of `axes`, works on these parts as
    channels, and repeats what it gives; there is none where 2 ** len(axes) does not divide b / 2.
    """

    def __init__(self, dims: int, before: int, after: int, axes: Sequence[int], norm: str):
        super().__init__()
        conv, _, _ = conv_classes(dims)
        inner = max(1, after // 2)
        self.axes = tuple(axes)
        self.enter = nn.Sequential(
            conv(before, inner, 1, bias=False), make_norm(dims, norm, inner), nn.ReLU(inplace=True)
        )
        self.whole = FourierUnit(dims, inner, axes, norm)
        parts = 2 ** len(self.axes)
        self.parts = FourierUnit(dims, inner, axes, norm) if inner % parts == 0 else None
        self.out = conv(inner, after, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed map."""
        u = self.enter(x)
        y = u + self.whole(u)
        if self.parts is not None:
            first = u[:, : u.shape[1] // 2 ** len(self.axes)]
            y = y + repeat_parts(self.parts(cut_parts(first, self.axes)), self.axes, u.shape[2:])
        return self.out(y)


class FourierConvolution(nn.Module):
    """(local, global) -> (local, global) of half-and-half channels, kernel 1; either part may be absent (None).

    local: convolutions of both parts; global: a convolution of the local and the spectral transform of the global part.
    `global_before` of `before` and `global_after` of `after` channels are global.
    """

    def __init__(
        self, dims: int, before: int, after: int, global_before: int, global_after: int, *, axes: Sequence[int],
        norm: str,
    ):  # fmt: skip
        super().__init__()
        conv, _, _ = conv_classes(dims)
        local_before, local_after = before - global_before, after - global_after

        def join(a: int, b: int) -> nn.Module | None:
            return conv(a, b, 1, bias=False) if a and b else None

        self.local_to_local = join(local_before, local_after)
        self.global_to_local = join(global_before, local_after)
        self.local_to_global = join(local_before, global_after)
        both = global_before and global_after
        self.global_to_global = SpectralTransform(dims, global_before, global_after, axes, norm) if both else None
        self.local_norm = make_norm(dims, norm, local_after) if local_after else None
        self.global_norm = make_norm(dims, norm, global_after) if global_after else None

    def forward(self, local: Tensor | None, everywhere: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return both parts, normalised."""
        to_local = _add((self.local_to_local, local), (self.global_to_local, everywhere))
        to_global = _add((self.local_to_global, local), (self.global_to_global, everywhere))
        return (
            None if self.local_norm is None else self.local_norm(to_local),
            None if self.global_norm is None else self.global_norm(to_global),
        )


def cut_parts(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Return the halves of x (B, C, *S) along every axis of `axes` as channels, those of the first axis fastest.

    Odd axes are zero-padded at the end.
    """
    for axis in (axis + 2 for axis in axes):
        if x.shape[axis] % 2:
            x = nn.functional.pad(x, [0, 0] * (x.ndim - 1 - axis) + [0, 1])
        x = torch.cat(x.chunk(2, axis), 1)
    return x


def repeat_parts(x: Tensor, axes: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Return x twice along every axis of `axes`, cut to `sizes`."""
    x = x.repeat(1, 1, *(2 if axis in axes else 1 for axis in range(x.ndim - 2)))
    return x[(slice(None), slice(None), *(slice(size) for size in sizes))]


def _add(*pairs: tuple[nn.Module | None, Tensor | None]) -> Tensor | None:
    outputs = [module(x) for module, x in pairs if module is not None]
    return sum(outputs[1:], outputs[0]) if outputs else None
