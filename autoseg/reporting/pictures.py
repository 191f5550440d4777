"""Pictures of cases: the slice with most foreground, with contours of reference and prediction, as inline SVG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from skimage.measure import find_contours

from autoseg.labels import Labels
from autoseg.reporting.markup import text

_MARGIN = 0.35  # of the size of the foreground, shown around it
_SMALLEST_SHARE = 0.4  # of the image's extent that is shown at least
_LARGEST_SIDE = 512  # pixels of the embedded image


@dataclass(frozen=True)
class Slice:
    """One plane of a case: grey or colour image in 0..255, two label maps, and the pixel size in mm."""

    image: np.ndarray  # (Y, X) or (Y, X, 3) uint8
    prediction: np.ndarray  # (Y, X) internal values
    reference: np.ndarray
    spacing: tuple[float, float]
    position: str  # which plane, in words


def largest_slice(
    image: np.ndarray, prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], *, colour: bool = False
) -> Slice:
    """Return the plane across the coarsest axis with most foreground, cut around it.

    image (C, Z, Y, X), label maps (Z, Y, X) with internal values, spacing in mm. `colour`: channels are R, G, B.
    """
    axis = 0 if prediction.shape[0] == 1 else int(np.argmax(np.round(spacing, 3)))
    foreground = (prediction > 0) | (reference > 0)
    amounts = foreground.sum(axis=tuple(a for a in range(3) if a != axis))
    index = int(np.argmax(amounts)) if amounts.any() else prediction.shape[axis] // 2
    planes = [np.take(array, index, axis=axis) for array in (prediction, reference)]
    channels = np.take(image, index, axis=axis + 1)[: 3 if colour else 1]
    box = _window(np.take(foreground, index, axis=axis))
    in_plane = tuple(float(s) for a, s in enumerate(spacing) if a != axis)
    grey = np.stack([_to_bytes(channel[box]) for channel in channels], axis=-1)
    return Slice(
        image=grey if colour else grey[..., 0],
        prediction=planes[0][box],
        reference=planes[1][box],
        spacing=(in_plane[0], in_plane[1]),
        position=f"plane {index + 1} of {prediction.shape[axis]} along {'zyx'[axis]}",
    )


def plain_picture(plane: Slice, title: str) -> str:
    """Return the image alone."""
    return _svg(plane, title, "")


def contour_picture(plane: Slice, labels: Labels, title: str) -> str:
    """Return the image with the contours of every label or region: reference and prediction."""
    paths = []
    for kind, label_map in (("reference", plane.reference), ("prediction", plane.prediction)):
        for name, members in zip(labels.names, labels.members, strict=True):
            path = _contours(np.isin(label_map, members))
            if path:
                paths.append(f'<path class="{kind}" d="{path}"><title>{text(name)}, {kind}</title></path>')
    return _svg(plane, title, "".join(paths))


def _svg(plane: Slice, title: str, paths: str) -> str:
    """Pixels may be oblong in mm: the content is drawn in pixels and stretched as a whole."""
    rows, columns = plane.image.shape[:2]
    smallest = min(plane.spacing)
    height, width = rows * plane.spacing[0] / smallest, columns * plane.spacing[1] / smallest
    return (
        f'<svg viewBox="0 0 {width:.2f} {height:.2f}" role="img" aria-label="{text(title)}">'
        f'<g transform="scale({width / columns:.5f} {height / rows:.5f})">'
        f'<image href="data:image/png;base64,{_png(plane.image)}" width="{columns}" height="{rows}" '
        f'preserveAspectRatio="none"/>{paths}</g></svg>'
    )


def _png(image: np.ndarray) -> str:
    picture = Image.fromarray(np.ascontiguousarray(image))
    if max(picture.size) > _LARGEST_SIDE:
        scale = _LARGEST_SIDE / max(picture.size)
        picture = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _contours(mask: np.ndarray) -> str:
    """Return the outline of a mask as an SVG path in pixel units, the first pixel covering 0..1."""
    if not mask.any():
        return ""
    padded = np.pad(mask, 1).astype(np.float32)
    parts = []
    for line in find_contours(padded, 0.5):
        points = " ".join(f"{x - 0.5:.1f},{y - 0.5:.1f}" for y, x in line)
        parts.append(f"M{points}Z")
    return "".join(parts)


def _window(foreground: np.ndarray) -> tuple[slice, slice]:
    """Return the part of a plane that is shown: the foreground with a margin, at least a good share of the image."""
    if not foreground.any():
        return slice(None), slice(None)
    window = []
    for axis in range(2):
        used = np.flatnonzero(foreground.any(axis=1 - axis))
        size = foreground.shape[axis]
        length = used[-1] + 1 - used[0]
        wanted = min(size, max(int(length * (1 + 2 * _MARGIN)) + 1, int(size * _SMALLEST_SHARE)))
        start = int(np.clip((used[0] + used[-1] + 1 - wanted) // 2, 0, size - wanted))
        window.append(slice(start, start + wanted))
    return window[0], window[1]


def _to_bytes(channel: np.ndarray) -> np.ndarray:
    """Return intensities as 0..255 between their percentiles 0.5 and 99.5."""
    finite = np.nan_to_num(channel.astype(np.float32))
    low, high = np.percentile(finite, [0.5, 99.5])
    return (np.clip((finite - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
