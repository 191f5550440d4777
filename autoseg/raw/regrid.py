"""Put a label map that lies on another grid onto the grid of its image."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from autoseg.errors import UserError
from autoseg.raw.geometry import Geometry, resample_label
from autoseg.raw.images import read_label, write_label
from autoseg.storage import atomic_path


def regrid_label(path: Path, target: Geometry, *, within: Path) -> Path:
    """Resample a label map by nearest neighbour onto `target` and keep the original in LABELS_original/.

    Returns where the original is. Refused if a class would vanish, since then the geometry is hardly right, and if
    anything would be written, links followed, outside of the folder `within`: descriptions may name any file.
    """
    kept = _place_of_original(path, within)
    label, geometry = read_label(path)
    resampled = resample_label(label, geometry, target)
    lost = sorted(set(np.unique(label).tolist()) - set(np.unique(resampled).tolist()) - {0})
    if lost:
        raise UserError(
            f"on the image's grid the label value(s) {lost} would vanish, so the label map's geometry is not right",
            where=path,
            mend="write the label map with the geometry of the image",
        )
    if not kept.exists():  # what is there already is the first original
        with atomic_path(kept) as temporary:
            shutil.copy2(path, temporary)
    write_label(path, resampled, target)
    return kept


def _place_of_original(path: Path, within: Path) -> Path:
    """Return where the original label map is kept; UserError unless both places are below `within`."""
    within, label = within.resolve(), path.resolve()
    folder = within / "labels" if label.parent == within else label.parent  # nothing is put beside the data set
    kept = folder.with_name(f"{folder.name}_original") / label.name
    for place in (label, kept.resolve()):
        if not place.is_relative_to(within):
            raise UserError(
                f"the label map is not put onto the image's grid, since {place} lies outside of the data set's folder "
                f"{within}",
                where=path,
                mend="copy the label map itself, not a link, into the folder of the data set and name it there",
            )
    return kept
