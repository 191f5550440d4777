"""Network outputs -> label map, probabilities and uncertainty on the original grid of the case.

Several members of an ensemble are averaged as probabilities on the original grid. Memory beyond the result is one slab:
it grows neither with the number of classes nor, but for the result itself, with the size of the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from autoseg.inference.resampling import Resampled
from autoseg.labels import Labels
from autoseg.plans import Configuration, Plans
from autoseg.preprocessing import CaseProperties


def logits_to_label_map(
    logits: Tensor, properties: CaseProperties, plans: Plans, configuration: Configuration, labels: Labels
) -> np.ndarray:
    """Return the internal label map (Z, Y, X) int16 on the original grid for logits (K, *resampled).

    Logits are resampled, then decided: the running maximum over the classes, or with regions logit > 0, painted.
    """
    return label_map([Resampled(logits, properties, plans, configuration)], labels)


def logits_to_probabilities(
    logits: Tensor, properties: CaseProperties, plans: Plans, configuration: Configuration, labels: Labels
) -> np.ndarray:
    """Return probabilities (K, Z, Y, X) float32 on the original grid; outside of the crop background is 1.

    Softmax over the classes, or with regions a sigmoid for each, after resampling the logits (K, *resampled).
    """
    return probabilities([Resampled(logits, properties, plans, configuration)], labels)


@torch.inference_mode()
def label_map(members: Sequence[Resampled], labels: Labels) -> np.ndarray:
    """Return the internal label map (Z, Y, X) int16 of the logits of one or more members."""
    if len(members) == 1:
        return label_map_of_rows(members, labels)
    frame = members[0].frame
    result = np.zeros(frame.shape, dtype=np.int16)
    for slab in frame.slabs(values=labels.num_outputs):
        mean = _mean_probabilities(members, slab, labels)
        result[frame.rows(slab)] = _decide(mean, labels, threshold=0.5).cpu().numpy()
    return result


@torch.inference_mode()
def label_map_of_rows(parts: Iterable[Resampled], labels: Labels) -> np.ndarray:
    """Return the internal label map (Z, Y, X) int16 of logits that come as parts, in the order of their rows.

    A part is not touched once the next one is asked for. Raises ValueError where rows are missing in the end.
    """
    result: np.ndarray | None = None
    done = 0
    for part in parts:
        frame = part.frame
        if result is None:
            result = np.zeros(frame.shape, dtype=np.int16)
        rows = part.rows(done)
        for slab in frame.slabs(rows, values=part.value):
            result[frame.rows(slab)] = _decide_stream(part, slab, labels).cpu().numpy()
        done = rows.stop
    if result is None or done < frame.cropped[0]:
        raise ValueError(f"logits came for {done} rows only")
    return result


@torch.inference_mode()
def probabilities(members: Sequence[Resampled], labels: Labels) -> np.ndarray:
    """Return the mean probabilities (K, Z, Y, X) float32 of the logits of one or more members."""
    frame = members[0].frame
    result = np.zeros((labels.num_outputs, *frame.shape), dtype=np.float32)
    if not labels.regions:
        result[0] = 1.0
    for slab in frame.slabs(values=labels.num_outputs):
        result[(slice(None), *frame.rows(slab))] = _mean_probabilities(members, slab, labels).cpu().numpy()
    return result


@torch.inference_mode()
def uncertainty(members: Sequence[Resampled], labels: Labels) -> np.ndarray:
    """Return the uncertainty (Z, Y, X) float32, 0 (certain) to 1, of the *mean probabilities* of one or more members.

    Each member brings the mean of its softmax over tiles, mirrors and folds (K, *resampled), which is resampled
    linearly; p is the mean over members. Uncertainty is the normalised entropy -sum_k p_k log p_k / log K; with regions
    the mean over the regions of the binary entropy of the sigmoid / log 2. Outside of the crop it is 0. Disagreement of
    folds and mirrors, and doubt of each of them, both raise it.
    """
    frame = members[0].frame
    result = np.zeros(frame.shape, dtype=np.float32)
    for slab in frame.slabs():
        entropy = torch.zeros(())
        for output in range(labels.num_outputs):
            p = sum(member.slab(slice(output, output + 1), slab)[0] for member in members) / len(members)
            p = p.clamp(0, 1)
            entropy = entropy.to(p.device) - torch.xlogy(p, p)
            if labels.regions:
                entropy -= torch.xlogy(1 - p, 1 - p)
        scale = labels.num_outputs * math.log(2) if labels.regions else math.log(labels.num_outputs)
        result[frame.rows(slab)] = (entropy / scale).clamp(0, 1).cpu().numpy()
    return result


def _decide_stream(member: Resampled, slab: slice, labels: Labels) -> Tensor:
    """Return the labels of a slab, class by class, so that only two classes are in memory at a time."""
    if labels.regions:
        return _paint(lambda index: member.slab(slice(index, index + 1), slab)[0] > 0, labels)
    best = member.slab(slice(0, 1), slab)[0].clone()
    decided = torch.zeros(best.shape, dtype=torch.int16, device=best.device)
    for output in range(1, labels.num_outputs):
        _take_better(best, decided, member.slab(slice(output, output + 1), slab)[0], output)
    return decided


def _decide(values: Tensor, labels: Labels, *, threshold: float) -> Tensor:
    """Return the labels (Z, Y, X) of outputs (K, Z, Y, X); `threshold` decides regions."""
    if labels.regions:
        return _paint(lambda index: values[index] > threshold, labels)
    best = values[0].clone()
    decided = torch.zeros(best.shape, dtype=torch.int16, device=best.device)
    for output in range(1, len(values)):
        _take_better(best, decided, values[output], output)
    return decided


def _take_better(best: Tensor, decided: Tensor, value: Tensor, output: int) -> None:
    """Keep the first of the largest values, as argmax does."""
    decided.masked_fill_(value > best, output)
    torch.maximum(best, value, out=best)


def _paint(mask_of, labels: Labels) -> Tensor:
    """Paint the masks of regions in their order; see `Labels.paint`."""
    position = {value: index + 1 for index, value in enumerate(labels.foreground_values)}
    painted: Tensor | None = None
    for index, value in labels.painting:
        mask = mask_of(index)
        painted = torch.zeros(mask.shape, dtype=torch.int16, device=mask.device) if painted is None else painted
        painted.masked_fill_(mask, position[value])
    assert painted is not None
    return painted


def _mean_probabilities(members: Sequence[Resampled], slab: slice, labels: Labels) -> Tensor:
    """Return (K, z, Y, X) of a slab, the mean over members of the activated, resampled logits."""
    total: Tensor | None = None
    for member in members:
        logits = member.slab(slice(0, labels.num_outputs), slab)
        activated = logits.sigmoid() if labels.regions else logits.softmax(0)
        total = activated if total is None else total + activated.to(total.device)
    assert total is not None
    return total / len(members)
