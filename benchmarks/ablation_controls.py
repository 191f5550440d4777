"""Networks with a part put out of use, and one trainer: the controls of benchmarks/ablations.py, as a plug-in file.

A control differs from its network in the one thing that a method card asks about. Where a part is switched off, its
weights stay, idle, so that all others are drawn as in the whole network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import torch
from autoseg.architectures.blocks.dilated_attention import GroupAttention
from autoseg.architectures.d_former import DFormer
from autoseg.architectures.hiformer import HiFormer
from autoseg.architectures.meddinov3 import MedDINOv3
from autoseg.architectures.medvisionllama import MedVisionLlama
from autoseg.architectures.paratranscnn import ParaTransCNN
from autoseg.architectures.resunet_plus_plus import ResUNetPlusPlus
from autoseg.architectures.transdae import DualAttentionBlock, TransDAE
from autoseg.architectures.u_transformer import UTransformer
from autoseg.architectures.unet_variants import UNet
from torch import Tensor, nn

from autoseg import Trainer, register
from autoseg.plans import NetworkSpec

CURVE = "curve.jsonl"
CURVE_EVERY, CURVE_BATCHES = 25, 8  # steps; batches of patches that are held out


@register.architecture("hiformer_released")
class HiFormerReleased(HiFormer):
    """HiFormer whose fusion does not reach the output, as in the published code."""

    defaults = {**HiFormer.defaults, "dlf": "released"}


@register.architecture("paratranscnn_96")
class ParaTransCNN96(ParaTransCNN):
    """ParaTransCNN with a transformer of 96 channels."""

    defaults = {**ParaTransCNN.defaults, "dim": 96}


@register.architecture("resnet_unet")
class ResNetUNet(ParaTransCNN96):
    """Its ResNet-34 and its decoder: zeros take the place of the transformers' maps."""

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        idle(self.embeddings, self.transformers)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the ResNet's levels, beside zeros, after channel attention."""
        convolved, features = self.cnn(x)[self.first - 1 :], []
        for embed, cnn, excite in zip(self.embeddings, convolved, self.excite, strict=True):
            nothing = cnn.new_zeros(cnn.shape[0], embed.out_channels, *cnn.shape[2:])
            features.append(excite(torch.cat([nothing, cnn], 1)))
        return features


@register.architecture("transdae_space")
class TransDAESpace(TransDAE):
    """TransDAE without its attention over channels."""

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        for block in self.modules():
            if isinstance(block, DualAttentionBlock):
                block.channels = Nothing()
                idle(block.norms[2])


@register.architecture("d_former_8")
class DFormer8(DFormer):
    """D-Former whose tokens are patches of 2 x 2 x 2."""

    defaults = {**DFormer.defaults, "token_size": [2, 2, 2]}


@register.architecture("d_former_local")
class DFormerLocal(DFormer8):
    """The same with local groups only."""

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        for attention in self.modules():
            if isinstance(attention, GroupAttention):
                attention.dilated = False


@register.architecture("u_transformer_plain")
class UTransformerPlain(UTransformer):
    """The U-Net of U-Transformer: no attention at the bottom, skips that are not gated."""

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        idle(self.attention)
        self.attention = nn.Identity()
        for gate in self.gates:
            idle(*(getattr(gate, part) for part in ("values", "queries", "query", "key", "value", "to_gate")))

    def decode(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """Return logits (B, K, *S), or the deep-supervision list while training."""
        x, outputs = features[-1], []
        everything = self.training and self.spec.deep_supervision
        for level in reversed(range(len(self.gates))):
            gate, skip = self.gates[level], features[level]
            up = gate.up(gate._enlarge(x, skip))
            x = self.decoder[level](torch.cat([skip, up], 1))
            if everything or level == 0:
                outputs.append(self.heads[level](x))
        return outputs[::-1] if everything else outputs[-1]


@register.architecture("narrow_unet")
class NarrowUNet(UNet):
    """A U-Net whose first stage is as wide as that of ResUNet++ on the same plan."""

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Take the width of ResUNet++."""
        base = ResUNetPlusPlus.adapt_spec(spec).features[0]
        return super().adapt_spec(spec.model_copy(update={"options": {**spec.options, "base": base}}))


@register.architecture("meddinov3_last")
class MedDINOv3Last(MedDINOv3):
    """MedDINOv3 that decodes the tokens of the last block alone."""

    defaults = {**MedDINOv3.defaults, "taps": "last"}


@register.architecture("medvisionllama_plain")
class MedVisionLlamaPlain(MedVisionLlama):
    """The vision transformer of MedVisionLlama, without a language model's block."""

    defaults = {**MedVisionLlama.defaults, "use_llm": False}


@register.trainer("curve")
class Curve(Trainer):
    """Supervised; every 25 steps the loss of patches that are held out goes to curve.jsonl in the run's folder."""

    def after_step(self, progress: float) -> None:
        """Add a line where one is due."""
        super().after_step(progress)
        if self.step % CURVE_EVERY == 0:
            line = {"step": self.step, "loss": self._held_out_loss()}
            with (self.context.folder / CURVE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _held_out_loss(self) -> float:
        settings = replace(self.stream_settings(), augmentation="none", mirror_axes=())
        stream = self.make_stream(self.context.validation_cases, "curve", settings)
        network, device = self.modules["network"], next(self.modules["network"].parameters()).device
        network.eval()
        batches = (stream.batch(number, device) for number in range(CURVE_BATCHES))
        with torch.no_grad():
            losses = [float(self.loss(network(self.network_input(b)).float(), b.segmentation)) for b in batches]
        network.train()
        return sum(losses) / len(losses)


class Nothing(nn.Module):
    """x -> zeros like it."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the zeros."""
        return torch.zeros_like(x)


def idle(*parts: nn.Module | Sequence[nn.Module]) -> None:
    """Mark parameters that the forward pass does not reach as not to be trained."""
    for part in parts:
        for parameter in part.parameters():
            parameter.requires_grad_(False)
