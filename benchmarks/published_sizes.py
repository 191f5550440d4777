"""Parameters of every network's published configuration: as published, and counted from the registered network.

    python benchmarks/published_sizes.py          prints the table

Networks are built without weights. `ours` leaves out what the authors' count leaves out (see `PUBLISHED`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn

from autoseg import plugins
from autoseg.plans import NetworkSpec

Strides = tuple[tuple[int, ...], ...]
FLAT_FIRST: Strides = ((1, 1, 1), (1, 2, 2), *[(2, 2, 2)] * 3)
WIDE = (32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Published:
    """A published configuration as a plan; `count` None: no count was published."""

    count: float | None
    dims: int
    patch: int | tuple[int, ...]
    stages: int | Strides
    channels: int = 1
    outputs: int = 3
    features: tuple[int, ...] | None = None
    deep: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    less: Callable[[nn.Module], int] = lambda network: 0  # parameters of ours that the published count has not

    @property
    def spec(self) -> NetworkSpec:
        """Return the plan, before the architecture adapts it."""
        stages, dims = self.stages, self.dims
        strides = ((1,) * dims, *[(2,) * dims] * (stages - 1)) if isinstance(stages, int) else stages
        return NetworkSpec(
            dims=dims,  # type: ignore[arg-type]
            in_channels=self.channels,
            num_outputs=self.outputs,
            patch_size=(self.patch,) * dims if isinstance(self.patch, int) else self.patch,
            strides=strides,
            kernel_sizes=((3,) * dims,) * len(strides),
            features=self.features or tuple(min(320, 32 * 2**level) for level in range(len(strides))),
            blocks_encoder=(1,) * len(strides),
            blocks_decoder=(1,) * (len(strides) - 1),
            deep_supervision=self.deep,
            options=self.options,
        )


def variant(count: float, channels: int = 3) -> Published:
    """Return one of the four U-Nets of Ehab and Li."""
    return Published(count, 2, 32, 5, channels, 1, deep=False, options={"paper_widths": True})


def mask_token(network: nn.Module) -> int:
    """Return minus the size of MedDINOv3's mask token, which is a buffer here and counts there."""
    return -network.backbone.mask_token.numel()  # type: ignore[union-attr,operator]


def heads(network: nn.Module) -> int:
    """Return the size of the heads, which D-Former's sum over layers leaves out."""
    return sum(parameter.numel() for parameter in network.heads.parameters())  # type: ignore[union-attr]


PUBLISHED = {
    "plain_unet": Published(31_196_399, 3, 128, 6),
    "residual_encoder_unet": Published(102_350_575, 3, 128, 6),
    "unet_plus_plus": Published(9_041_601, 2, 32, 5, outputs=1, features=WIDE, deep=False, options={"style": "paper"}),
    "stu_net": Published(58_262_669, 3, 128, 6, outputs=105, options={"size": "B"}),
    "primus": Published(146_145_050, 3, 64, 5, outputs=2, options={"version": 2, "size": "M"}),
    "segmamba": Published(67.36e6, 3, 128, 6, deep=False),
    "xlstm_unet": Published(43_697_095, 3, 128, 6),
    "swin_unetr": Published(62_187_296, 3, 96, 6, outputs=14),
    "swin_bob": Published(62_187_296, 3, 96, 6, outputs=14),
    "unet": variant(31_390_723),
    "res_unet": variant(33_139_267, channels=1),
    "attention_unet": variant(37.3e6),
    "att_res_unet": variant(39_068_871),
    "y_net": Published(6_925_353, 2, 224, 5, outputs=9, features=WIDE, deep=False),
    "hiformer": Published(25_512_115, 2, 224, 6, 3, 9, options={"size": "b"}),
    "mcanet": Published(4_047_401, 2, 512, 8, 3, 1),
    "mpu_net": Published(21_507_255, 3, (16, 32, 24), 4, outputs=2),
    "ms_dual_guided": Published(103_556_063, 2, 256, 6, outputs=5, options={"backbone": "resnext101"}),
    "paratranscnn": Published(245_468_937, 2, 224, 6, 3, 9),
    "pct_net": Published(44_199_386, 3, (64, 128, 128), FLAT_FIRST, outputs=2),
    "fmunet": Published(47_332_680, 3, (64, 128, 128), 5, outputs=2),
    "resunet_plus_plus": Published(4_062_993, 2, 256, 4, 3, 1, deep=False),
    "u_transformer": Published(11_677_825, 2, 64, 4, 3, 1, features=(64, 128, 256, 512), deep=False),
    "lightm_unet": Published(5_015_766, 3, 128, 6),
    "msvm_unet": Published(35.93e6, 2, 224, 6, 3, 9),
    "vm_unet": Published(27.43e6, 2, 256, 6, 3, 1),
    "d_former": Published(44.26e6, 3, (64, 128, 128), (*FLAT_FIRST, (2, 2, 2)), outputs=14, less=heads),
    "focal_unet": Published(44_254_060, 2, 224, 6, 3, 9),
    "hi_end_mae": Published(361_271_150, 3, 96, 6, outputs=14),
    "meddinov3": Published(110_720_846, 2, 896, 8, outputs=14, less=mask_token),
    "medvisionllama": Published(1_165_440, 3, 128, 6, outputs=1, options={"llm": [4096, 32, 8, 14336]}),
    "swin_smt": Published(170.78e6, 3, 128, 6, outputs=118),
    "swin_unet": Published(41_378_724, 2, 224, 6, 3),
    "diamant": Published(None, 2, 256, 5, 9, 1, features=WIDE, deep=False, options={"maps": 6}),
    "transdae": Published(None, 2, 224, 6, outputs=9),
}


@cache
def ours(name: str) -> int:
    """Return the parameters of the registered network at its published configuration."""
    found, kind = PUBLISHED[name], plugins.load("architecture", name)
    spec = kind.adapt_spec(found.spec)
    try:
        with torch.device("meta"):
            network = plugins.build_network(name, spec)
    except RuntimeError:  # MONAI's networks look at values while they are built
        network = plugins.build_network(name, spec)
    return sum(parameter.numel() for parameter in network.parameters()) - found.less(network)


def main() -> None:
    """Print one Markdown row per network."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| architecture | ours | published |\n| --- | ---: | ---: |")
    for name, found in PUBLISHED.items():
        print(f"| `{name}` | {ours(name)} | {'-' if found.count is None else f'{found.count:.0f}'} |", flush=True)


if __name__ == "__main__":
    main()
