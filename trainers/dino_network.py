"""What self-distillation trains: a vision transformer, and the head that turns its features into scores.

Source: Caron et al. 2021, DINO, arXiv:2104.14294, section 3.1 and appendix C; written from the description.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from autoseg.architectures.blocks.dino_vit import DinoViT, ViTSize
from autoseg.architectures.blocks.initial_weights import STD, draw_linear
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """features (B, C) -> scores (B, outputs) in -1..1: three layers, a unit vector, its cosines to one per output.

    The last layer is weight-normalised with magnitude 1: rows are used as unit vectors.
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, outputs: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.last = nn.Linear(bottleneck, outputs, bias=False)

    def forward(self, features: Tensor, *, last_learns: bool = True) -> Tensor:
        """Return the scores; the gradient of the last layer is 0 unless it learns."""
        weight = self.last.weight
        if not last_learns:
            weight = weight.detach() + 0 * weight  # a gradient of 0, not none, which processes would wait for
        unit = nn.functional.normalize(self.mlp(features), dim=-1)
        return nn.functional.linear(unit, nn.functional.normalize(weight, dim=-1))


class DinoNetwork(nn.Module):
    """Student or teacher: stacks of crops, each (n, 3, H, W) -> scores (sum of n, outputs)."""

    def __init__(self, size: ViTSize, *, hidden: int, bottleneck: int, outputs: int):
        super().__init__()
        self.backbone = DinoViT(size)
        self.head = ProjectionHead(size.width, hidden, bottleneck, outputs)
        self.apply(draw_linear)
        for tensor in (self.backbone.cls_token, self.backbone.pos_embed):
            nn.init.trunc_normal_(tensor, std=STD)

    def forward(self, stacks: Sequence[Tensor], *, last_learns: bool = True) -> Tensor:
        """Return the scores of all crops in one call: processes agree on gradients once per step."""
        return self.head(torch.cat([self.backbone(stack) for stack in stacks]), last_learns=last_learns)
