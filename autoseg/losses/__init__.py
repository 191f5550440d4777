"""Losses: cross-entropy plus Dice with regions, ignore and partial labels; deep supervision; plain functions."""

from autoseg.losses.deep_supervision import DeepSupervisionLoss, deep_supervision_weights, downsample
from autoseg.losses.functional import cross_entropy_loss, dice_loss, focal_loss
from autoseg.losses.outputs import Outputs, full_resolution, split_outputs
from autoseg.losses.segmentation import SegmentationLoss
from autoseg.losses.soft_labels import soft_label_loss

__all__ = [
    "DeepSupervisionLoss",
    "Outputs",
    "SegmentationLoss",
    "cross_entropy_loss",
    "deep_supervision_weights",
    "dice_loss",
    "downsample",
    "focal_loss",
    "full_resolution",
    "soft_label_loss",
    "split_outputs",
]
