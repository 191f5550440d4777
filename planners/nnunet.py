"""nnU-Net's plain planner. Source: Isensee et al. 2021, Nature Methods 18, 203-211; rules of nnU-Net v2."""

from __future__ import annotations

from autoseg.planning import Planner
from autoseg.plugins import register


@register.planner("nnunet")
class NnUNet(Planner):
    """nnU-Net v2's plans, number for number: plain U-Net, 8 GiB, SGD for 250 000 steps (9 h on an A100)."""
