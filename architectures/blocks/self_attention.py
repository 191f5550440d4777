"""Plain multi-head self-attention and the pre-norm transformer layer.

Source: Vaswani et al. 2017, Attention Is All You Need, arXiv:1706.03762; the layer with its norms before the branches
is that of Dosovitskiy et al. 2021, ViT, arXiv:2010.11929; written from the description.
"""

from __future__ import annotations

from collections.abc import Callable

from autoseg.architectures.blocks.eva import DropPath
from autoseg.architectures.blocks.mlp import Mlp
from torch import Tensor, nn


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, *, dropout: float = 0.0) -> Tensor:
    """Return softmax over keys of (query x key / sqrt(width of a head)) x value, head by head, heads merged.

    query (B, N, C), key (B, M, C), value (B, M, D) -> (B, N, D); `heads` divides C and D. `dropout` acts on the
    attention weights, so give 0 in eval mode.
    """
    q, k, v = (tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (query, key, value))
    mixed = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    return mixed.transpose(1, 2).flatten(2)


def common_heads(width: int, heads: int) -> int:
    """Return the greatest number up to `heads` that divides `width`."""
    return next(number for number in range(min(heads, width), 0, -1) if width % number == 0)


class SelfAttention(nn.Module):
    """Multi-head self-attention with an output projection: tokens (B, N, C) -> (B, N, C).

    `dropout` acts on the attention weights and on what the projection gives.
    """

    def __init__(self, width: int, heads: int, *, qkv_bias: bool = True, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the attended tokens, without a residual; keys and values come from `context` (B, M, C) if given."""
        if context is None:
            q, k, v = self.qkv(tokens).chunk(3, -1)
        else:
            width = tokens.shape[-1]
            weights, biases = self.qkv.weight.split([width, 2 * width]), (None, None)
            if self.qkv.bias is not None:
                biases = self.qkv.bias.split([width, 2 * width])
            q = nn.functional.linear(tokens, weights[0], biases[0])
            k, v = nn.functional.linear(context, weights[1], biases[1]).chunk(2, -1)
        rate = self.dropout.p if self.training else 0.0
        return self.dropout(self.out(attend(q, k, v, self.heads, dropout=rate)))


class TransformerLayer(nn.Module):
    """tokens (B, N, C) -> (B, N, C): self-attention and perceptron, each normalised before and added."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, qkv_bias=qkv_bias, dropout=dropout)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = Mlp(width, hidden, drop=dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, shorten: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return the tokens of the next layer; `shorten` makes the tokens of keys and values from normalised ones."""
        normed = self.norm_attention(tokens)
        tokens = tokens + self.drop_path(self.attention(normed, shorten(normed) if shorten else None))
        return tokens + self.drop_path(self.mlp(self.norm_mlp(tokens)))
