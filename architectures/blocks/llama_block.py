"""One frozen transformer layer of a Llama language model, used without rotary positions and without a causal mask.

Source: Touvron et al. 2023, LLaMA, arXiv:2302.13971; grouped queries as in Llama 3, arXiv:2407.21783; as an image
encoder's layer: Marthi Krishna Kumar et al. 2024, arXiv:2410.02458; written from the description.

The weights are buffers, not parameters: no optimiser and no average touches them. Those of a user's file are not saved
with the network, which names the file and its hash instead; random ones are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from autoseg.errors import UserError

EPSILON = 1e-5
HEAD_WIDTH = 128  # of Llama 3's heads, from 8 billion parameters on
NAMES = {  # Meta's and Hugging Face's names of the same tensor
    "wq": ("attention.wq", "self_attn.q_proj"),
    "wk": ("attention.wk", "self_attn.k_proj"),
    "wv": ("attention.wv", "self_attn.v_proj"),
    "wo": ("attention.wo", "self_attn.o_proj"),
    "w1": ("feed_forward.w1", "mlp.gate_proj"),
    "w2": ("feed_forward.w2", "mlp.down_proj"),
    "w3": ("feed_forward.w3", "mlp.up_proj"),
    "attention_norm": ("attention_norm", "input_layernorm"),
    "ffn_norm": ("ffn_norm", "post_attention_layernorm"),
}
_OURS = {theirs: ours for ours, names in NAMES.items() for theirs in names}
_KEY = re.compile(r"(?:(?:.*\.)?layers\.(?P<layer>\d+)\.)?(?P<name>[a-z0-9_.]+)\.weight")


class LlamaSize(NamedTuple):
    """Width, query heads, key and value heads, hidden width of the perceptron."""

    width: int
    heads: int
    kv_heads: int
    hidden: int


LLAMA_3_8B = LlamaSize(4096, 32, 8, 14336)


class LlamaBlock(nn.Module):
    """tokens (B, N, C) -> (B, N, C): grouped-query attention, gated perceptron, a last norm; nothing is trained.

    Without a file the weights are random, drawn as torch draws those of Linear layers.
    """

    def __init__(self, size: LlamaSize, file: Path | None = None):
        super().__init__()
        self.heads, self.kv_heads = size.heads, size.kv_heads
        weights = read_layer(file, size) if file is not None and has_values() else {}
        for name, shape in shapes(size).items():
            tensor = torch.ones(shape) if len(shape) == 1 else torch.empty(shape).uniform_(-1, 1) / shape[1] ** 0.5
            if name in weights:
                tensor.copy_(weights[name])
            self.register_buffer(name, tensor, persistent=file is None)
        self.register_buffer("last_norm", torch.ones(size.width))  # one also with a file: as published

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the layer's output, with its own residuals, normalised."""
        normed = rms_norm(tokens, self.attention_norm)
        q = _heads(nn.functional.linear(normed, self.wq), self.heads)
        shared = self.heads // self.kv_heads
        k, v = (
            _heads(nn.functional.linear(normed, weight), self.kv_heads).repeat_interleave(shared, 1)
            for weight in (self.wk, self.wv)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + nn.functional.linear(mixed, self.wo)
        normed = rms_norm(tokens, self.ffn_norm)
        gated = nn.functional.silu(nn.functional.linear(normed, self.w1)) * nn.functional.linear(normed, self.w3)
        return rms_norm(tokens + nn.functional.linear(gated, self.w2), self.last_norm)


def has_values() -> bool:
    """Return whether tensors that are made now hold numbers: not on the meta device, not when memory is traced."""
    probe = torch.empty(0)
    return type(probe) is torch.Tensor and not probe.is_meta


def shapes(size: LlamaSize) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the layer; raises UserError for sizes that do not fit each other."""
    width, heads, kv_heads, hidden = size
    if min(size) < 1 or width % heads or heads % kv_heads:
        raise UserError(
            f"no Llama layer has width {width}, {heads} heads, {kv_heads} key heads and {hidden} hidden channels",
            where="network.options",
            mend="the heads divide the width, the key heads the heads",
        )
    shared = width // heads * kv_heads
    return {
        "wq": (width, width), "wk": (shared, width), "wv": (shared, width), "wo": (width, width),
        "w1": (hidden, width), "w2": (width, hidden), "w3": (hidden, width),
        "attention_norm": (width,), "ffn_norm": (width,),
    }  # fmt: skip


def size_of(path: Path, head_width: int = HEAD_WIDTH) -> LlamaSize:
    """Return the size of the layer that `read_layer` reads; the width of its heads is in no file."""
    found = {name: tensor.shape for name, tensor in read_layer(path).items()}
    width, shared, hidden = found["wq"][0], found["wk"][0], found["w1"][0]
    return LlamaSize(width, max(1, width // head_width), max(1, shared // head_width), hidden)


def read_layer(path: Path, size: LlamaSize | None = None) -> dict[str, Tensor]:
    """Return the last layer's tensors of a safetensors file by the names here.

    Raises UserError for a file that cannot be read, lacks a tensor, or has others than `size`.
    """
    mend = "give a safetensors file with the nine weights of one layer, named as by Meta or Hugging Face"
    try:
        with safe_open(str(path), "pt") as file:
            keys = _last_layer(file.keys())
            tensors = {name: file.get_tensor(key) for name, key in keys.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"the language model's layer cannot be read: {error}", where=path, mend=mend) from None
    missing = [name for name in NAMES if name not in tensors]
    if missing:
        raise UserError(f"the language model's layer has no {', '.join(missing)}", where=path, mend=mend)
    for name, shape in (shapes(size) if size else {}).items():
        if tuple(tensors[name].shape) != shape:
            raise UserError(f"{name} has shape {tuple(tensors[name].shape)}, not {shape}", where=path, mend=mend)
    return tensors


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Return x / its root mean square over the last axis, times the weight; computed in the weight's precision."""
    return nn.functional.rms_norm(x.to(weight.dtype), weight.shape, weight, EPSILON)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _last_layer(keys: Sequence[str]) -> dict[str, str]:
    """Return the keys in the file, by our names, of the layer with the highest number."""
    layers: dict[int, dict[str, str]] = {}
    for key in keys:
        match = _KEY.fullmatch(key)
        if match and match["name"] in _OURS:
            layers.setdefault(int(match["layer"] or 0), {})[_OURS[match["name"]]] = key
    return layers[max(layers)] if layers else {}
