"""How large and how long everything is: as the project asks for it, or as toys."""

from __future__ import annotations

from dataclasses import dataclass

CORES = 4  # of the processor, that training has beside the GPU
BATCH = 2
RESAMPLED = 1  # of the classes, on which nnU-Net's export is timed; each takes as long as any other


@dataclass(frozen=True)
class Sizes:
    """Edges in voxels (Z, Y, X), times in seconds."""

    device: str = "cuda"
    patch: tuple[int, ...] = (128,) * 3
    volume: tuple[int, ...] = (208, 224, 224)  # no smaller than what a rotated patch is cut from
    cases: int = 4
    features: tuple[int, ...] = (32, 64, 128, 256, 320, 320)
    classes: int = 104
    coarse: tuple[int, ...] = (267, 273, 273)  # the CT at 1.5 mm
    fine: tuple[int, ...] = (400, 512, 512)  # the CT at 1.0 x 0.8 x 0.8 mm
    warm_up: int = 5  # steps in which kernels are compiled and chosen
    settle: float = 6.0  # until the batches made ahead have their lasting number
    settle_steps: int = 18
    fed: float = 20.0
    alone: float = 5.0
    fewest: int = 20  # steps that are timed at least
    augmented: int = 60  # batches
    product: int = 8192  # edge of the matrices
    copied: int = 2**30  # bytes


TOYS = Sizes(
    device="cpu", patch=(32,) * 3, volume=(40, 40, 48), cases=3, features=(4,) * 6, classes=4, coarse=(32, 32, 40),
    fine=(40, 40, 50), warm_up=1, settle=0.0, settle_steps=1, fed=0.0, alone=0.0, fewest=1, augmented=2, product=256,
    copied=2**20,
)  # fmt: skip


def sizes(*, rehearse: bool) -> Sizes:
    """Return the sizes of a measurement, or of a rehearsal on the CPU."""
    return TOYS if rehearse else Sizes()
