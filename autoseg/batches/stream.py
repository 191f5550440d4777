"""Endless, seeded streams of augmented patches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoseg.batches.augmentation.cascade import damage
from autoseg.batches.augmentation.draws import Draws
from autoseg.batches.augmentation.parameters import SampleParameters, draw_parameters
from autoseg.batches.augmentation.pipeline import apply_intensity, apply_warp, looked_at, zero_outside
from autoseg.batches.augmentation.rows import chunks
from autoseg.batches.batch import Batch, CutBatch, WarpSource
from autoseg.batches.cutting import Box, copy_case
from autoseg.batches.geometry import turns_in_plane_only
from autoseg.batches.sampler import Place, choose_place, is_forced
from autoseg.batches.settings import StreamSettings
from autoseg.batches.warp_boxes import warp_boxes
from autoseg.errors import AutosegError, CaseError, UserError
from autoseg.labels import Labels
from autoseg.randomness import generator


@dataclass(frozen=True)
class _Sample:
    """One sample of a step before anything but locations is read."""

    case: str
    stored: Any
    place: Place
    parameters: SampleParameters


class PatchStream:
    """Batches of patches of some cases of a store; batch `step` is a pure function of (seed, name, step).

    `use_mask` tells per channel whether it was normalised within the mask, so that augmentation keeps it 0 outside.
    `previous_stage` names the label maps of a cascade's previous stage in the store. `after` are functions
    Batch -> Batch that are applied last, on the device: on a GPU in another stream than the training step's, so that
    what this changes meanwhile is not theirs to read.
    """

    def __init__(
        self,
        store: Any,
        cases: Sequence[str],
        labels: Labels,
        settings: StreamSettings,
        *,
        seed: int,
        name: str,
        use_mask: tuple[bool, ...] = (),
        previous_stage: str | None = None,
        after: Sequence[Callable[[Batch], Batch]] = (),
    ):
        if not cases:
            raise UserError(f"the stream {name!r} has no cases", mend="check the split and the preprocessed store")
        self.store = store
        self.cases = tuple(cases)
        self.labels = labels
        self.settings = settings
        self.seed = seed
        self.name = name
        self.use_mask = use_mask
        self.previous_stage = previous_stage
        self.after = tuple(after)

    def batch(self, step: int, device: torch.device | str = "cpu") -> Batch:
        """Return the augmented batch of a step on a device."""
        with one_thread():
            return self.augment(self.cut(step, device), step, device)

    def cases_of(self, step: int) -> tuple[str, ...]:
        """Return the ids of the cases of a step without reading them."""
        return tuple(self._case(step, sample)[0] for sample in range(self.settings.batch_size))

    def cut(self, step: int, device: torch.device | str = "cpu") -> CutBatch:
        """Return the patches of a step, not augmented, on the CPU; in pinned memory if they are to go to a GPU.

        Whatever is not rotated or scaled is cut in its final size and place, mirrored; of the others the boxes they
        look at are cut when `augment` asks for them, as many at a time as suit the device.
        """
        device = torch.device(device)
        pinned = device.type == "cuda"  # else it is pinned by one more copy on the way there
        samples = [self._choose(step, sample) for sample in range(self.settings.batch_size)]
        channels = self._channels
        count, patch = len(samples), self.settings.patch_size
        image, segmentation, previous = self._empty(count, channels, patch, pinned)
        arrays = _arrays(image, segmentation, previous)
        for position, sample in enumerate(samples):
            if sample.parameters.warp is None:
                self._copy(sample, arrays, position, offset=_middle(self.settings), size=patch, limited=False)
        return CutBatch(
            image=image,
            segmentation=segmentation,
            cases=tuple(sample.case for sample in samples),
            annotated=self._annotated(samples),
            previous=previous,
            step=step,
            parameters=tuple(sample.parameters for sample in samples),
            warps=self._warps(samples, device, pinned),
        )

    def augment(self, batch: CutBatch, step: int, device: torch.device | str = "cpu") -> Batch:
        """Return the batch with all augmentation applied on a device; segmentation has 0 where it was -1.

        Tensors of `batch` that already lie on the device are changed in place.
        """
        moved = batch.to(device)
        apply_warp(moved)
        apply_intensity(moved.image, moved.parameters, keep=self.settings.computed_channels)
        zero_outside(moved.image, moved.segmentation, self.use_mask)
        moved.segmentation.clamp_(min=0)
        result = Batch(
            image=moved.image,
            segmentation=moved.segmentation,
            cases=moved.cases,
            annotated=moved.annotated,
            previous=self._damaged(moved.previous, step),
            step=step,
        )
        for function in self.after:
            result = function(result)
        return result

    def _case(self, step: int, sample: int) -> tuple[str, np.random.Generator]:
        random = generator(self.seed, f"{self.name}/sample", step, sample)
        return self.cases[random.integers(len(self.cases))], random

    def _choose(self, step: int, sample: int) -> _Sample:
        case, random = self._case(step, sample)
        settings = self.settings
        try:
            stored = self.store.read(case)
            place = choose_place(
                stored.shape,
                stored.locations,
                settings,
                forced=is_forced(sample, settings),
                ignore=self.labels.ignore_index is not None,
                generator=random,
            )
            channels = self._channels
        except AutosegError:
            raise
        except Exception as error:
            raise CaseError(case, f"placing a patch for step {step}", str(error)) from error
        parameters = draw_parameters(
            generator(self.seed, f"{self.name}/augment", step, sample),
            patch_size=settings.patch_size,
            channels=channels,
            mirror_axes=settings.allowed_mirror_axes,
            level=settings.augmentation,
        )
        return _Sample(case, stored, place, parameters)

    def _empty(
        self, count: int, channels: int, size: Sequence[int], pinned: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return room for images (count, channels, *size), label maps and, in a cascade, those of the stage before."""
        image = torch.empty(count, channels, *size, pin_memory=pinned)
        segmentation = torch.empty(count, *size, dtype=torch.int16, pin_memory=pinned)
        previous = torch.empty_like(segmentation, pin_memory=pinned) if self.previous_stage else None
        return image, segmentation, previous

    def _warps(
        self, samples: Sequence[_Sample], device: torch.device, pinned: bool
    ) -> tuple[Callable[[], WarpSource], ...]:
        """Return what cuts the samples that are rotated or scaled, in groups."""
        warped = tuple(p for p, sample in enumerate(samples) if sample.parameters.warp is not None)
        groups = chunks(len(warped), looked_at(self.settings.patch_size), device)
        return tuple(partial(self._cut_warped, samples, warped[group], pinned) for group in groups)

    def _cut_warped(self, samples: Sequence[_Sample], positions: tuple[int, ...], pinned: bool) -> WarpSource:
        patch, initial = self.settings.patch_size, self.settings.initial_patch_size
        kept = 1 if turns_in_plane_only(patch) else 0  # axes that are not warped
        matrices = np.stack([samples[p].parameters.folded_warp for p in positions])
        boxes = warp_boxes(matrices, patch=patch[kept:], initial=initial[kept:])
        size = (*patch[:kept], *boxes.size)
        image, segmentation, previous = self._empty(len(positions), self._channels, size, pinned)
        arrays = _arrays(image, segmentation, previous)
        for row, (position, corner) in enumerate(zip(positions, boxes.corners, strict=True)):
            offset = (*[0] * kept, *corner)
            self._copy(samples[position], arrays, row, offset=offset, size=size, limited=True)
        return WarpSource(positions, image, segmentation, previous, matrices, boxes.centres)

    def _copy(
        self,
        sample: _Sample,
        arrays: tuple[np.ndarray | None, ...],
        row: int,
        *,
        offset: Sequence[int],
        size: Sequence[int],
        limited: bool,
    ) -> None:
        """Copy a box of `size`, `offset` from the corner of the initial patch, into one row of the arrays.

        With `limited`, nothing outside the initial patch is read, and axes that the warp mirrors are not mirrored here.
        """
        place, initial, flips = sample.place, self.settings.initial_patch_size, list(sample.parameters.flips)
        corner = [c + o for c, o in zip(place.corner, offset, strict=True)]
        limits = [(c, c + i) for c, i in zip(place.corner, initial, strict=True)]
        if limited:
            warped = len(sample.parameters.warp)
            flips[-warped:] = [False] * warped
        size = tuple(size)
        image, segmentation, previous = (None if array is None else array[row] for array in arrays)
        if place.slice is not None:
            corner, size, flips = [place.slice, *corner], (1, *size), [False, *flips]
            limits = [(place.slice, place.slice + 1), *limits]
            image, segmentation = image[:, None], segmentation[None]
            previous = None if previous is None else previous[None]
        box = Box(tuple(corner), size, tuple(limits) if limited else ())
        try:
            copy_case(
                sample.stored, box, image, segmentation, previous, previous_stage=self.previous_stage, flips=flips
            )
        except AutosegError:
            raise
        except Exception as error:
            raise CaseError(sample.case, "reading a patch", str(error)) from error

    def _annotated(self, samples: Sequence[_Sample]) -> Tensor | None:
        """Return (B, K + 1) bool, or None when every sample is fully annotated."""
        known = [sample.stored.annotated for sample in samples]
        if all(values is None for values in known):
            return None
        table = torch.ones(len(samples), len(self.labels.foreground_values) + 1, dtype=torch.bool)
        for row, values in zip(table, known, strict=True):
            if values is not None:
                row[1:] = False
                row[list(values)] = True
                row[0] = True
        return table

    def _damaged(self, previous: Tensor | None, step: int) -> Tensor | None:
        """Return the previous stage's label maps, -1 become 0, damaged when augmenting."""
        if previous is None:
            return None
        previous = previous.clamp_(min=0)
        if self.settings.augmentation == "none":
            return previous
        maps = previous.cpu().numpy()
        labels = range(1, len(self.labels.foreground_values) + 1)
        for sample, label_map in enumerate(maps):
            damage(label_map, labels, Draws(generator(self.seed, f"{self.name}/cascade", step, sample)))
        return torch.from_numpy(maps).to(previous.device)

    @cached_property
    def _channels(self) -> int:
        return len(self.store.read(self.cases[0]).image((slice(0, 1),) * 3))


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep the operations of the calling thread on one core.

    Sums and vectorised functions change their last bits with the number of threads, and a batch must not; beside the
    network, whose threads take all cores, further teams would only wait for each other. The number is a thread's own.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _middle(settings: StreamSettings) -> tuple[int, ...]:
    """Return where the final patch begins within the initial one."""
    return tuple(i // 2 - p // 2 for i, p in zip(settings.initial_patch_size, settings.patch_size, strict=True))


def _arrays(*tensors: Tensor | None) -> tuple[np.ndarray | None, ...]:
    return tuple(None if tensor is None else tensor.numpy() for tensor in tensors)
