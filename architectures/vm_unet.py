"""VM-UNet. Source: Ruan et al. 2024, arXiv:2402.02491; written from the description, no code taken.

A U-shaped network whose only mixing operator is the visual state-space block: a gated state-space model that scans the
map along rows and columns, forwards and backwards. Patches are merged down and expanded up; skips are added.

Taken from the plan: the strides of at most four stages. The patches that become tokens take the plan's first two
strides (published: 4) where that leaves two stages, else its first; further strides are the mergings. The width is 96
where the plan's first stage has 32 channels, else in proportion, and doubles per stage. As published, the first map has
no skip. One output resolution: deep supervision changes nothing. Any image that is a multiple of the total stride can
be predicted. 3D is an extension: six scans, merging and expanding along all axes.

Options: width, token_size (its patch), depths (2, 2, 2, 2), decoder_depths (2, 2, 2, 1), drop_path (0.2).

Deviations: channels are taken as they are (a grey image is not repeated); the scans' A_log, D and step biases are left
out of weight decay, as the authors' code marks them, where their optimiser does not heed the mark.
Published: AdamW, learning rate 1e-3, weight decay 0.01, a cosine to 1e-5, loss Dice (squared denominators, background
included) + cross-entropy (its recipe, used unless others are given). Their rate rises again, and falls three times
within the run, of which the best epoch is kept: here it falls once, and only with `own_recipe=published` three times,
the last time at the end. Not taken: for a single class they have Dice with smooth 1 per image, and binary
cross-entropy.
The authors start from VMamba-S, as does `train --pretrained FILE` with its weights (2D, width 96); without, all weights
are drawn.

Parameters in 2D with three channels, one output: published 27.43 M, here 27 427 561.
"""

from __future__ import annotations

from autoseg.architectures.blocks.dimensions import conv_classes
from autoseg.architectures.blocks.initial_weights import draw_linear
from autoseg.architectures.blocks.patch_merging import PatchExpanding, PatchMerging
from autoseg.architectures.blocks.patch_strides import strides_from_patch
from autoseg.architectures.blocks.visual_state_space import VisualStateSpaceBlock, drop_path_rates
from autoseg.architectures.blocks.vmamba_weights import is_vmamba, vmamba_block
from torch import Tensor, nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import register

STAGES = 4
WIDTH = 96  # published, of the first stage
USUAL_WIDTH = 32  # of nnU-Net's first stage, which the published width is scaled by


