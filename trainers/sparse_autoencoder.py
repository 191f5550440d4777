"""An encoder that sees only part of its input, and a decoder that fills in the rest.

Source: Wald et al., CVPR 2025, arXiv:2410.23132 (S3D), after Tian et al. 2023 (SparK); written from the description.
Deviations: the input itself is masked, too, so nothing leaks from masked blocks (the released code masks only what
convolutions give out); statistics are masked sums instead of gathered voxels, so samples may differ in visible voxels;
a stage that is coarser than the blocks in any axis, not only in all, is dense.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool2d, nn.MaxPool3d)
NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d)
MEND = "use --architecture residual_encoder_unet, or --set sparse=false"
POINTWISE = (nn.ReLU, nn.LeakyReLU, nn.GELU, nn.Identity)  # what keeps zeros


class Visible:
    """Which blocks are visible, shared by all layers; None: everything is."""

    def __init__(self) -> None:
        self.blocks: Tensor | None = None  # (B, 1, *lattice) of 0 and 1
        self._sizes: dict[tuple[int, ...], Tensor | None] = {}

    def show(self, blocks: Tensor | None) -> None:
        """Set the blocks of the forward pass to come."""
        self.blocks, self._sizes = blocks, {}

    def at(self, size: torch.Size) -> Tensor | None:
        """Return the mask (B, 1, *size) for maps of a size; None where they are coarser than the blocks: dense."""
        if self.blocks is None:
            return None
        if tuple(size) not in self._sizes:
            self._sizes[tuple(size)] = enlarge(self.blocks, size)
        return self._sizes[tuple(size)]


def enlarge(blocks: Tensor, size: torch.Size) -> Tensor | None:
    """Return blocks (B, 1, *lattice) repeated to (B, 1, *size), None if that is no whole number of times."""
    for axis, length in enumerate(size, start=2):
        if length % blocks.shape[axis]:
            return None
        blocks = blocks.repeat_interleave(length // blocks.shape[axis], dim=axis)
    return blocks


def visible_norm(
    x: Tensor, visible: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Return instance norm of x (B, C, *S) over the visible voxels of each sample, 0 elsewhere; sums in float32."""
    axes = tuple(range(2, x.ndim))
    values, visible = x.float(), visible.float()
    count = visible.sum(axes, keepdim=True).clamp_min(1)
    mean = (values * visible).sum(axes, keepdim=True) / count
    centred = (values - mean) * visible
    result = centred * torch.rsqrt(centred.square().sum(axes, keepdim=True) / count + eps)
    if weight is not None:
        shape = (1, -1, *[1] * len(axes))
        result = (result * weight.view(shape) + bias.view(shape)) * visible
    return result.to(x.dtype)


def make_sparse(encoder: nn.Module, visible: Visible) -> None:
    """Let every layer of a convolutional encoder keep masked voxels 0; names and shapes of parameters stay."""
    for name, layer in encoder.named_modules():
        if isinstance(layer, CONVOLUTIONS):
            layer.register_forward_hook(partial(_hide, visible))
        elif isinstance(layer, NORMS):
            layer.forward = partial(_norm, layer, visible)
        elif not any(layer.children()) and not isinstance(layer, POINTWISE):
            raise UserError(
                f"layer {name} ({type(layer).__name__}) has no sparse form: masked autoencoding takes encoders of "
                "convolutions, instance norms and pooling",
                mend=MEND,
            )


class SparseAutoencoder(nn.Module):
    """A network with a sparse encoder and the mask tokens that make its features dense again for the decoder."""

    def __init__(self, network: Architecture, *, sparse: bool = True):
        super().__init__()
        spec = network.spec
        self.network, self.sparse, self.visible = network, sparse, Visible()
        if not sparse:
            return
        if not isinstance(getattr(network, "encoder", None), nn.Module):
            raise UserError(f"{type(network).__name__} has no module `encoder` to make sparse", mend=MEND)
        make_sparse(network.encoder, self.visible)
        conv = (nn.Conv2d, nn.Conv3d)[spec.dims - 2]
        ones = (1,) * spec.dims
        self.tokens = nn.ParameterList(torch.empty(1, width, *ones) for width in spec.features)
        for token in self.tokens:
            nn.init.trunc_normal_(token, std=0.02, a=-0.02, b=0.02)
        deeper = (conv(width, width, 3, padding=1) for width in spec.features[1:])
        self.densify = nn.ModuleList([nn.Identity(), *deeper])

    def forward(self, image: Tensor, blocks: Tensor) -> Tensor:
        """Return the reconstruction (B, C, *S) of an image (B, C, *S) of which `blocks` (B, 1, *lattice) are seen."""
        masked = image * enlarge(blocks, image.shape[2:])
        if not self.sparse:
            return self.network(masked)
        self.visible.show(blocks)
        try:
            features = self.network.encode(masked)
            return self.network.decode([self._dense(level, feature) for level, feature in enumerate(features)])
        finally:
            self.visible.show(None)

    def _dense(self, level: int, feature: Tensor) -> Tensor:
        visible = self.visible.at(feature.shape[2:])
        if visible is None:
            visible = torch.ones_like(feature[:, :1])
        token = self.tokens[level].to(feature.dtype)
        return self.densify[level](torch.where(visible > 0, visible_norm(feature, visible), token))


def _hide(visible: Visible, _layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    mask = visible.at(output.shape[2:])
    return output if mask is None else output * mask.to(output.dtype)


def _norm(layer: nn.Module, visible: Visible, x: Tensor) -> Tensor:
    mask = visible.at(x.shape[2:])
    return type(layer).forward(layer, x) if mask is None else visible_norm(x, mask, layer.weight, layer.bias, layer.eps)
