"""Position attention: every position of a map adds a mixture of all others.

Source: Fu et al. 2019, Dual Attention Network, arXiv:1809.02983; written from the description.
"""

from __future__ import annotations

import torch
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.gated_cross_attention import pooling
from torch import Tensor, nn

REDUCTION = 8  # of the channels of queries and keys


class PositionAttention(nn.Module):
    """gamma (V softmax(Q^T K)^T) + x for x (B, C, *S): 1x1 convolutions, products not scaled; gamma starts at 0.

    Maps of more than `max_tokens` positions have keys and values averaged over cells, so that no more are left; every
    position still has its own query.
    """

    def __init__(self, dims: int, width: int, *, max_tokens: int | None = None):
        super().__init__()
        conv, _, _ = conv_classes(dims)
        inner = max(1, width // REDUCTION)
        self.query, self.key = conv(width, inner, 1), conv(width, inner, 1)
        self.value = conv(width, width, 1)
        self.gamma = nn.Parameter(torch.zeros(()))
        self.max_tokens = max_tokens

    def forward(self, x: Tensor) -> Tensor:
        """Return the map with the mixtures added."""
        source = x
        if self.max_tokens is not None:
            cell = pooling(x.shape[2:], self.max_tokens)
            if max(cell) > 1:
                pool = (nn.functional.avg_pool2d, nn.functional.avg_pool3d)[x.ndim - 4]
                source = pool(x, cell, cell, ceil_mode=True, count_include_pad=False)
        query, key, value = (t.flatten(2).mT for t in (self.query(x), self.key(source), self.value(source)))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        return self.gamma * mixed.mT.unflatten(2, x.shape[2:]) + x
