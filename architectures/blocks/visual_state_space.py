"""The visual state-space block: selective scans along all axes of a map, forwards and backwards, weights of their own.

Maps are channel-last, (B, *S, C), 2D with four scans and 3D with six. With `gate` it is VMamba's first form (a gate, no
perceptron), without it the later one.

Source: Liu et al. 2024, VMamba, arXiv:2401.10166; as in Ruan et al. 2024, VM-UNet, arXiv:2402.02491, and Chen et al.
2024, MSVM-UNet, arXiv:2408.13735; written from the description.
"""

from __future__ import annotations

import math

import torch
from autoseg.architectures.blocks.cross_scan import cross_merge, cross_scan, scan_count
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.eva import DropPath
from autoseg.architectures.blocks.mamba import draw_step_bias
from autoseg.architectures.blocks.selective_scan import selective_scan
from torch import Tensor, nn


class VisualStateSpaceBlock(nn.Module):
    """x + SS2D(LN(x)), then, with an `mlp`, x + MLP(LN(x)): (B, *S, C) -> (B, *S, C); further keywords go to `SS2D`."""

    def __init__(self, dims: int, width: int, *, drop_path: float = 0.0, mlp: nn.Module | None = None, **scan):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = SS2D(dims, width, **scan)
        self.drop_path = DropPath(drop_path)
        self.mlp_norm = None if mlp is None else nn.LayerNorm(width)
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        """Return the map of the next block."""
        x = x + self.drop_path(self.mix(self.norm(x)))
        return x if self.mlp is None else x + self.drop_path(self.mlp(self.mlp_norm(x)))


class SS2D(nn.Module):
    """Projection, depthwise convolution, scans in all directions, LayerNorm, gate, projection: (B, *S, C) -> the same.

    `expand` times C channels are scanned with `state` numbers each.
    """

    def __init__(
        self, dims: int, width: int, *, expand: int = 2, state: int = 16, gate: bool = True, conv_bias: bool = True
    ):
        super().__init__()
        inner, self.gated = expand * width, gate
        self.in_proj = nn.Linear(width, (2 if gate else 1) * inner, bias=False)
        self.conv = conv_classes(dims)[0](inner, inner, 3, padding=1, groups=inner, bias=conv_bias)
        self.scans = DirectionalScans(scan_count(dims), inner, math.ceil(width / 16), state)
        self.norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed map, without a residual."""
        u = self.in_proj(x)
        gate = None
        if self.gated:
            u, gate = u.chunk(2, -1)
        u = nn.functional.silu(self.conv(u.movedim(-1, 1))).movedim(1, -1)
        y = self.norm(self.core(u))
        return self.out_proj(y if gate is None else y * nn.functional.silu(gate))

    def core(self, u: Tensor) -> Tensor:
        """Return the sum of the scans of u (B, *S, E) in all directions."""
        return cross_merge(self.scans(cross_scan(u)), u.shape[1:-1])


class DirectionalScans(nn.Module):
    """One selective scan per direction, each with its own weights: u (B, K, L, E) -> (B, K, L, E)."""

    def __init__(self, count: int, width: int, rank: int, state: int):
        super().__init__()
        self.split = (rank, state, state)
        self.x_proj = nn.Parameter(torch.empty(count, rank + 2 * state, width))
        self.dt_proj = nn.Parameter(torch.empty(count, width, rank))
        self.dt_bias = nn.Parameter(torch.empty(count, width))
        self.A_log = nn.Parameter(torch.arange(1, state + 1, dtype=torch.float32).log().repeat(count, width, 1))
        self.D = nn.Parameter(torch.ones(count, width))
        nn.init.uniform_(self.x_proj, -(width**-0.5), width**-0.5)  # as torch draws linear layers
        nn.init.uniform_(self.dt_proj, -(rank**-0.5), rank**-0.5)
        draw_step_bias(self.dt_bias)

    def forward(self, u: Tensor) -> Tensor:
        """Return the scanned sequences."""
        step, b, c = (u @ self.x_proj.mT).split(self.split, dim=-1)
        delta = nn.functional.softplus((step @ self.dt_proj.mT).float() + self.dt_bias[:, None])
        return selective_scan(u, delta, -torch.exp(self.A_log.float()), b, c, self.D)


def drop_path_rates(last: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Return rates from 0 to `last`, linear over all blocks, by stage."""
    rates = iter([last * block / max(1, sum(depths) - 1) for block in range(sum(depths))])
    return [[next(rates) for _ in range(depth)] for depth in depths]
