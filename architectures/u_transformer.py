"""U-Transformer. Source: Petit et al. 2021, MLMI, arXiv:2103.06104; written from the description, no code taken.

A U-Net with two kinds of all-pairs attention: multi-head self-attention at its bottom, and on every skip a gate by
which the coarse decoder map, looking everywhere, decides what of the skip is kept.

Taken from the plan: resolutions, widths, strides (pooling and up-sampling use them, so a coarse axis keeps its size)
and kernels. Two convolutions per stage always. 3D is an extension: positions have a third of the channels per axis.
Any image that leaves two voxels at the bottom can be predicted. Options: heads (8, or the greatest number below that
divides a width into heads of 8 channels or more; the count of parameters does not depend on it), max_tokens (4096:
skips whose coarse map has more positions attend on an averaged grid, which is logged), mhsa_residual (false, as
published: attention replaces the bottom), norm ("batch", published and the default in 2D, needs two values per channel;
"instance", the default in 3D, where batches are small).

The paper leaves depth, width and number of heads open; the reference is a re-implementation's, with its two faults
mended: softmax over keys, a sigmoid gate. Heads at lower resolution, made only with deep supervision, are an extension.
Published, from memory: Adam, learning rate 1e-4 (its recipe, used unless others are given, without deep supervision).

Parameters in 2D with three channels, one output, widths 64 to 512, without deep supervision: reference 11 677 825, the
same here.
"""

from __future__ import annotations

from typing import Any

from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.double_conv import double_conv
from autoseg.architectures.blocks.gated_cross_attention import GatedCrossAttention, pooling
from autoseg.architectures.blocks.normalization import NORMS, usual_norm
from autoseg.architectures.blocks.self_attention import attend, common_heads
from autoseg.architectures.blocks.sinusoidal_positions import add_positions
from autoseg.architectures.blocks.telling import tell
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

HEAD_WIDTH = 8  # at least; of the reference's narrowest map


@register.architecture("u_transformer")
class UTransformer(Architecture):
    """U-Transformer, 2D and 3D: a U-Net with self-attention at the bottom and attention gates on the skips."""

    defaults = {"heads": 8, "max_tokens": 4096, "mhsa_residual": False, "norm": None}
    choices = {"mhsa_residual": (False, True), "norm": (None, *NORMS)}
    recipe = {"optimizer": "adam", "learning_rate": 1e-4, "weight_decay": 0.0, "deep_supervision": False}

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        widths, kernels, levels = spec.features, spec.kernel_sizes, len(spec.features)
        if levels < 2:
            raise UserError("u_transformer needs at least two resolutions", mend="plan larger patches")
        heads, most = (_positive(self.options, name) for name in ("heads", "max_tokens"))
        conv, _, _ = conv_classes(spec.dims)
        norm = self.options["norm"] or usual_norm(spec.dims)
        self.encoder = nn.ModuleList(
            double_conv(widths[s - 1] if s else spec.in_channels, widths[s], kernels[s], norm, pool=spec.strides[s])
            for s in range(levels)
        )
        self.attention = MapAttention(widths[-1], heads_for(widths[-1], heads))
        self.gates = nn.ModuleList(
            GatedCrossAttention(
                *(widths[s + 1], widths[s], spec.strides[s + 1], kernels[s], heads_for(widths[s], heads)),
                norm=norm,
                max_tokens=most,
            )
            for s in range(levels - 1)
        )
        self.decoder = nn.ModuleList(double_conv(2 * widths[s], widths[s], kernels[s], norm) for s in range(levels - 1))
        outputs = levels - 1 if spec.deep_supervision else 1
        self.heads = nn.ModuleList(conv(width, spec.num_outputs, 1) for width in widths[:outputs])
        self._log_pooling(most)

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Fix the norm; every stage has two convolutions."""
        options, levels = cls.read_options(spec), len(spec.features)
        options["norm"] = options["norm"] or usual_norm(spec.dims)
        blocks = {"blocks_encoder": (2,) * levels, "blocks_decoder": (2,) * (levels - 1)}
        return spec.model_copy(update={**blocks, "options": options})

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return one map (B, F, *S / stride) per stage, high to low resolution, for x (B, C, *S)."""
        features = []
        for stage in self.encoder:
            x = stage(x)
            features.append(x)
        mixed = self.attention(x)
        features[-1] = x + mixed if self.options["mhsa_residual"] else mixed
        return features

    def decode(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """Return logits (B, K, *S), or the deep-supervision list while training."""
        x, outputs = features[-1], []
        everything = self.training and self.spec.deep_supervision
        for level in reversed(range(len(self.gates))):
            x = self.decoder[level](self.gates[level](x, features[level]))
            if everything or level == 0:
                outputs.append(self.heads[level](x))
        return outputs[::-1] if everything else outputs[-1]

    def _log_pooling(self, most: int) -> None:
        grid = list(self.spec.patch_size)
        for level, stride in enumerate(self.spec.strides):
            grid = [edge // step for edge, step in zip(grid, stride, strict=True)]
            factors = pooling(grid, most) if level else (1,)
            if max(factors) > 1:
                tell(__name__, f"u_transformer: the gate of skip {level - 1} attends on a grid averaged by {factors}")


class MapAttention(nn.Module):
    """Multi-head self-attention over all positions of x (B, C, *S); no biases, no output projection, no residual."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended map for x without positions."""
        return self.attend(add_positions(x))

    def attend(self, x: Tensor) -> Tensor:
        """Return the attended map for x that has its positions."""
        tokens = x.flatten(2).mT
        mixed = attend(self.query(tokens), self.key(tokens), self.value(tokens), self.heads)
        return mixed.mT.unflatten(2, x.shape[2:])


def heads_for(width: int, heads: int) -> int:
    """Return `heads`, or fewer, so that they divide the width and have 8 channels each."""
    return common_heads(width, min(heads, max(1, width // HEAD_WIDTH)))


def _positive(options: dict[str, Any], name: str) -> int:
    value = options[name]
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{name} must be a whole number from 1, got {value!r}", where=f"network.options.{name}")
    return value
