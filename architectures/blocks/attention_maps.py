"""Attention maps of a frozen vision transformer: what the class token of a self-supervised ViT looks at, head by head.

Source: Caron et al. 2021, DINO, arXiv:2104.14294 (the transformer and its weights' names); the maps as channels are
those of Yeganeh et al. 2023, DIAMANT, arXiv:2304.14571; written from the description.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from autoseg.architectures.blocks.dino_vit import DinoViT, ViTSize
from safetensors import safe_open
from torch import Tensor, nn

from autoseg.errors import UserError
from autoseg.storage import file_hash

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pictures that such weights were trained on
PERCENTILES = (0.005, 0.995)  # of an image that become 0 and 1
MOST_TOKENS = 4096
HEAD_WIDTH = 64  # of published weights, which do not tell it
PREFIXES = ("module.", "backbone.")
WRAPPERS = ("teacher", "student", "state_dict", "model")
RECORD = "attention_maps"  # field of dataset.json: which ViT a data set's maps are from
SCALING = "percentiles 0.5 and 99.5 of a slice to 0 and 1, maps from 0 to 1"
SAMPLED = 2**20  # values that percentiles are taken from


class AttentionViT(DinoViT):
    """DINO's ViT that gives attention in place of features; nothing of it is trained.

    Its weights are buffers: with `saved` they belong to the state dict, else whoever builds it loads them again.
    """

    def __init__(self, size: ViTSize, *, saved: bool = False):
        super().__init__(size)
        for module in self.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    delattr(module, name)
                    module.register_buffer(name, parameter.detach(), persistent=saved)
        self.eval()

    def train(self, mode: bool = True) -> AttentionViT:
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return (B, heads, H / patch, W / patch), see `DinoViT.attention`."""
        return self.attention(x)


def attention_maps(vit: AttentionViT, image: Tensor) -> Tensor:
    """Return maps (B, heads, *S), every slice and head from 0 to 1, for an image (B, C, *S) of any intensities.

    3D images go slice by slice along the first axis. Patches show as squares (nearest neighbour), as DINO draws them.
    """
    if image.ndim == 5:
        slices = attention_maps(vit, image.transpose(1, 2).flatten(0, 1))
        return slices.unflatten(0, (image.shape[0], image.shape[2])).transpose(1, 2)
    with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        pictures = as_pictures(image.to(vit.cls_token.dtype))
        size = picture_size(image.shape[2:], vit.size.patch)
        if size != tuple(image.shape[2:]):
            pictures = nn.functional.interpolate(pictures, size=size, mode="bilinear", align_corners=False)
        maps = vit(pictures)
        least, most = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
        maps = (maps - least) / (most - least).clamp(min=torch.finfo(maps.dtype).tiny)
        return nn.functional.interpolate(maps, size=tuple(image.shape[2:]), mode="nearest")


def record_of(file: Path, vit: AttentionViT) -> dict[str, Any]:
    """Return what tells maps of one ViT from those of another."""
    return {"vit_hash": file_hash(file), "patch": vit.size.patch, "heads": vit.size.heads, "scaling": SCALING}


def as_pictures(image: Tensor) -> Tensor:
    """Return (B, 3, H, W) as the ViT wants it: percentiles to 0 and 1, then the mean and deviation of its pictures."""
    return normalised(scaled(image))


