"""DINO: a vision transformer learns from images alone, by agreeing with a slow copy of itself about crops of them.

Source: Caron et al., Emerging properties in self-supervised vision transformers, ICCV 2021, arXiv:2104.14294; written
from the paper. As there: student and teacher (a moving average of the student, decay 0.996 to 1 by a cosine), two large
crops for both and small ones for the student with interpolated positions, projection head with a weight-normalised last
layer that waits at the start, centring, sharpening (0.1; 0.04 warmed to 0.07), AdamW with a learning rate that rises
and falls by a cosine, weight decay 0.04 to 0.4 by a cosine and none on biases and norms; the teacher is the result.

Deviations: epochs are shares of the run (of 100 epochs); pictures are the plan's patches, in 3D slices of them along
the first, coarsest axis, scaled as for attention maps; the whole gradient is clipped, not each tensor's; no stochastic
depth; the learning rate is not scaled by the batch; the defaults are for a laptop. The published ViT-S/16 is `--set
width=384 depth=12 heads=6 patch=16 global_size=224 local_size=96 local_crops=10 head_width=2048 out_dim=65536`, ViT-S/8
with `patch=8`; where patches are smaller than a crop, they are enlarged.

Run: `autoseg pretrain DATA 2d --trainer dino --time-budget 1h`. The run's `weights.safetensors` is the ViT, for `python
-m autoseg.architectures.blocks.map_channels DATA OUTPUT --vit-file FILE` and for `diamant`'s `vit_file`;
`attention_maps.png` shows pictures and what each head attends to. All images of the data set are seen, those of
validation cases included, never a label.

Patches are normalised, at the target spacing, and scaled by their own percentiles, where `map_channels` shows the ViT
whole raw slices at the images' spacing: pretrain with plans whose patches are the slices and whose spacing is theirs.

Expected: a step of 16 pictures with the defaults takes some seconds of one core; published are days on many GPUs. The
averages are those of long runs: with some hundreds of steps take `--set teacher_decay=0.98`, and with small batches
`teacher_temperature=0.04` where the loss stays at the logarithm of `out_dim`. Measured on 40 fluorescence images of
nuclei, width 96, depth 4, 4 small crops, 400 steps in five minutes of one core, one seed: on 10 other images the maps
of the six heads tell nuclei from background with an AUC of 0.97 to 0.98, where those of untrained transformers reach
from 0.07 to 0.92. The mean intensity of the same patches has 0.98: where objects are bright, maps tell no more.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from autoseg.architectures.blocks.attention_maps import AttentionViT, attention_maps, normalised, scaled
from autoseg.architectures.blocks.dino_vit import ViTSize
from autoseg.trainers.dino_loss import SelfDistillationLoss, cosine, distinction, teacher_temperature
from autoseg.trainers.dino_network import DinoNetwork
from autoseg.trainers.multi_crop import View, draw_crop, multi_crop, take_crops
from autoseg.trainers.pictures import picture
from PIL import Image
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from autoseg import Trainer, UserError, register
from autoseg.batches import Batch, PatchStream, StreamSettings
from autoseg.randomness import generator
from autoseg.training.averaging import WeightAverage
from autoseg.training.checkpoint import unwrapped
from autoseg.training.trainer import Share

PICTURE = "attention_maps.png"
SHOWN = 4  # pictures in it
PICTURES_2D = 16  # per step
LARGEST_USUAL = 96  # edge of a large crop in pixels, unless set
LOCAL_SHARE = 96 / 224  # of a large crop's edge, the published one
LAST_RATE = 1e-6  # the learning rate at the end
COLLAPSED = 0.01  # nats by which the teacher's distributions differ from their mean
log = logging.getLogger("autoseg.training")


@register.trainer("dino")
class Dino(Trainer):
    """Pretraining without labels: a vision transformer whose attention maps show objects, by self-distillation."""

    needs_labels: ClassVar[bool] = False

    width: PositiveInt = 192  # of the transformer; ViT-S: 384
    depth: PositiveInt = 6  # blocks; ViT-S: 12
    heads: PositiveInt = 6  # attention maps per picture; they divide the width
    patch: PositiveInt = 8  # edge of its patches in pixels
    out_dim: Annotated[int, Field(ge=2)] = 1024  # scores that student and teacher compare; published: 65536
    head_width: PositiveInt = 512  # of the projection head's hidden layers; published: 2048
    bottleneck: PositiveInt = 256  # width of the projection head's unit vector
    global_size: PositiveInt | None = None  # edge of large crops in pixels; None: the patch's, at most 96
    local_size: PositiveInt | None = None  # edge of small crops; None: 3/7 of that of large ones
    local_crops: NonNegativeInt = 6  # small crops of every picture
    crop_boundary: Annotated[float, Field(gt=0, lt=1)] = 0.4  # share of a picture: large crops have more, small less
    smallest_crop: Annotated[float, Field(gt=0, lt=1)] = 0.05  # share of a picture that a small crop has at least
    slices: PositiveInt = 8  # of every patch in 3D
    teacher_decay: Share = 0.996  # of the teacher's average at the start; 1 at the end
    teacher_temperature: PositiveFloat = 0.07  # it is 0.04 at the start; lower is sharper
    temperature_warmup: Share = 0.3  # share of the run in which that rises
    last_waits: Share = 0.01  # share of the run in which the last layer does not learn
    batch_size: PositiveInt | None = None  # patches; None: 16 in 2D, the plan's in 3D

    optimizer: Literal["adamw"] = "adamw"
    learning_rate: PositiveFloat = 5e-4
    warmup_steps: NonNegativeInt = 0
    warmup_share: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    weight_decay: NonNegativeFloat = 0.04
    last_weight_decay: NonNegativeFloat = 0.4  # at the end
    gradient_clip: NonNegativeFloat = 3.0
    augmentation: Literal["none"] = "none"  # the crops are the augmentation
    mirror: bool = True  # crops, along both axes

    def vit_size(self) -> ViTSize:
        """Return the size of the transformer."""
        if self.width % self.heads:
            raise UserError(
                f"{self.heads} heads do not divide the width {self.width}", mend="--set width=... heads=..."
            )
        return ViTSize(self.width, self.depth, self.heads, self.patch, self.crop_edges()[0] // self.patch)

    def crop_edges(self) -> tuple[int, int]:
        """Return the edges of large and small crops in pixels, whole patches of the transformer."""
        usual = min(LARGEST_USUAL, *self.context.configuration.patch_size[-2:])
        large = self.global_size or max(2, usual // self.patch) * self.patch
        small = self.local_size or max(1, round(LOCAL_SHARE * large / self.patch)) * self.patch
        for name, edge in (("global_size", large), ("local_size", small)):
            if edge % self.patch:
                raise UserError(f"{name}={edge} is no multiple of patch={self.patch}", mend=f"--set {name}=...")
        if small > large:
            raise UserError(f"small crops of {small} pixels are larger than large ones of {large}", where="local_size")
        return large, small

    def views(self) -> list[View]:
        """Return the kinds of crops that are taken of every picture."""
        kept = {"boundary": self.crop_boundary, "least": min(self.smallest_crop, self.crop_boundary)}
        mirror_axes = (0, 1) if self.mirror else ()
        return multi_crop(*self.crop_edges(), self.local_crops, mirror_axes=mirror_axes, **kept)

    def build_modules(self) -> dict[str, nn.Module]:
        """Return the student, its teacher and the loss, which keeps the centre."""
        sizes = {"hidden": self.head_width, "bottleneck": self.bottleneck, "outputs": self.out_dim}
        student = DinoNetwork(self.vit_size(), **sizes)
        self._teacher = WeightAverage(student, self.teacher_decay)
        return {"network": student, "teacher": self._teacher.module, "loss": SelfDistillationLoss(self.out_dim)}

    def build_optimizers(self, modules: Mapping[str, nn.Module]) -> dict[str, torch.optim.Optimizer]:
        """Return AdamW over two groups: what decays, and biases and norms, which do not."""
        parameters = list(modules["network"].parameters())
        decaying = [parameter for parameter in parameters if parameter.ndim > 1]
        others = [parameter for parameter in parameters if parameter.ndim <= 1]
        groups = [{"params": decaying}, {"params": others, "weight_decay": 0.0}]
        self._optimizer = self.make_optimizer(groups)
        return {"network": self._optimizer}

    def schedule(self, progress: float) -> float:
        """Return the factor of the learning rate: a cosine to 1e-6."""
        return cosine(1.0, min(1.0, LAST_RATE / self.learning_rate), progress)

    def stream_settings(self) -> StreamSettings:
        """Return how patches are drawn: as they are."""
        usual = PICTURES_2D if self.context.configuration.dims == 2 else self.context.configuration.batch_size
        return replace(super().stream_settings(), batch_size=self.batch_size or usual, mirror_axes=())

    def build_streams(self) -> dict[str, PatchStream]:
        """Return the stream of all images; no label is read."""
        cases = (*self.context.training_cases, *self.context.unlabelled_cases)
        return {"images": self.make_stream(cases, "images", labels=False)}

    def training_step(self, batches: Mapping[str, Batch], progress: float) -> Iterator[tuple[str, Tensor]]:
        """Yield the cross-entropy between the teacher on large crops and the student on the others."""
        self._optimizer.param_groups[0]["weight_decay"] = cosine(self.weight_decay, self.last_weight_decay, progress)
        stacks = self.crops(self.pictures(batches["images"]), batches["images"].step)
        seen = self.modules["network"](stacks, last_learns=progress >= self.last_waits)
        temperature = teacher_temperature(progress, self.temperature_warmup, self.teacher_temperature)
        yield "network", self.modules["loss"](seen, self.teach(stacks), temperature)

    def after_step(self, progress: float) -> None:
        """Move the teacher towards the student."""
        super().after_step(progress)
        self._teacher.follow(cosine(self.teacher_decay, 1.0, progress))

    def pictures(self, batch: Batch) -> Tensor:
        """Return pictures (B, 3, H, W) in 0..1: the patches, or slices of them drawn by step and sample."""
        image = batch.image
        if image.ndim == 5:
            image = torch.cat([self._slices(patch, batch.step, number) for number, patch in enumerate(image)])
        return scaled(image)

    def crops(self, pictures: Tensor, step: int) -> list[Tensor]:
        """Return normalised crops of pictures: a stack per size, large ones first."""
        views, (height, width), drawn = self.views(), pictures.shape[2:], []
        for sample in range(len(pictures)):
            random = self._random("crops", step, sample)
            drawn.append([draw_crop(view, (height, width), random) for view in views])
        return [normalised(stack) for stack in take_crops(pictures, drawn)]

    @torch.no_grad()
    def teach(self, stacks: list[Tensor]) -> Tensor:
        """Return the teacher's scores of the two large crops of every picture."""
        pictures = sum(map(len, stacks)) // len(self.views())
        return self.modules["teacher"]([stacks[0][: 2 * pictures]])

    def inference_module(self) -> nn.Module:
        """Return the teacher's transformer."""
        return unwrapped(self.modules["teacher"]).backbone

    @torch.no_grad()
    def finish(self) -> None:
        """Write a picture, each head's attention beside some images; warn where all images look the same to it."""
        batch = self.build_streams()["images"].batch(0, self.context.device)
        pictures = self.pictures(batch)
        vit = AttentionViT(self.vit_size(), saved=True).to(pictures.device)
        vit.load_state_dict(self.inference_module().state_dict())
        shown = torch.cat([pictures.mean(1, keepdim=True), attention_maps(vit, pictures)], 1)[:SHOWN]
        Image.fromarray(picture(shown.cpu().numpy())).save(self.context.folder / PICTURE)
        scores = self.teach(self.crops(pictures, 0)).float()
        _, divergence = distinction(self.modules["loss"].targets(scores, self.teacher_temperature))
        if divergence < COLLAPSED:
            log.warning("dino: the teacher gives all images the same output; train longer or with larger batches")

    def _slices(self, patch: Tensor, step: int, sample: int) -> Tensor:
        """Return slices (n, C, H, W) across the first axis of a patch (C, D, H, W)."""
        depth, random = patch.shape[1], self._random("slices", step, sample)
        chosen = random.choice(depth, self.slices, replace=self.slices > depth)
        return patch[:, sorted(chosen.tolist())].transpose(0, 1)

    def _random(self, name: str, step: int, sample: int) -> np.random.Generator:
        return generator(self.context.seed, f"{name}/{self.context.rank}", step, sample)
