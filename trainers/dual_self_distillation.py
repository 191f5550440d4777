"""Dual self-distillation: the deepest encoder and decoder maps teach the others of their path by soft labels.

Source: Banerjee et al., Volumetric medical image segmentation through dual self-distillation in U-shaped networks,
IEEE TBME 2025, arXiv:2306.03271; soumbane/DualSelfDistillation (Apache-2.0). "Deepest" is furthest along the forward
pass within the path: the encoder stage above the bottleneck; the decoder map below full resolution.

Deviations: the label loss is the engine's (Dice without background for exclusive classes, ignored and partial labels);
optimiser and schedule are the plan's; up-sampling follows the plan's strides per axis; regions are compared as
Bernoulli variables. Published are a distillation weight of 1 and gradients through the teaching maps, too
(`--set distillation=1 --set detach_teacher=false`): next to the plan's optimiser that costs Dice, 0.845 against 0.848
with a weight of 0.3 and no such gradients (hippocampus slices, 3000 steps), which are the defaults here. A teaching map
whose head no label reaches (the encoder's, where it shares none with the decoder) keeps its gradients.

Maps of the decoder are found by their sizes (autoseg/training/decoder_features.py), so that networks with one output
have heads, too: those of SwinUNETR are published, with `--set max_heads=4`. Networks without maps of several
resolutions in both paths, such as `primus`, are refused.

Run: `autoseg train DATA 3d_fullres 0 --trainer dual_self_distillation`. Published: less than 30 % more time per step;
see benchmarks/RESULTS.md for small networks; nothing more in prediction (heads are left behind); memory for two maps of
all classes per level. Published: +1.3 Dice
points on hippocampus on average over four networks. Measured there in 2D, 3000 steps, three seeds: Dice 0.854, 0.854,
0.858 where `supervised` has 0.857, 0.854, 0.856, no difference (benchmarks/RESULTS.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from autoseg import NetworkSpec, Trainer, UserError, register
from autoseg.batches import Batch
from autoseg.losses import full_resolution, soft_label_loss
from autoseg.training.decoder_features import DecoderFeatures


@register.trainer("dual_self_distillation")
class DualSelfDistillation(Trainer):
    """Supervised, with heads on all encoder and decoder maps in training; the deepest of each path teach the others."""

    temperature: PositiveFloat = 3.0
    distillation: NonNegativeFloat = 0.3  # weight of both distillation losses; published: 1
    supervise_decoder: bool = True  # decoder heads learn from labels, too
    normalize: bool = False  # mean instead of sum of the label losses, whose gradients are larger than usual
    detach_teacher: bool = True  # no gradient through the maps that teach; published: false
    shared_heads: bool = True  # one head for encoder and decoder maps of the same size and width
    max_heads: NonNegativeInt = 0  # per path, counted from full resolution; 0: all levels
    compile: Literal["auto", "on", "off"] = "off"  # decoder maps are taken by hooks

    def network_spec(self) -> NetworkSpec:
        """Return the plan's network with heads on all decoder maps."""
        return super().network_spec().model_copy(update={"deep_supervision": True})

    def build_modules(self) -> dict[str, nn.Module]:
        """Return the network and the heads; their sizes are known from one pass."""
        modules = super().build_modules()
        network = modules["network"]
        self._decoder = DecoderFeatures(network)
        spec = network.spec
        with torch.no_grad():
            encoder = network.encode(torch.zeros(1, spec.in_channels, *spec.patch_size))
            network.decode(encoder)
        encoder, decoder = self.levels(encoder, self._decoder.maps)
        if min(len(encoder), len(decoder)) < 2:
            raise UserError(
                f"self-distillation needs maps of several resolutions from encoder and decoder; of "
                f"{self.context.configuration.architecture} it finds {len(encoder)} and {len(decoder)}",
                mend="choose an architecture with a U-shape of maps, such as plain_unet",
            )
        paths = {"encoder": encoder, "decoder": decoder}
        heads = Heads(paths, spec.patch_size, spec.num_outputs, shared=self.shared_heads)
        learning = {heads.key(each, "decoder")[0] for each in decoder} if self.supervise_decoder else set()
        self._detached = {path for path, maps in paths.items() if heads.key(maps[-1], path)[0] in learning}
        return {**modules, "heads": heads}

    def levels(self, encoder: list[Tensor], decoder: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the maps that get heads, the teaching one last: encoder without bottleneck, decoder with it."""
        count = self.max_heads or len(encoder)
        below = [*decoder, *encoder[-1:]] if len(encoder) > 1 else []
        return encoder[:-1][:count], below[:count][::-1]

    def all_logits(self, images: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return the main logits and those of the encoder's and the decoder's heads, all (B, K, *S)."""
        network, heads = self.modules["network"], self.modules["heads"]
        encoder = network.encode(images)
        main = full_resolution(network.decode(encoder))
        encoder, decoder = self.levels(encoder, self._decoder.maps)
        logits = heads({"encoder": encoder, "decoder": decoder})
        return main, logits["encoder"], logits["decoder"]

    def training_step(self, batches: Mapping[str, Batch], progress: float) -> Iterator[tuple[str, Tensor]]:
        """Yield label losses of the main output and the decoder's heads, plus distillation in both paths."""
        batch = batches["labelled"]
        main, encoder, decoder = self.all_logits(self.network_input(batch))
        supervised = [main, *decoder] if self.supervise_decoder else [main]
        known = () if batch.annotated is None else (batch.annotated,)
        loss = torch.stack([self.loss(logits, batch.segmentation, *known) for logits in supervised]).sum()
        if self.normalize:
            loss = loss / len(supervised)
        if self.distillation:
            loss = loss + self.distillation * (self.path_loss(encoder, "encoder") + self.path_loss(decoder))
        yield "network", loss

    def path_loss(self, logits: list[Tensor], path: str = "decoder") -> Tensor:
        """Return the sum of the divergences of all from the last one of a path."""
        teacher = logits[-1].detach() if self.detach_teacher and path in self._detached else logits[-1]
        return soft_label_loss(logits[:-1], teacher, self.temperature, regions=self.labels.regions)

    def build_optimizers(self, modules: Mapping[str, nn.Module]) -> dict[str, torch.optim.Optimizer]:
        """Return one optimiser for network and heads."""
        heads = {"params": list(modules["heads"].parameters())}
        return {"network": self.make_optimizer([*self.parameter_groups(modules["network"]), heads])}


class Heads(nn.Module):
    """One head per map: (B, C, *s) -> logits (B, K, *S)."""

    def __init__(self, paths: Mapping[str, list[Tensor]], patch: tuple[int, ...], outputs: int, *, shared: bool):
        super().__init__()
        self.patch, self.shared = patch, shared
        self.heads = nn.ModuleDict()
        for path, maps in paths.items():
            for each in maps:
                key, factor = self.key(each, path)
                if key not in self.heads:
                    self.heads[key] = Head(each.shape[1], outputs, factor)

    def key(self, each: Tensor, path: str) -> tuple[str, tuple[int, ...]]:
        """Return the name of a map's head and its factor of up-sampling per axis."""
        factor = tuple(whole // size for whole, size in zip(self.patch, each.shape[2:], strict=True))
        name = f"{each.shape[1]}_by_{'_'.join(map(str, factor))}"
        return (name if self.shared else f"{path}_{name}"), factor

    def forward(self, paths: Mapping[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        """Return the logits of all maps of all paths."""
        return {path: [self.heads[self.key(each, path)[0]](each) for each in maps] for path, maps in paths.items()}


class Head(nn.Module):
    """A 1x1 convolution to K classes, then transposed convolutions K -> K; steps of one kind share one layer."""

    def __init__(self, channels: int, outputs: int, factor: tuple[int, ...]):
        super().__init__()
        conv, transposed = ((nn.Conv2d, nn.ConvTranspose2d), (nn.Conv3d, nn.ConvTranspose3d))[len(factor) - 2]
        self.project = conv(channels, outputs, 1)
        self.steps = up_steps(factor)
        self.up = nn.ModuleDict({str(step): transposed(outputs, outputs, step, step) for step in self.steps})

    def forward(self, each: Tensor) -> Tensor:
        """Return logits at full resolution, in float32: with so few channels bf16 is slower, on CPUs eight times."""
        with torch.autocast(each.device.type, enabled=False):
            logits = self.project(each.float())
            for step in self.steps:
                logits = self.up[str(step)](logits)
        return logits


def up_steps(factor: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return strides whose product is `factor`: 2 on every axis that still has it; at full resolution one of 1."""
    steps = []
    while max(factor) > 1:
        step = tuple(min(size, 2) if size % 2 == 0 else size for size in factor)
        steps.append(step)
        factor = tuple(size // s for size, s in zip(factor, step, strict=True))
    return steps or [(1,) * len(factor)]
