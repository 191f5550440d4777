"""nnU-Net's residual encoder presets M, L, XL. Source: Isensee et al. 2024, nnU-Net Revisited, arXiv:2404.09556."""

from __future__ import annotations

from typing import Any

from autoseg.planning import Planner
from autoseg.planning.estimate import residual_feature_map_sum
from autoseg.plans import NetworkSpec
from autoseg.plugins import register


class ResidualEncoderPlanner(Planner):
    """What the presets share: their network, its estimate, and no cap by the size of the data set."""

    architecture: str = "residual_encoder_unet"
    batch_before_patch: bool = False
    max_dataset_covered: float = 1.0
    shares_data_of: str | None = "nnunet"

    def estimate(self, spec: NetworkSpec, frame: Any) -> float:
        """Return the feature-map sum of one sample."""
        return residual_feature_map_sum(spec, frame.fingerprint.num_labels)


@register.planner("residual_encoder_m")
class ResidualEncoderM(ResidualEncoderPlanner):
    """nnU-Net's ResEnc M: 9 GB, 12 h on an A100; mean Dice over six data sets 0.5 above the plain U-Net."""

    reference_2d: float = 135e6
    reference_3d: float = 680e6


@register.planner("residual_encoder_l")
class ResidualEncoderL(ResidualEncoderPlanner):
    """nnU-Net's ResEnc L, its recommended default: 23 GB, 35 h on an A100."""

    memory_gib: float = 24.0
    reference_gib: float = 24.0
    reference_2d: float = 380e6
    reference_3d: float = 2.1e9


@register.planner("residual_encoder_xl")
class ResidualEncoderXL(ResidualEncoderPlanner):
    """nnU-Net's ResEnc XL: 37 GB, 66 h on an A100."""

    memory_gib: float = 40.0
    reference_gib: float = 40.0
    reference_2d: float = 560e6
    reference_3d: float = 3.6e9
