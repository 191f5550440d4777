"""nnU-Net's augmentation as batched torch code: parameters are drawn per sample, then applied on any device."""

from autoseg.batches.augmentation.parameters import Level, SampleParameters, draw_parameters

__all__ = ["Level", "SampleParameters", "draw_parameters"]
