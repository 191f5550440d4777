"""DIAMANT. Source: Yeganeh et al. 2023, arXiv:2304.14571, as far as it was readable: the widths are those of the same
group's Y-Net; written from the description, no code was published.

A U-Net with a second encoder for attention maps: what the class token of a frozen, self-supervised vision transformer
(DINO) looks at, one channel per head. Both encoders meet in the bottleneck; one decoder takes the skips of both.

Where the maps come from. Best: `python -m autoseg.architectures.blocks.map_channels DATASET OUTPUT --vit-file FILE`
writes a data set with the maps of whole slices as channels, which are found by their name: training costs no ViT,
augmentation moves maps with the image and keeps their values; images to predict go through it, too. Plans record the
ViT (hash of its file, patch, heads, scaling), as dataset.json tells it, and prediction refuses maps of another one. In
a cascade the labels of the stage before belong to the image, and no ViT sees them.
Or `vit_file`: the network computes the maps of every (augmented) patch itself; the file, named by path and hash, is not
saved, so prediction needs it, too. Such a file is a published DINO ViT, or one that was trained on the images at hand,
without labels: `autoseg pretrain DATASET 2d --trainer dino` leaves it as `weights.safetensors`. With neither maps nor
file, a RANDOM ViT gives the maps: they hold next to nothing of the objects (a control, and it says so). Volumes go
slice by slice along the first, coarsest axis.

Taken from the plan: resolutions, widths, strides, kernels, for both encoders. Heads at lower resolution, made only with
deep supervision, are an extension. Options: maps (how many channels are attention maps; none: as many as are called
attention_map; where none is called so, the last ones), maps_vit and channel_names (the ViT of the maps, and the data's
channels in their order: planning fills in both), vit_file (none: no file), vit_hash (of that file: planning fills it
in), vit (size of the random ViT: width, depth, heads, patch, side; none: 96, 4, 6, 8, 14), skip ("both", the default:
the decoder takes the skips of both encoders; "image": of the image's alone), norm ("batch", published and the default
in 2D; "instance", the default in 3D, where batches are small).
Optimiser of Y-Net: Adam, learning rate 5e-4, weight decay 1e-4, no deep supervision (its recipe).

Parameters in 2D with three channels, one output, six heads, widths 32 to 512, without deep supervision: 10 900 129 by
the description, the same here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from autoseg.architectures.blocks.attention_maps import (
    RECORD,
    AttentionViT,
    ViTSize,
    attention_maps,
    load_vit,
    random_vit,
)
from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.double_conv import double_conv
from autoseg.architectures.blocks.llama_block import has_values
from autoseg.architectures.blocks.normalization import NORMS, usual_norm
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import COMPUTED_CHANNEL, NetworkSpec
from autoseg.plugins import register
from autoseg.storage import file_hash

log = logging.getLogger(__name__)

RANDOM_VIT = ViTSize(width=96, depth=4, heads=6, patch=8, side=14)
WARNING = (
    "diamant: the attention maps are those of a random ViT and hold next to nothing of the objects; train one "
    "(autoseg pretrain --trainer dino) or take a published DINO ViT, and give it by --network-option vit_file=FILE, or "
    "write its maps into the data set (autoseg.architectures.blocks.map_channels)"
)


@register.architecture("diamant")
class DIAMANT(Architecture):
    """DIAMANT, 2D and 3D: a U-Net with a second encoder for the attention maps of a frozen transformer."""

    defaults = {
        "maps": None, "maps_vit": None, "channel_names": None, "vit_file": None, "vit_hash": None, "vit": None,
        "skip": "both", "norm": None,
    }  # fmt: skip
    choices = {"skip": ("both", "image"), "norm": (None, *NORMS)}
    recipe = {"optimizer": "adam", "learning_rate": 5e-4, "weight_decay": 1e-4, "deep_supervision": False}

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        options, widths, dims = self.options, spec.features, spec.dims
        if len(widths) < 2:
            raise UserError("diamant needs at least two resolutions", mend="plan larger patches")
        conv, transposed, _ = conv_classes(dims)
        norm, levels = options["norm"] or usual_norm(dims), range(len(widths) - 1)
        self.map_channels = find_map_channels(spec, options)
        self.image_channels = [i for i in range(spec.in_channels) if i not in self.map_channels]
        self.vit = None if self.map_channels else make_vit(options)
        heads = len(self.map_channels) or self.vit.size.heads

        def unit(before: int, level: int) -> nn.Module:
            return double_conv(before, widths[level], spec.kernel_sizes[level], norm, bias=False)

        found = (len(self.image_channels), *widths)
        self.image_encoder = nn.ModuleList(unit(found[level], level) for level in levels)
        self.map_encoder = nn.ModuleList(unit(widths[level - 1] if level else heads, level) for level in levels)
        self.pools = nn.ModuleList(
            (nn.MaxPool2d, nn.MaxPool3d)[dims - 2](spec.strides[level + 1], spec.strides[level + 1]) for level in levels
        )
        self.bottleneck = unit(2 * widths[-2], len(widths) - 1)
        self.ups = nn.ModuleList(
            transposed(widths[level + 1], widths[level], spec.strides[level + 1], spec.strides[level + 1])
            for level in levels
        )
        joined = 3 if options["skip"] == "both" else 2
        self.decoder = nn.ModuleList(unit(joined * widths[level], level) for level in levels)
        count = len(widths) - 1 if spec.deep_supervision else 1
        self.heads = nn.ModuleList(conv(width, spec.num_outputs, 1) for width in widths[:count])

    @classmethod
    def options_for(
        cls, options: Mapping[str, Any], channel_names: Sequence[str], description: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Take the channels that are attention maps as such, and record the ViT that they are from."""
        options = {**options, "channel_names": list(channel_names)}
        count = count_named_maps(channel_names, options.get("maps"))
        if not count:
            return options
        record, planned = description.get(RECORD), options.get("maps_vit")
        if planned and record and planned != record:
            raise UserError(
                "the data set's attention maps are from another ViT than those that the plans were made for",
                where="dataset.json", mend="plan the data set anew: autoseg plan-and-preprocess",
            )  # fmt: skip
        return {**options, "maps": count, "maps_vit": record or planned}

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Two convolutions per stage; fix the norm, the file's hash and the random ViT's size."""
        options = cls.read_options(spec)
        options["norm"] = options["norm"] or usual_norm(spec.dims)
        if options["vit_file"]:
            path = existing_file(options["vit_file"])
            options |= {"vit_file": str(path), "vit_hash": options["vit_hash"] or file_hash(path)}
            options["vit"] = options["vit"] or list(load_vit(path).size)
        elif not find_map_channels(spec, options):
            options["vit"] = list(read_size(options["vit"]))
            log.warning(WARNING)
        levels = len(spec.features)
        update = {"blocks_encoder": (2,) * levels, "blocks_decoder": (2,) * (levels - 1), "options": options}
        return spec.model_copy(update=update)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return one map per resolution, high to low: the skips, image first, then the bottleneck, for x (B, C, *S)."""
        image, maps = self.split(x)
        features, both = [], self.options["skip"] == "both"
        for image_unit, map_unit, pool in zip(self.image_encoder, self.map_encoder, self.pools, strict=True):
            image, maps = image_unit(image), map_unit(maps)
            features.append(torch.cat([image, maps], 1) if both else image)
            image, maps = pool(image), pool(maps)
        return [*features, self.bottleneck(torch.cat([image, maps], 1))]

    def decode(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        """Return logits (B, K, *S), or the deep-supervision list while training."""
        x, outputs = features[-1], []
        everything = self.training and self.spec.deep_supervision
        for level in reversed(range(len(self.decoder))):
            x = self.decoder[level](torch.cat([self.ups[level](x), features[level]], 1))
            if everything or level == 0:
                outputs.append(self.heads[level](x))
        return outputs[::-1] if everything else outputs[-1]

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return image and attention maps of an input (B, C, *S)."""
        if self.map_channels:
            return x[:, self.image_channels], x[:, self.map_channels]
        return x, attention_maps(self.vit, x[:, : own_channels(self.spec, self.options)]).to(x.dtype)

    def check_images(self, description: Mapping[str, Any]) -> None:
        """Refuse attention maps of another ViT than the network was trained with; warn where nothing tells whose."""
        trained, record = self.options["maps_vit"], description.get(RECORD)
        if not trained or record == trained:
            return
        command = "python -m autoseg.architectures.blocks.map_channels DATASET OUTPUT --images IMAGES --for MODEL"
        if not record:
            log.warning(
                "diamant: nothing tells which ViT the attention maps of these images are from; only those of the one "
                "that the network was trained with (SHA-256 %s) mean anything to it: %s", trained["vit_hash"], command,
            )  # fmt: skip
            return
        raise UserError(
            f"the images' attention maps are from another ViT (SHA-256 {record.get('vit_hash')}) than the network was "
            f"trained with ({trained['vit_hash']})" if record.get("vit_hash") != trained["vit_hash"] else
            "the images' attention maps were made in another way than those that the network was trained with",
            mend=f"make them by that ViT: {command} --vit-file FILE",
        )  # fmt: skip


def count_named_maps(names: Sequence[str], given: int | None) -> int:
    """Return how many channels have the name of attention maps: as many as `given` if it is."""
    count = len(named_maps(names))
    if count and given not in (None, count):
        raise UserError(
            f"{count} of the data's channels are attention maps, not {given}", where="network.options.maps",
            mend=f"--network-option maps={count}, or leave it out",
        )  # fmt: skip
    return count


def named_maps(names: Sequence[str]) -> list[int]:
    """Return the places of the channels that have the name of attention maps."""
    return [place for place, name in enumerate(names) if name.casefold() == COMPUTED_CHANNEL]


def own_channels(spec: NetworkSpec, options: Mapping[str, Any]) -> int:
    """Return how many of the first input channels are the data's; in a cascade the stage before adds its labels."""
    return len(options["channel_names"] or ()) or spec.in_channels


def find_map_channels(spec: NetworkSpec, options: Mapping[str, Any]) -> list[int]:
    """Return the places of the attention maps among the input channels: by name, else the last ones of the data."""
    own = own_channels(spec, options)
    if own > spec.in_channels:
        raise UserError(f"the plans name {own} channels, the network has {spec.in_channels}", where="network.options")
    count, named = int(options["maps"] or 0), named_maps(options["channel_names"] or ())
    if not 0 <= count < own:
        raise UserError(
            f"{count} of {own} input channels cannot be attention maps", where="network.options.maps",
            mend="write the maps into the data set first: python -m autoseg.architectures.blocks.map_channels --help",
        )  # fmt: skip
    if count and options["vit_file"]:
        raise UserError("give maps or vit_file, not both: maps are channels of the data", where="network.options")
    return named if count and len(named) == count else list(range(own - count, own))


def make_vit(options: dict) -> AttentionViT:
    """Return the transformer that gives the maps: the file must be the one planned with; without, it is random."""
    if not options["vit_file"]:
        return random_vit(read_size(options["vit"]))
    if not has_values():  # memory is traced: the size is all that counts
        return AttentionViT(read_size(options["vit"]))
    path = existing_file(options["vit_file"])
    if options["vit_hash"] and file_hash(path) != options["vit_hash"]:
        raise UserError("the ViT is another one than the network was trained with", where=path)
    return load_vit(path, saved=False)


def read_size(given: list[int] | None) -> ViTSize:
    """Return the size of the ViT, that of the random one if none is given."""
    if given is None:
        return RANDOM_VIT
    if len(given) != len(RANDOM_VIT) or min(given) < 1 or given[0] % given[2]:
        raise UserError(f"vit takes width, depth, heads, patch, side, got {given}", where="network.options")
    return ViTSize(*map(int, given))


def existing_file(path: str) -> Path:
    """Return the absolute path of the ViT's file, which has to be there."""
    found = Path(path).expanduser().resolve()
    if not found.is_file():
        raise UserError(
            "the ViT's file is not there", where=found,
            mend="give the file that the network was planned with: --network-option vit_file=...",
        )  # fmt: skip
    return found
