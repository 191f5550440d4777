"""Published weights of VMamba under the names that the networks here give their encoders.

Known are both generations: `ln_1` and `self_attention` of the first, `norm`, `op`, `norm2` and `mlp` of the later one.

Source: Liu et al. 2024, VMamba, arXiv:2401.10166; names as Ruan et al. 2024, VM-UNet, arXiv:2402.02491, and Chen et al.
2024, MSVM-UNet, arXiv:2408.13735, load them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

_BLOCK = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.(\w+)\.?(.*)")
_MIX = {  # of the scans' layer
    "in_proj": "in_proj", "conv2d": "conv", "out_norm": "norm", "out_proj": "out_proj", "x_proj_weight": "scans.x_proj",
    "dt_projs_weight": "scans.dt_proj", "dt_projs_bias": "scans.dt_bias", "A_logs": "scans.A_log", "Ds": "scans.D",
}  # fmt: skip


def is_vmamba(weights: Mapping[str, Tensor]) -> bool:
    """Return whether the weights have VMamba's names."""
    return "layers.0.blocks.0.ln_1.weight" in weights or "layers.0.blocks.0.op.x_proj_weight" in weights


def vmamba_block(name: str, tensor: Tensor) -> tuple[int, str, Tensor] | None:
    """Return the stage of a block's tensor, its name here from the block's number on, and itself in our shape.

    None where the name is not that of a block's tensor.
    """
    match = _BLOCK.fullmatch(name)
    if match is None:
        return None
    stage, block, part, rest = match.groups()
    if part in ("ln_1", "norm"):
        return int(stage), f"{block}.norm.{rest}", tensor
    if part == "norm2":
        return int(stage), f"{block}.mlp_norm.{rest}", tensor
    if part == "mlp":
        return int(stage), f"{block}.mlp.{rest}", _flat(tensor)
    if part not in ("self_attention", "op"):
        return None
    layer, _, rest = rest.partition(".")
    if layer not in _MIX:
        return None
    if layer in ("A_logs", "Ds"):  # directions and channels in one axis
        tensor = tensor.unflatten(0, (4, -1))
    if layer in ("in_proj", "out_proj"):
        tensor = _flat(tensor)
    return int(stage), f"{block}.mix.{_MIX[layer]}{'.' if rest else ''}{rest}", tensor


def numbered(weights: Mapping[str, Tensor], prefix: str, numbers: Sequence[int]) -> dict[str, Tensor]:
    """Return a sequence's tensors by "number.name"; its layers that have some get these numbers, in their order."""
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        match = re.fullmatch(re.escape(prefix) + r"(\d+)\.(\w+)", name)
        if match:
            layers.setdefault(int(match[1]), {})[match[2]] = tensor
    ordered = zip(numbers, (layers[place] for place in sorted(layers)), strict=False)
    return {f"{number}.{name}": tensor for number, layer in ordered for name, tensor in layer.items()}


def _flat(tensor: Tensor) -> Tensor:
    """Return the matrix of a 1x1 convolution; other tensors as they are."""
    return tensor.flatten(1) if tensor.ndim == 4 else tensor
