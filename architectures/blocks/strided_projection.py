"""1x1 convolutions with stride, computed as picking voxels and a convolution without stride.

oneDNN (as of torch 2.13) writes beyond its memory in the gradient of a strided 1x1 convolution of fewer than 8
channels in channels-last format on CPUs without AVX-512: the process dies, or numbers are wrong
(https://github.com/uxlfoundation/oneDNN/issues/6035). The convolution below is the same function with the same weights.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def strided_projection(before: int, after: int, stride: tuple[int, ...], *, bias: bool = True) -> nn.Module:
    """Return a 1x1 convolution (B, before, *S) -> (B, after, *S / stride) for 2 or 3 axes; sizes are rounded up."""
    return (_Projection2d, _Projection3d)[len(stride) - 2](before, after, stride, bias)


class _Picking:
    def __init__(self, before: int, after: int, stride: tuple[int, ...], bias: bool):
        super().__init__(before, after, 1, bias=bias)
        self.picks = (..., *(slice(None, None, step) for step in stride))

    def forward(self, x: Tensor) -> Any:
        return super().forward(x[self.picks])


class _Projection2d(_Picking, nn.Conv2d):
    pass


class _Projection3d(_Picking, nn.Conv3d):
    pass
