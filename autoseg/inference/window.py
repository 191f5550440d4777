"""Sliding-window prediction of one preprocessed volume: tiles x mirrors x folds in batches, Gaussian-weighted mean.

Source: sliding-window prediction with mirroring, Isensee et al. 2021 (nnU-Net v2 rules). Logits are averaged over
mirrors, folds and tiles. Deviations: the Gaussian stays in separable factors (see `tiles`), the mean is kept in float32
where nnU-Net keeps float16, and it need not be kept as a whole: `stream_window` hands rows out as they are finished.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from autoseg.devices import choose_device, choose_precision
from autoseg.errors import UserError
from autoseg.inference.tile_pass import Activation, Network, NotFinite, Pass, Rows

log = logging.getLogger(__name__)

T = TypeVar("T")
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Mean:
    """The mean over tiles, mirrors and folds: logits (K, Z, Y, X) and, when asked for, activated outputs likewise."""

    logits: Tensor
    probabilities: Tensor | None = None


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
    return _computed(
        lambda parts: Mean(*next(parts).means), image, step_size, device, precision, None,
        networks=networks, patch_size=patch_size, mirror_axes=mirror_axes, num_outputs=num_outputs,
        activation=activation, tile_batch=tile_batch,
    )  # fmt: skip


def stream_window(
    networks: Sequence[Network],
    image: Tensor,
    patch_size: Sequence[int],
    consume: Callable[[Iterator[Rows]], T],
    *,
    along: int,
    num_outputs: int,
    step_size: float = 0.5,
    mirror_axes: Sequence[int] = (),
    device: str | torch.device = "cpu",
    precision: str = "auto",
    tile_batch: int | None = None,
) -> T:
    """Do as `sliding_window`, and return what `consume` makes of the rows along an axis of (Z, Y, X), in their order.

    Memory is that of the rows that tiles reach at a time, not of the volume. `consume` is called again, from the first
    row on, where the output is not finite in a reduced precision.
    """
    return _computed(
        consume, image, step_size, device, precision, along,
        networks=networks, patch_size=patch_size, mirror_axes=mirror_axes, num_outputs=num_outputs,
        activation=None, tile_batch=tile_batch,
    )  # fmt: skip


def _computed(
    consume: Callable[[Iterator[Rows]], T],
    image: Tensor,
    step_size: float,
    device: str | torch.device,
    precision: str,
    along: int | None,
    **fields: Any,
) -> T:
    if not 0 < step_size <= 1:
        raise UserError(f"step_size must be above 0 and at most 1, got {step_size}")
    chosen = choose_device(device)
    reduced = choose_precision(precision, chosen)
    for name in dict.fromkeys((reduced, "fp32")):
        try:
            return consume(Pass(device=chosen, dtype=FORMATS[name], **fields).rows(image, step_size, along))
        except NotFinite:
            if not bool(torch.isfinite(image).all()):
                break
            if name != "fp32":
                log.warning("the network's output is not finite in %s: computed again in fp32", name)
    raise UserError(
        "the network's output is not finite", mend="look for NaN or huge values in the image, or train the model again"
    )
