"""Put a label map that lies on another grid onto the grid of its image."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from autoseg.errors import UserError
from autoseg.raw.geometry import Geometry, resample_label
from autoseg.raw.images import read_label, write_label
from autoseg.storage import atomic_path


def regrid_label(path: Path, target: Geometry) -> Path:
    """Resample a label map by nearest neighbour onto `target` and keep the original in LABELS_original/.

    Returns where the original is. Refused if a class would vanish, since then the geometry is hardly right.
    """
    label, geometry = read_label(path)
    resampled = resample_label(label, geometry, target)
    lost = sorted(set(np.unique(label).tolist()) - set(np.unique(resampled).tolist()) - {0})
    if lost:
        raise UserError(
            f"on the image's grid the label value(s) {lost} would vanish, so the label map's geometry is not right",
            where=path,
            mend="write the label map with the geometry of the image",
        )
    kept = path.parent.with_name(f"{path.parent.name}_original") / path.name
    if not kept.exists():  # what is there already is the first original
        with atomic_path(kept) as temporary:
            shutil.copy2(path, temporary)
    write_label(path, resampled, target)
    return kept
