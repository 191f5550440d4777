"""Atrous spatial pyramid pooling: parallel dilated convolutions see one map at several scales.

Source: Chen et al. 2017, DeepLab, arXiv:1606.00915, where the branches are summed; in the form of ResUNet++, Jha et al.
2019, arXiv:1911.07067. Written from the description.
"""

from __future__ import annotations

from collections.abc import Sequence

from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.normalization import make_norm
from torch import Tensor, nn

DILATIONS = (1, 6, 12, 18)


class SumASPP(nn.Module):
    """The sum of 3-convolutions of several dilations, each normalised, without activation; then a 1x1 convolution.

    x (B, before, *S) -> (B, after, *S). A dilation is one number, or one per axis.
    """

    def __init__(
        self,
        dims: int,
        before: int,
        after: int,
        *,
        dilations: Sequence[int | Sequence[int]] = DILATIONS,
        norm: str = "batch",
    ):
        super().__init__()
        conv, _, _ = conv_classes(dims)
        steps = [(step,) * dims if isinstance(step, int) else tuple(step) for step in dilations]
        self.branches = nn.ModuleList(
            nn.Sequential(conv(before, after, 3, padding=step, dilation=step), make_norm(dims, norm, after))
            for step in steps
        )
        self.out = conv(after, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the joined scales."""
        first, *others = self.branches
        total = first(x)
        for branch in others:
            total = total + branch(x)
        return self.out(total)


def scaled_dilations(shape: Sequence[int], *, usual: int | None = None) -> list[tuple[int, ...]]:
    """Return DILATIONS per axis for a map of `shape`: where they would reach beyond the map they are 1.

    With `usual` they shrink and grow with the map, from those for an edge of that length.
    """

    def fit(step: int, edge: int) -> int:
        if usual is not None and step > 1:
            step = max(1, round(edge / usual * step))
        return step if step <= edge - 1 else 1

    return [tuple(fit(step, edge) for edge in shape) for step in DILATIONS]
