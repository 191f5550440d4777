"""Weights of MONAI's Swin UNETR, or of its pretrained encoder alone, under the names of `swin_smt`.

Source: Hatamizadeh et al. 2022, Swin UNETR, arXiv:2201.01266; Tang et al. 2022, arXiv:2111.14791 (the encoder).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_CONVS = {"conv1": "convs.0", "conv2": "convs.3", "conv3": "skip.0"}
_RULES = [  # a pattern of their name without swinViT., ours
    (r"patch_embed\.proj\.(\w+)", "embedding.{0}"),
    (r"layers(?P<stage>\d)\.0\.blocks\.(\d+\.mlp)\.linear(\d)\.(\w+)", "stages.{stage}.blocks.{1}.fc{2}.{3}"),
    (r"layers(?P<stage>\d)\.0\.blocks\.(\d+)\.(.+)", "stages.{stage}.blocks.{1}.{2}"),
    (r"layers(?P<stage>\d)\.0\.downsample\.(.+)", "stages.{stage}.merge.{1}"),
    (r"layers(?P<stage>\d)c\.0\.layer\.(?P<conv>conv\d)\.conv\.(\w+)", "stages.{stage}.entry.{conv}.{2}"),
    (r"encoder(?P<stage>\d+)\.layer\.(?P<conv>conv\d)\.conv\.(\w+)", "refine.{stage}.{conv}.{2}"),
    (r"decoder(?P<stage>\d)\.transp_conv\.conv\.(\w+)", "ups.{stage}.up.{1}"),
    (r"decoder(?P<stage>\d)\.conv_block\.(?P<conv>conv\d)\.conv\.(\w+)", "ups.{stage}.block.{conv}.{2}"),
    (r"out\.conv\.conv\.(\w+)", "head.{0}"),
]
BOTTOM = {10: 6}  # their tenth encoder refines the sixth resolution


def is_swin_unetr(weights: Mapping[str, Tensor]) -> bool:
    """Return whether the weights have MONAI's names."""
    return any(re.match(r"(swinViT\.)?layers1\.0\.blocks\.0\.", name) for name in weights)


def translate(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names are known, under the names here."""
    return {ours: tensor for name, tensor in weights.items() if (ours := _name(name)) is not None}


def _name(name: str) -> str | None:
    for pattern, ours in _RULES:
        if match := re.fullmatch(pattern, name.removeprefix("swinViT.")):
            parts = match.groupdict()
            if "stage" in parts:
                number = int(parts["stage"])
                parts["stage"] = BOTTOM.get(number, number) - 1
            if "conv" in parts:
                parts["conv"] = _CONVS[parts["conv"]]
            return ours.format(*match.groups(), **parts)
    return None