def scaled(image: Tensor) -> Tensor:
    """Return (B, 3, H, W) in 0..1: what lies at the percentiles of an image (B, C, H, W) becomes 0 and 1.

    Three channels are scaled together; of any other number the mean of the scaled channels is taken thrice.
    """
    channels = image.shape[1]
    values = image.flatten(1)[:, None] if channels == 3 else image.flatten(2)
    values = values[..., :: -(-values.shape[-1] // SAMPLED)]
    ordered = values.sort(dim=-1).values  # torch 2.10's quantile looks at values, which a traced tensor has not
    low, high = (_quantile(ordered, share)[..., None, None] for share in PERCENTILES)  # (B, 1 or C, 1, 1)
    between = ((image - low) / (high - low).clamp(min=1e-8)).clamp(0, 1)
    return between if channels == 3 else between.mean(1, keepdim=True).expand(-1, 3, -1, -1)


def normalised(pictures: Tensor) -> Tensor:
    """Return pictures (B, 3, H, W), 0..1, less the mean and over the deviation of those that DINO was trained on."""
    mean, std = (torch.tensor(numbers, device=pictures.device).view(1, 3, 1, 1) for numbers in (MEAN, STD))
    return (pictures - mean) / std


def _quantile(ordered: Tensor, share: float) -> Tensor:
    """Return the quantile of ascending values along the last axis, linear between neighbours."""
    place = share * (ordered.shape[-1] - 1)
    below = math.floor(place)
    above = min(below + 1, ordered.shape[-1] - 1)
    return ordered[..., below].lerp(ordered[..., above], place - below)


def picture_size(size: tuple[int, ...], patch: int) -> tuple[int, ...]:
    """Return the nearest size of whole patches, of at most 4096 of them."""
    counts = [max(1, round(edge / patch)) for edge in size]
    if math.prod(counts) > MOST_TOKENS:
        share = math.sqrt(MOST_TOKENS / math.prod(counts))
        counts = [max(1, int(count * share)) for count in counts]
    return tuple(count * patch for count in counts)


def random_vit(size: ViTSize, *, saved: bool = False) -> AttentionViT:
    """Return a ViT with random weights, always the same ones: its maps hold next to nothing of the objects."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = AttentionViT(size, saved=saved)
        for name, tensor in vit.named_buffers():
            if tensor.ndim > 1:
                nn.init.normal_(tensor, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(tensor)
    return vit


def load_vit(file: Path, *, saved: bool = False) -> AttentionViT:
    """Return the ViT of a DINO checkpoint; raises UserError if its weights are not exactly those of a ViT."""
    state = read_weights(file)
    vit = AttentionViT(size_of(state, file, read_heads(file)), saved=saved)
    buffers = dict(vit.named_buffers())
    wrong = sorted(buffers.keys() ^ state.keys())
    wrong += [name for name in buffers.keys() & state.keys() if buffers[name].shape != state[name].shape]
    if wrong:
        names = ", ".join(wrong[:3])
        raise UserError(
            f"the weights are not those of a DINO ViT: {len(wrong)} do not fit, such as {names}", where=file
        )
    for name, tensor in state.items():
        buffers[name].copy_(tensor)
    return vit


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the state dict of a ViT, safetensors or torch, out of its wrapping, without a projection head."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError("the ViT's file does not exist", where=file) from None
    except Exception as error:
        raise UserError(f"the ViT's file cannot be read: {error}", where=file) from None
    for key in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    found = {}
    for name, tensor in state.items():
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        if isinstance(tensor, Tensor) and not name.startswith("head."):
            found[name] = tensor.float()
    return found


def read_heads(file: Path) -> int | None:
    """Return the number of heads that a safetensors file tells, as those of the trainer `dino` do."""
    if file.suffix != ".safetensors":
        return None
    with safe_open(file, framework="pt") as content:
        told = (content.metadata() or {}).get("heads", "")
    return int(told) if told.isdecimal() and int(told) else None


def size_of(state: Mapping[str, Tensor], file: Path, heads: int | None = None) -> ViTSize:
    """Return the size of the ViT that a state dict belongs to; `heads` None: as many as fit published weights."""
    try:
        width, _, patch, _ = state["patch_embed.proj.weight"].shape
        side = math.isqrt(state["pos_embed"].shape[1] - 1)
    except KeyError as error:
        raise UserError(
            f"the file lacks {error}", where=file, mend="give the state dict of a DINO ViT, plain or as published"
        ) from None
    depth = 1 + max((int(name.split(".")[1]) for name in state if name.startswith("blocks.")), default=-1)
    head_width = HEAD_WIDTH if heads is None else width / heads
    if depth < 1 or width % head_width:
        raise UserError(f"no ViT has {depth} blocks of width {width} with heads of {head_width:g}", where=file)
    return ViTSize(width, depth, int(width / head_width), patch, side)
