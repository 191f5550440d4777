"""The Mamba layer on a sequence, and its branch (convolution and selective scan) for layers with several scans.

Source: Gu and Dao 2023, Mamba, arXiv:2312.00752; initial values as in mamba-ssm (Apache-2.0).
"""

from __future__ import annotations

import math

import torch
from autoseg.architectures.blocks.selective_scan import selective_scan
from torch import Tensor, nn

LEAST_STEP, MOST_STEP = 0.001, 0.1  # the step sizes that a fresh layer starts with


class MambaBranch(nn.Module):
    """Causal depthwise convolution, selective scan, gate: x and z (B, L, E) -> (B, L, E)."""

    def __init__(self, width: int, rank: int, state: int = 16, kernel: int = 4):
        super().__init__()
        self.split = (rank, state, state)
        self.conv1d = nn.Conv1d(width, width, kernel, groups=width, padding=kernel - 1)
        self.x_proj = nn.Linear(width, rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(rank, width)
        self.A_log = nn.Parameter(torch.arange(1, state + 1, dtype=torch.float32).log().repeat(width, 1))
        self.D = nn.Parameter(torch.ones(width))
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        draw_step_bias(self.dt_proj.bias)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Return the gated scan of the sequence x."""
        u = nn.functional.silu(self.conv1d(x.mT)[..., : x.shape[1]].mT)
        step, b, c = self.x_proj(u).split(self.split, dim=-1)
        delta = nn.functional.softplus(self.dt_proj(step).float())
        y = selective_scan(u, delta, -torch.exp(self.A_log.float()), b, c, self.D)
        return y * nn.functional.silu(z)


def draw_step_bias(bias: Tensor) -> None:
    """Fill with what gives, by softplus, step sizes from LEAST_STEP to MOST_STEP, uniform in the logarithm."""
    with torch.no_grad():
        step = torch.exp(torch.empty_like(bias).uniform_(math.log(LEAST_STEP), math.log(MOST_STEP)))
        bias.copy_(step + torch.log(-torch.expm1(-step)))


class Mamba(nn.Module):
    """The published layer: tokens (B, L, d) -> (B, L, d), every token sees the tokens before it."""

    def __init__(self, width: int, *, expand: int = 2, state: int = 16, kernel: int = 4):
        super().__init__()
        inner = expand * width
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.branch = MambaBranch(inner, math.ceil(width / 16), state, kernel)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the mixed tokens, without a residual."""
        return self.out_proj(self.branch(*self.in_proj(tokens).chunk(2, -1)))
