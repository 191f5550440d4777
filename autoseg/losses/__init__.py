"""Losses: cross-entropy plus Dice with regions, ignore and partial labels; deep supervision; plain functions."""

from autoseg.losses.deep_supervision import DeepSupervisionLoss, deep_supervision_weights, downsample
from autoseg.losses.functional import cross_entropy_loss, dice_loss, focal_loss
from autoseg.losses.segmentation import SegmentationLoss

__all__ = [
    "DeepSupervisionLoss",
    "SegmentationLoss",
    "cross_entropy_loss",
    "deep_supervision_weights",
    "dice_loss",
    "downsample",
    "focal_loss",
]