@register.architecture("vm_unet")
class VMUNet(Architecture):
    """VM-UNet, 2D and 3D: visual state-space blocks between patch merging and patch expanding, skips added."""

    defaults = {
        "width": None, "token_size": None, "depths": [2, 2, 2, 2], "decoder_depths": [2, 2, 2, 1], "drop_path": 0.2,
    }  # fmt: skip
    recipe = {
        "optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-2, "own_decay": True, "annealing": "cosine",
        "final_rate": 0.01, "dice_squared": True, "dice_background": True,
    }  # fmt: skip
    as_published = {"annealing": "cosine_waves"}

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        dims, widths, strides = spec.dims, spec.features[1:], spec.strides[1:]
        stages = len(widths)
        if not 1 <= stages <= STAGES:
            raise UserError(f"vm_unet has 1 to {STAGES} stages, got {stages}", where="network.features")
        conv, _, _ = conv_classes(dims)
        self.embed = conv(spec.in_channels, widths[0], strides[0], strides[0])
        self.embed_norm = nn.LayerNorm(widths[0])
        rates = drop_path_rates(self.options["drop_path"], spec.blocks_encoder[1:])
        self.encoder = nn.ModuleList(make_stage(dims, widths[s], rates[s]) for s in range(stages))
        self.merges = nn.ModuleList(PatchMerging(widths[s], strides[s + 1]) for s in range(stages - 1))
        # of the decoder, from the lowest resolution; rates fall
        rates = [stage[::-1] for stage in drop_path_rates(self.options["drop_path"], spec.blocks_decoder[::-1])][::-1]
        self.decoder = nn.ModuleList(make_stage(dims, widths[-1 - s], rates[s]) for s in range(stages))
        self.expands = nn.ModuleList(
            PatchExpanding(widths[s], strides[s], out=widths[s - 1]) for s in reversed(range(1, stages))
        )
        last = max(1, widths[0] // 4)
        self.last_expand = PatchExpanding(widths[0], strides[0], out=last)
        self.head = conv(last, spec.num_outputs, 1)
        self.apply(draw_linear)

    @classmethod
    def adapt_spec(cls, spec: NetworkSpec) -> NetworkSpec:
        """Keep the image and at most four stages; widths double from the option's or from 96, scaled as the plan's."""
        options = cls.read_options(spec)
        if len(spec.features) < 2:
            raise UserError("vm_unet needs at least two resolutions", mend="plan larger patches")
        width = options["width"] or max(1, round(WIDTH * spec.features[0] / USUAL_WIDTH))
        sizes = strides_from_patch(spec, STAGES, options["token_size"])
        stages = len(sizes["strides"]) - 1
        for name in ("depths", "decoder_depths"):
            if len(options[name]) < stages:
                raise UserError(f"{name} must have {stages} entries, got {options[name]}", where="network.options")
        update = {
            "features": (width, *(width * 2**stage for stage in range(stages))),
            "blocks_encoder": (1, *options["depths"][:stages]),
            "blocks_decoder": tuple(options["decoder_depths"][-stages:]),
            "options": {**options, "width": width, "token_size": list(sizes["strides"][1])},
        }
        return spec.model_copy(update={**sizes, **update})

    def undecayed(self) -> set[str]:
        """Return what the authors mark in the scans: logarithms of rates, what passes them by, biases of steps."""
        return {name for name, _ in self.named_parameters() if name.endswith((".A_log", ".D", ".dt_bias"))}

    def translate_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """VMamba's weights start the encoder, and each stage of the decoder as the encoder's of its width."""
        if not is_vmamba(weights):
            return weights
        translated = {}
        for name, tensor in weights.items():
            if found := vmamba_block(name, tensor):
                stage, rest, tensor = found
                translated[f"encoder.{stage}.{rest}"] = tensor
                translated[f"decoder.{len(self.encoder) - 1 - stage}.{rest}"] = tensor
            elif name.startswith("patch_embed."):
                part, _, rest = name.removeprefix("patch_embed.").partition(".")
                translated[f"{'embed' if part == 'proj' else 'embed_norm'}.{rest}"] = tensor
            elif ".downsample." in name:
                stage, _, rest = name.removeprefix("layers.").partition(".downsample.")
                translated[f"merges.{stage}.{rest}"] = tensor
        return translated

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return what the second and every later stage gets, and the last's output, for x (B, C, *S), channel-first."""
        x, maps = self.embed_norm(self.embed(x).movedim(1, -1)), []
        for number, stage in enumerate(self.encoder):
            if number:
                maps.append(x)
            x = stage(x)
            if number < len(self.merges):
                x = self.merges[number](x)
        return [found.movedim(-1, 1) for found in (*maps, x)]

    def decode(self, features: list[Tensor]) -> Tensor:
        """Return logits (B, K, *S)."""
        *skips, x = (feature.movedim(1, -1) for feature in features)
        x = self.decoder[0](x)
        for stage, expand, skip in zip(self.decoder[1:], self.expands, reversed(skips), strict=True):
            x = stage(expand(x + skip))
        return self.head(self.last_expand(x).movedim(-1, 1))


def make_stage(dims: int, width: int, rates: list[float]) -> nn.Sequential:
    """Return one block per rate of stochastic depth: (B, *S, C) -> (B, *S, C)."""
    return nn.Sequential(*(VisualStateSpaceBlock(dims, width, drop_path=rate) for rate in rates))
