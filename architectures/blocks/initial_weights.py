"""First values of linear layers as vision transformers have them.

Source: Dosovitskiy et al. 2021, ViT, arXiv:2010.11929, and most that followed.
"""

from __future__ import annotations

from torch import nn

STD = 0.02


def draw_linear(module: nn.Module) -> None:
    """Draw the weight of a linear layer from a truncated normal, its bias is 0; for `network.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
