"""Masked autoencoding: the network learns anatomy by filling in blocks that were cut out of images, without labels.

Source: Wald et al., Revisiting MAE pre-training for 3D medical image segmentation, CVPR 2025, arXiv:2410.23132; written
from the description. Deviations: those of `sparse_autoencoder`; patch, spacing and recipe are the plan's; blocks of at
least 8 voxels where the network is deep enough, as for small images the plan's second-deepest stride is too easy a
task; works for any U-Net of convolutions and instance norms, in 2D, too.

Run: `autoseg pretrain DATA 3d_fullres --architecture residual_encoder_unet`, then `autoseg train DATA 3d_fullres
--architecture residual_encoder_unet --trainer fine_tuning --pretrained RUN`. The run's weights are those of the
encoder under their names in the network, or of all but the heads where no name begins with `encoder.`;
`reconstruction.png` shows image, what was seen of it, and reconstruction.

Expected: a step costs about as much as one of `supervised`. On z-scored images the loss falls well below 1, the
variance of the data, in some hundred steps. Published: about 3 Dice points over nnU-Net from scratch after 39,000 MRI
volumes. All images of the data set are seen, those of validation cases included, never their labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from autoseg.trainers.pictures import picture
from autoseg.trainers.sparse_autoencoder import SparseAutoencoder, enlarge
from PIL import Image
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from autoseg import NetworkSpec, Trainer, UserError, register
from autoseg.batches import Batch, PatchStream
from autoseg.randomness import generator
from autoseg.training.checkpoint import unwrapped
from autoseg.training.pretrained import head_tensors
from autoseg.training.trainer import Share

PICTURE = "reconstruction.png"
SMALLEST_BLOCK = 8  # voxels, if the network is deep enough


@register.trainer("masked_autoencoder")
class MaskedAutoencoder(Trainer):
    """Pretraining without labels: reconstructs masked blocks of images, for U-Nets with convolutional encoders."""

    needs_labels: ClassVar[bool] = False

    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75  # share of blocks that are masked
    mask_ratio_spread: Share = 0.0  # drawn per batch from mask_ratio +- spread; 0.15 is the paper's "variable" form
    block: PositiveInt | None = None  # edge of a block in voxels; None: by the network's strides
    sparse: bool = True  # False: an ordinary encoder on the masked image
    augmentation: Literal["spatial", "none"] = "spatial"

    def network_spec(self) -> NetworkSpec:
        """Return the plan's network, but with the image channels as outputs."""
        channels = len(self.context.configuration.use_mask)
        changes = {"in_channels": channels, "num_outputs": channels, "deep_supervision": False}
        return super().network_spec().model_copy(update=changes)

    def build_modules(self) -> dict[str, nn.Module]:
        """Return the network with mask tokens."""
        return {"network": SparseAutoencoder(super().build_modules()["network"], sparse=self.sparse)}

    def build_streams(self) -> dict[str, PatchStream]:
        """Return the stream of all images; no label is read."""
        cases = (*self.context.training_cases, *self.context.unlabelled_cases)
        return {"images": self.make_stream(cases, "images", labels=False)}

    def training_step(self, batches: Mapping[str, Batch], progress: float) -> Iterator[tuple[str, Tensor]]:
        """Yield the error of the reconstruction on masked voxels."""
        image = batches["images"].image
        blocks = self.draw_blocks(len(image), batches["images"].step).to(image.device)
        yield "network", reconstruction_loss(self.modules["network"](image, blocks), image, blocks)

    def draw_blocks(self, samples: int, step: int) -> Tensor:
        """Return which blocks are visible (B, 1, *lattice), 0 or 1: the same number in every sample."""
        random = generator(self.context.seed, f"blocks/{self.context.rank}", step)
        ratio = self.mask_ratio + self.mask_ratio_spread * random.uniform(-1, 1)
        spec = self.network_spec()
        return random_blocks(samples, lattice(spec, self.block), min(max(ratio, 0.0), 1.0), random)

    def inference_module(self) -> nn.Module:
        """Return the encoder under the names that it has in the network."""
        return Encoder(unwrapped(super().inference_module()).network)

    @torch.no_grad()
    def finish(self) -> None:
        """Write a picture: image, visible part, reconstruction, in the middle slice of a few patches."""
        batch = self.build_streams()["images"].batch(0, self.context.device)
        blocks = self.draw_blocks(len(batch.image), 0).to(batch.image.device)
        network = self.modules["network"].eval()
        seen = enlarge(blocks, batch.image.shape[2:])
        rebuilt = torch.where(seen > 0, batch.image, network(batch.image, blocks).float())
        rows = torch.stack([batch.image, batch.image * seen, rebuilt], 1)[:4, :, 0]  # (B, 3, *S) of the first channel
        Image.fromarray(picture(rows.cpu().numpy())).save(self.context.folder / PICTURE)


class Encoder(nn.Module):
    """Gives out the tensors of a network's encoder under the names that they have in the network; never a head."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:
        """Return the tensors whose names begin with `encoder.`; all but the heads where a network has none such."""
        state = self.network.state_dict()
        encoder = {name: value for name, value in state.items() if name.startswith("encoder.")}
        heads = head_tensors(self.network)  # they give out images, not labels
        return encoder or {name: value for name, value in state.items() if name not in heads}


def lattice(spec: NetworkSpec, edge: int | None) -> tuple[int, ...]:
    """Return how many blocks a patch has per axis: blocks are as large as a voxel of the second-deepest stage.

    Where that is below 8 voxels on every axis, blocks are as large as a voxel of the deepest stage.
    """
    total = spec.total_stride
    blocks = tuple(all_ // last for all_, last in zip(total, spec.strides[-1], strict=True))
    if max(blocks) < SMALLEST_BLOCK:
        blocks = total
    if edge is not None:
        blocks = (edge,) * spec.dims
    if any(size % block for size, block in zip(spec.patch_size, blocks, strict=True)):
        raise UserError(f"blocks of {blocks} voxels do not fill the patch {spec.patch_size}", mend="--set block=none")
    return tuple(size // block for size, block in zip(spec.patch_size, blocks, strict=True))


def random_blocks(samples: int, shape: tuple[int, ...], ratio: float, random: np.random.Generator) -> Tensor:
    """Return (B, 1, *shape) float32: in every sample int(ratio * cells) random cells are 0, the others 1."""
    cells = int(np.prod(shape))
    visible = np.ones((samples, cells), np.float32)
    for row in visible:
        row[random.permutation(cells)[: int(ratio * cells)]] = 0
    return torch.from_numpy(visible).view(samples, 1, *shape)


def reconstruction_loss(prediction: Tensor, image: Tensor, blocks: Tensor) -> Tensor:
    """Return the mean squared error over masked voxels: prediction, image (B, C, *S), blocks (B, 1, *lattice)."""
    masked = (1 - enlarge(blocks, image.shape[2:])).expand_as(image)
    return ((prediction.float() - image).square() * masked).sum() / masked.sum().clamp_min(1)
