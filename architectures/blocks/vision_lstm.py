"""The Vision-LSTM block as xLSTM-UNet uses it: one direction, mLSTM with as many heads as its projections are wide.

Source: Alkin et al. 2024, Vision-LSTM, arXiv:2406.04303, in the form of Chen et al. 2024, arXiv:2407.01530; written
from the description.
"""

from __future__ import annotations

import math

import torch
from autoseg.architectures.blocks.mlstm import mlstm
from torch import Tensor, nn

EPSILON = 1e-5
KERNEL = 4  # of the causal convolution
EXPAND = 2


class VisionLSTM(nn.Module):
    """tokens (B, S, d) -> tokens plus their mix, in float32 also under autocast; a token sees those before it."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(width))  # the norms' weights are 1 + this
        self.mix = MatrixLSTMLayer(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens (B, S, d), float32."""
        with torch.autocast(tokens.device.type, enabled=False):
            tokens = tokens.to(self.norm.dtype)
            normed = nn.functional.layer_norm(tokens, self.norm.shape, 1 + self.norm, eps=EPSILON)
            return tokens + self.mix(normed)


class MatrixLSTMLayer(nn.Module):
    """Projection up, causal convolution, mLSTM, gate, projection down: (B, S, d) -> (B, S, d)."""

    def __init__(self, width: int):
        super().__init__()
        inner, self.heads = EXPAND * width, 4 if width % 4 == 0 else 2
        self.up = nn.Linear(width, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, KERNEL, groups=inner, padding=KERNEL - 1)
        self.query, self.key, self.value = (BlockDiagonal(inner, self.heads, width) for _ in range(3))
        self.input_gate, self.forget_gate = nn.Linear(3 * inner, self.heads), nn.Linear(3 * inner, self.heads)
        self.norm = nn.Parameter(torch.zeros(inner))
        self.learnable_skip = nn.Parameter(torch.ones(inner))
        self.down = nn.Linear(inner, width, bias=False)
        nn.init.normal_(self.up.weight, std=math.sqrt(2 / (5 * width)))
        nn.init.normal_(self.down.weight, std=2 / math.sqrt(width))
        for gate in (self.input_gate, self.forget_gate):
            nn.init.zeros_(gate.weight)
        nn.init.normal_(self.input_gate.bias, std=0.1)
        with torch.no_grad():
            self.forget_gate.bias.copy_(torch.linspace(3, 6, self.heads))

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed tokens, without a residual."""
        m, z = self.up(x).chunk(2, -1)
        c = nn.functional.silu(self.conv(m.mT)[..., : x.shape[1]].mT)
        q, k, v = self.query(c), self.key(c), self.value(m)
        gates = torch.cat([q, k, v], -1)
        split = [tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2) for tensor in (q, k, v)]
        h = mlstm(*split, self.input_gate(gates).mT, self.forget_gate(gates).mT)
        h = h.transpose(1, 2).flatten(2)  # (B, S, e)
        h = nn.functional.group_norm(h.flatten(0, 1), self.heads, 1 + self.norm, eps=EPSILON).view_as(h)
        return self.down((h + self.learnable_skip * c) * nn.functional.silu(z))


class BlockDiagonal(nn.Module):
    """A linear map of (B, S, e) that mixes only within groups of `block` neighbouring channels."""

    def __init__(self, width: int, block: int, outer_width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width // block, block, block))  # (group, out, in)
        nn.init.normal_(self.weight, std=math.sqrt(2 / (5 * outer_width)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the map of x."""
        groups, block, _ = self.weight.shape
        return torch.einsum("bsgi,goi->bsgo", x.unflatten(-1, (groups, block)), self.weight).flatten(2)
