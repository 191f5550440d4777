"""Weights of encoders that were trained to classify, under the names that networks here give these encoders.

Known are the widespread names of ResNets (conv1, bn1, layer1, ...), of Swin transformers (layers.0.blocks, ...) and of
SegNeXt's MSCAN (patch_embed1, block1, ...). What is not an encoder's, such as the classifier itself, is left out.

Source: He et al. 2016, arXiv:1512.03385; Liu et al. 2021, arXiv:2103.14030; Guo et al. 2022, arXiv:2209.08575.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_MSCAN = [  # a pattern of their name, ours in `mcanet`
    (r"patch_embed1\.proj\.(\d\..+)", "stages.0.0.{0}"),
    (r"patch_embed(?P<stage>\d)\.proj\.(.+)", "stages.{stage}.0.0.{1}"),
    (r"patch_embed(?P<stage>\d)\.norm\.(.+)", "stages.{stage}.0.1.{1}"),
    (r"block(?P<stage>\d)\.(?P<block>\d+)\.(norm\d\..+)", "stages.{stage}.{block}.{2}"),
    (r"block(?P<stage>\d)\.(?P<block>\d+)\.layer_scale_(\d)", "stages.{stage}.{block}.scale{2}"),
    (r"block(?P<stage>\d)\.(?P<block>\d+)\.attn\.proj_1\.(.+)", "stages.{stage}.{block}.attention.enter.0.{2}"),
    (r"block(?P<stage>\d)\.(?P<block>\d+)\.attn\.proj_2\.(.+)", "stages.{stage}.{block}.attention.leave.{2}"),
    (r"block(?P<stage>\d)\.(?P<block>\d+)\.attn\.spatial_gating_unit\.conv0\.(.+)",
     "stages.{stage}.{block}.attention.near.{2}"),
    (r"block(?P<stage>\d)\.(?P<block>\d+)\.attn\.spatial_gating_unit\.conv3\.(.+)",
     "stages.{stage}.{block}.attention.mix.{2}"),
    (r"block(?P<stage>\d)\.(?P<block>\d+)\.attn\.spatial_gating_unit\.conv(\d)_(?P<strip>\d)\.(.+)",
     "stages.{stage}.{block}.attention.strips.{2}.{strip}.{4}"),
    (r"block(?P<stage>\d)\.(?P<block>\d+)\.mlp\.fc1\.(.+)", "stages.{stage}.{block}.mlp.0.{2}"),
    (r"block(?P<stage>\d)\.(?P<block>\d+)\.mlp\.dwconv\.(?:dwconv\.)?(.+)", "stages.{stage}.{block}.mlp.1.{2}"),
    (r"block(?P<stage>\d)\.(?P<block>\d+)\.mlp\.fc2\.(.+)", "stages.{stage}.{block}.mlp.3.{2}"),
]  # fmt: skip


def resnet_weights(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors of a ResNet, `prefix` before their names."""
    return {f"{prefix}{name}": t for name, t in weights.items() if re.match(r"(conv1|bn1|layer\d)\.", name)}


def swin_weights(weights: Mapping[str, Tensor], stages: str, merges: str) -> dict[str, Tensor]:
    """Return the tensors of a Swin transformer's blocks and mergings, named `stages` and `merges` and their number."""
    found = {}
    for name, tensor in weights.items():
        if match := re.fullmatch(r"layers\.(\d+)\.(blocks\..+)", name):
            found[f"{stages}{match[1]}.{match[2]}"] = tensor
        elif match := re.fullmatch(r"layers\.(\d+)\.downsample\.(.+)", name):
            found[f"{merges}{match[1]}.{match[2]}"] = tensor
    return found


def mscan_weights(weights: Mapping[str, Tensor], dims: int) -> dict[str, Tensor]:
    """Return the tensors of an MSCAN under the names of `mcanet`."""
    plain = {name.removeprefix("backbone."): tensor for name, tensor in weights.items()}
    blocks = [match for name in plain if (match := re.match(r"block(\d)\.(\d+)\.", name))]
    depths = {stage: 1 + max(int(m[2]) for m in blocks if int(m[1]) == stage) for stage in {int(m[1]) for m in blocks}}
    found = {}
    for name, tensor in plain.items():
        if (match := re.fullmatch(r"norm(\d)\.(.+)", name)) and int(match[1]) in depths:
            found[f"stages.{int(match[1]) - 1}.{1 + depths[int(match[1])]}.{match[2]}"] = tensor
        for pattern, ours in _MSCAN:
            if match := re.fullmatch(pattern, name):
                numbers = match.groupdict()
                names = {"stage": int(numbers.get("stage", 1)) - 1, "block": int(numbers.get("block", 0)) + 1,
                         "strip": int(numbers.get("strip", 1)) - 1}  # fmt: skip
                is_scale = "layer_scale" in name and tensor.ndim == 1
                found[ours.format(*match.groups(), **names)] = tensor.view(-1, *[1] * dims) if is_scale else tensor
                break
    return found
