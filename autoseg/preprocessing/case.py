"""One case from its raw grid to what networks see: transpose, crop, normalise, resample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from autoseg.errors import UserError
from autoseg.machine import available_memory
from autoseg.plans import Configuration, Plans
from autoseg.preprocessing.crop import Cropped, crop
from autoseg.preprocessing.geometry import new_shape, target_spacing
from autoseg.preprocessing.normalise import normalise
from autoseg.preprocessing.resample import resample_image
from autoseg.preprocessing.resample_labels import resample_labels
from autoseg.store.records import CaseProperties, Preprocessed


def preprocess_case(
    image: np.ndarray,
    label: np.ndarray | None,
    spacing: Sequence[float],
    *,
    plans: Plans,
    configuration: Configuration,
    device: Any = None,
) -> Preprocessed:
    """Preprocess an image (C, Z, Y, X) and its label map (internal values) with axes and spacing as in the file.

    Without a label map the result has none. A torch `device` runs the resampling of the image there.
    """
    needs_mask = any(configuration.use_mask)
    cropped = crop(image, label, tuple(spacing), mark_outside=needs_mask)
    if label is not None:
        return preprocess_cropped(cropped, plans=plans, configuration=configuration, device=device)
    result = preprocess_cropped(cropped, plans=plans, configuration=configuration, device=device, image_only=True)
    result.label = None
    return result


def preprocess_cropped(
    cropped: Cropped, *, plans: Plans, configuration: Configuration, device: Any = None, image_only: bool = False
) -> Preprocessed:
    """Preprocess a case that is already cropped; its label map comes along unless `image_only`."""
    case = cropped.transposed(plans.transpose_forward)
    shape = case.image.shape[1:]
    spacing = target_spacing(configuration, case.spacing)
    resampled = new_shape(shape, case.spacing, spacing)
    _check_room(len(case.image), resampled, case.spacing, spacing)
    data = normalise(
        case.image,
        None if case.label is None else case.label >= 0,
        schemes=configuration.normalization,
        use_mask=configuration.use_mask,
        intensities=plans.intensities,
    )
    properties = CaseProperties(
        spacing=case.spacing,
        shape_before_crop=case.shape_before_crop,
        crop_box=case.box,
        shape_after_crop=shape,
        shape_resampled=resampled,
    )
    spacings = {"current_spacing": case.spacing, "new_spacing": spacing}
    label = None if image_only else resample_labels(np.ascontiguousarray(case.label), resampled, **spacings)
    return Preprocessed(
        data=resample_image(data, resampled, **spacings, device=device),
        label=label,
        properties=properties,
        labelled=case.labelled,
    )


def _check_room(channels: int, shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> None:
    """Refuse what cannot be held: a spacing that is wrong by a factor of a thousand would ask for terabytes."""
    needed = 4 * channels * math.prod(shape)
    if needed > available_memory():
        raise UserError(
            f"resampled from spacing {tuple(spacing)} to {tuple(target)} mm, the image has shape {tuple(shape)} "
            f"and needs {needed / 2**30:.1f} GiB, more than is free",
            mend="check the spacing in the image's header, or use a machine with more memory",
        )
