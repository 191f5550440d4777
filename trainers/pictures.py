"""Pictures that pretraining leaves in the run folder: samples in rows, what is to be compared in columns."""

from __future__ import annotations

import numpy as np


def picture(rows: np.ndarray) -> np.ndarray:
    """Return (B, columns, *S) as one grey image in 0..255: a row per sample, the middle slice of volumes."""
    planes = rows if rows.ndim == 4 else rows[:, :, rows.shape[2] // 2]
    low, high = planes[:, :1].min((2, 3), keepdims=True), planes[:, :1].max((2, 3), keepdims=True)
    grey = ((planes - low) / np.maximum(high - low, 1e-6)).clip(0, 1) * 255
    framed = np.pad(grey, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=255)
    whole = np.concatenate([np.concatenate(list(row), 1) for row in framed], 0).astype(np.uint8)
    enlarged = max(1, 192 // planes.shape[2])
    return whole.repeat(enlarged, 0).repeat(enlarged, 1)
