"""Sliding-window prediction of one preprocessed volume: tiles x mirrors x folds in batches, Gaussian-weighted mean.

Source: sliding-window prediction with mirroring, Isensee et al. 2021 (nnU-Net v2 rules). Logits are averaged over
mirrors, folds and tiles. Deviations: the Gaussian stays in separable factors (see `tiles`), the mean is kept in float32
where nnU-Net keeps float16, and need not be kept as a whole: `stream_windows` hands rows out as they are finished.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from autoseg.devices import choose_device, choose_precision
from autoseg.errors import UserError
from autoseg.inference.tile_pass import Activation, Network, NotFinite, Pass, Rows, Window

log = logging.getLogger(__name__)

T = TypeVar("T")
SHARE_FOR_SUMS = 0.25  # of a GPU's memory, for the sums of several windows
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Mean:
    """The mean over tiles, mirrors and folds: logits (K, Z, Y, X) and, when asked for, activated outputs likewise."""

    logits: Tensor
    probabilities: Tensor | None = None

    @property
    def given(self) -> tuple[Tensor, ...]:
        """Return what there is: logits, then activated outputs if they were asked for."""
        return (self.logits,) if self.probabilities is None else (self.logits, self.probabilities)


def sliding_window_logits(
    network: Network,
    image: Tensor,
    patch_size: Sequence[int],
    *,
    num_outputs: int,
    step_size: float = 0.5,
    mirror_axes: Sequence[int] = (),
    device: str | torch.device = "cpu",
    precision: str = "auto",
    tile_batch: int | None = None,
) -> Tensor:
    """Return the logits (K, Z, Y, X) of one network for an image (C, Z, Y, X); see `sliding_window`."""
    return sliding_window(
        [network], image, patch_size, num_outputs=num_outputs, step_size=step_size, mirror_axes=mirror_axes,
        device=device, precision=precision, tile_batch=tile_batch,
    ).logits  # fmt: skip


def sliding_window(
    networks: Sequence[Network],
    image: Tensor,
    patch_size: Sequence[int],
    *,
    num_outputs: int,
    step_size: float = 0.5,
    mirror_axes: Sequence[int] = (),
    device: str | torch.device = "cpu",
    precision: str = "auto",
    tile_batch: int | None = None,
    activation: Activation | None = None,
) -> Mean:
    """Return the mean over tiles, all mirror combinations and all `networks` for an image (C, Z, Y, X).

    Every network maps (B, C, *S) to logits (B, num_outputs, *S), S = `patch_size` of length 3, or 2: then every slice
    is segmented by itself. `mirror_axes` count the axes of the patch. `tile_batch` is the number of patches in one call
    (tiles x mirrors), None chooses by the device; it changes the speed, not the result. `activation` adds the mean of
    the activated outputs. When the GPU is full the batch is halved, then the sums move to the main memory, and work
    goes on from the same tile. What overflows in a reduced precision is computed again in float32, with a warning.

    Raises: UserError when a single patch does not fit or the output is not finite.
    """
    window = Window(
        networks, image, patch_size, num_outputs, step_size, mirror_axes, device, precision, tile_batch, activation
    )  # fmt: skip
    return stream_windows([window], lambda streams: Mean(*next(streams[0]).means))


def stream_windows(windows: Sequence[Window], consume: Callable[[list[Iterator[Rows]]], T]) -> T:
    """Return what `consume` makes of the rows of every window, in their order; several windows may take turns.

    Memory is that of the rows that tiles reach at a time, not of the volume. `consume` is called again, with all rows
    from the first one on, where an output is not finite in a reduced precision: this window then computes in float32.

    Raises: UserError as `sliding_window` does.
    """
    for window in windows:
        if not 0 < window.step_size <= 1:
            raise UserError(f"step_size must be above 0 and at most 1, got {window.step_size}")
    formats = [choose_precision(window.precision, choose_device(window.device)) for window in windows]
    while True:
        passes = [Pass(window, FORMATS[name]) for window, name in zip(windows, formats, strict=True)]
        _place_sums(passes)
        try:
            return consume([one.rows() for one in passes])
        except NotFinite as error:
            which = passes.index(error.source)
        if formats[which] == "fp32" or not bool(torch.isfinite(windows[which].image).all()):
            raise UserError(
                "the network's output is not finite",
                mend="look for NaN or huge values in the image, or train the model again",
            )
        log.warning("the network's output is not finite in %s: computed again in fp32", formats[which])
        formats[which] = "fp32"


def _place_sums(passes: Sequence[Pass]) -> None:
    """Keep the sums of several windows in main memory where together they would crowd the GPU.

    One that runs out of memory can move its own sums away, not those of the others, whose rows may be wanted.
    """
    if len(passes) == 1 or passes[0].device.type != "cuda":
        return
    needed = sum(one.layout().bytes for one in passes)
    if needed > SHARE_FOR_SUMS * torch.cuda.get_device_properties(passes[0].device).total_memory:
        for one in passes:
            one.sums_device = torch.device("cpu")
