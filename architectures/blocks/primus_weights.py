"""Published weights of Primus under the names here.

The authors' network is that of dynamic-network-architectures (Apache-2.0), its blocks are timm's EVA.

Source: Wald et al. 2025, Primus, arXiv:2503.01835.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

POSITIONS = "eva.pos_embed"
_RULES = [  # the pattern of a name, and the name here
    (r"eva\.pos_embed", "position"),
    (r"eva\.norm\.(\w+)", "norm.{0}"),
    (r"eva\.blocks\.(\d+)\.gamma_1", "blocks.{0}.scale_attention"),
    (r"eva\.blocks\.(\d+)\.gamma_2", "blocks.{0}.scale_mlp"),
    (r"eva\.blocks\.(\d+)\.norm1\.(\w+)", "blocks.{0}.norm_attention.{1}"),
    (r"eva\.blocks\.(\d+)\.norm2\.(\w+)", "blocks.{0}.norm_mlp.{1}"),
    (r"eva\.blocks\.(\d+)\.attn\.q_proj\.(\w+)", "blocks.{0}.attention.query.{1}"),
    (r"eva\.blocks\.(\d+)\.attn\.k_proj\.(\w+)", "blocks.{0}.attention.key.{1}"),
    (r"eva\.blocks\.(\d+)\.attn\.v_proj\.(\w+)", "blocks.{0}.attention.value.{1}"),
    (r"eva\.blocks\.(\d+)\.attn\.norm\.(\w+)", "blocks.{0}.attention.norm.{1}"),
    (r"eva\.blocks\.(\d+)\.attn\.proj\.(\w+)", "blocks.{0}.attention.out.{1}"),
    (r"eva\.blocks\.(\d+)\.mlp\.fc1_g\.(\w+)", "blocks.{0}.mlp.gate.{1}"),
    (r"eva\.blocks\.(\d+)\.mlp\.fc1_x\.(\w+)", "blocks.{0}.mlp.value.{1}"),
    (r"eva\.blocks\.(\d+)\.mlp\.norm\.(\w+)", "blocks.{0}.mlp.norm.{1}"),
    (r"eva\.blocks\.(\d+)\.mlp\.fc2\.(\w+)", "blocks.{0}.mlp.out.{1}"),
    (r"down_projection\.proj\.(\w+)", "tokenizer.{0}"),
    (r"down_projection\.final_proj\.(\w+)", "tokenizer.project.{0}"),
    (r"down_projection\.proj_to_tokens\.(\d+)\.(\w+)", "tokenizer.skips.{0}.{1}"),
    (r"down_projection\.scale_proj_to_tokens\.(\d+)", "tokenizer.skip_scales.{0}"),
]
_BLOCK = re.compile(r"down_projection\.(stem|stages\.(\d+))\.blocks\.0\.(conv1|conv2|skip\.\d)\.(conv|norm)\.(\w+)")
_DECODER = re.compile(r"up_projection\.decode\.(\d+)(?:\.(\d))?\.(\w+)")


def translate(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names are known, under the names here; single numbers become vectors of one."""
    return {
        ours: tensor if tensor.ndim else tensor[None]
        for name, tensor in weights.items()
        if (ours := _name(name)) is not None
    }


def _name(name: str) -> str | None:
    for pattern, ours in _RULES:
        if match := re.fullmatch(pattern, name):
            return ours.format(*match.groups())
    if match := _BLOCK.fullmatch(name):
        part, stage, layer, kind, rest = match.groups()
        block = 0 if part == "stem" else int(stage) + 1
        if layer.startswith("skip"):  # the norm follows the convolution
            return f"tokenizer.blocks.{block}.skip.{int(layer[-1]) + (kind == 'norm')}.{rest}"
        return f"tokenizer.blocks.{block}.convs.{3 * (layer == 'conv2') + (kind == 'norm')}.{rest}"
    if match := _DECODER.fullmatch(name):
        stage, layer, rest = match.groups()
        return f"decoder.{3 * int(stage) + int(layer or 0)}.{rest}"
    return None
