"""Network outputs -> label map, probabilities and uncertainty on the original grid of the case.

Several members of an ensemble are averaged as probabilities on the original grid. Outputs may come as rows, part by
part. Memory beyond them and the result is one slab: it grows neither with the classes nor with the size of the image.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autoseg.inference.resampling import Frame, Resampled
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


def label_map(members: Sequence[Resampled], labels: Labels) -> np.ndarray:
    """Return the internal label map (Z, Y, X) int16 of the logits of one or more members."""
    return export_rows([iter([Outputs(member)]) for member in members], labels).label


def probabilities(members: Sequence[Resampled], labels: Labels) -> np.ndarray:
    """Return the mean probabilities (K, Z, Y, X) float32 of the logits of one or more members."""
    return export_rows([iter([Outputs(member)]) for member in members], labels, want={"probabilities"}).probabilities


def uncertainty(members: Sequence[Resampled], labels: Labels) -> np.ndarray:
    """Return the uncertainty (Z, Y, X) float32, 0 (certain) to 1, of the *mean probabilities* of one or more members.

    Each member brings the mean of its softmax over tiles, mirrors and folds (K, *resampled), which is resampled
    linearly; p is the mean over members. Uncertainty is the normalised entropy -sum_k p_k log p_k / log K; with regions
    the mean over the regions of the binary entropy of the sigmoid / log 2. Outside of the crop it is 0. Disagreement of
    folds and mirrors, and doubt of each of them, both raise it.
    """
    return export_rows(
        [iter([Outputs(member, member)]) for member in members], labels, want={"uncertainty"}
    ).uncertainty


@dataclass(frozen=True)
class Outputs:
    """Rows of what a member gives: its logits, and the mean of its activated outputs where uncertainty is wanted."""

    logits: Resampled
    activated: Resampled | None = None


@dataclass
class Exported:
    """What was wanted of label map (Z, Y, X) int16, probabilities (K, Z, Y, X) and uncertainty (Z, Y, X) float32."""

    label: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    uncertainty: np.ndarray | None = None


@torch.inference_mode()
def export_rows(
    streams: Sequence[Iterator[Outputs]], labels: Labels, want: Collection[str] = frozenset({"label"})
) -> Exported:
    """Return what is wanted of one or more members, whose outputs come as rows of the image's first axis, in order.

    The members take turns, so that each has as few rows in memory as it hands out at a time; outputs are not touched
    once the next ones of their member are asked for. Raises ValueError where rows are missing in the end.
    """
    result = Exported()
    for rows, members in _in_step(streams):
        frame = members[0].logits.frame
        if rows.start == 0:
            result = _empty(frame, labels, want)
        logits = [member.logits for member in members]
        if result.label is not None and len(members) == 1:
            for slab in frame.slabs(rows, values=logits[0].slab_share):
                result.label[frame.rows(slab)] = _decide_stream(logits[0], slab, labels).cpu().numpy()
        if result.probabilities is not None or (result.label is not None and len(members) > 1):
            for slab in frame.slabs(rows, values=labels.num_outputs):
                _fill_means(result, frame.rows(slab), _mean_probabilities(logits, slab, labels), labels, len(members))
        if result.uncertainty is not None:
            activated = [member.activated for member in members]
            for slab in frame.slabs(rows, values=activated[0].slab_share):
                result.uncertainty[frame.rows(slab)] = _entropy(activated, slab, labels).cpu().numpy()
    return result


def _fill_means(result: Exported, place: tuple[slice, ...], mean: Tensor, labels: Labels, members: int) -> None:
    """Fill a slab of what is made of mean probabilities (K, z, Y, X): labels only of several members."""
    if result.probabilities is not None:
        result.probabilities[(slice(None), *place)] = mean.cpu().numpy()
    if result.label is not None and members > 1:
        result.label[place] = _decide(mean, labels, threshold=0.5).cpu().numpy()


def _in_step(streams: Sequence[Iterator[Outputs]]) -> Iterator[tuple[slice, list[Outputs]]]:
    """Yield rows of the original grid, in order, with outputs of every member that suffice for them."""
    done = 0
    members = [_next(stream) for stream in streams]
    depth = members[0].logits.frame.cropped[0]
    while True:
        ready = [member.logits.rows(done).stop for member in members]
        rows = slice(done, min(ready))
        if rows.stop > done:
            yield rows, members
        done = rows.stop
        if done >= depth:
            return
        for index, stop in enumerate(ready):
            if stop == done:
                members[index] = _next(streams[index])


def _next(stream: Iterator[Outputs]) -> Outputs:
    found = next(stream, None)
    if found is None:
        raise ValueError("outputs came for some of the rows only")
    return found


def _empty(frame: Frame, labels: Labels, want: Collection[str]) -> Exported:
    """Return what is true outside of the crop: background, for certain."""
    result = Exported()
    if "label" in want:
        result.label = np.zeros(frame.shape, dtype=np.int16)
    if "probabilities" in want:
        result.probabilities = np.zeros((labels.num_outputs, *frame.shape), dtype=np.float32)
        if not labels.regions:
            result.probabilities[0] = 1.0
    if "uncertainty" in want:
        result.uncertainty = np.zeros(frame.shape, dtype=np.float32)
    return result


def _entropy(members: Sequence[Resampled], slab: slice, labels: Labels) -> Tensor:
    """Return the normalised entropy (z, Y, X) of a slab, 0 to 1; the members' values are probabilities."""
    device = members[0].values.device
    entropy = torch.zeros((), device=device)
    for output in range(labels.num_outputs):
        p = sum(member.slab(slice(output, output + 1), slab)[0].to(device) for member in members)
        p = (p / len(members)).clamp(0, 1)
        entropy = entropy - torch.xlogy(p, p)
        if labels.regions:
            entropy -= torch.xlogy(1 - p, 1 - p)
    scale = labels.num_outputs * math.log(2) if labels.regions else math.log(labels.num_outputs)
    return (entropy / scale).clamp(0, 1)


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
