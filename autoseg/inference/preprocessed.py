"""Prediction of one preprocessed case by the folds of one configuration, with or without a previous stage."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from autoseg.errors import UserError
from autoseg.inference.adaptation import Adaptation, adapted
from autoseg.inference.export import label_map_of_rows
from autoseg.inference.resampling import Resampled
from autoseg.inference.tile_pass import Activation, Rows
from autoseg.inference.window import Mean, sliding_window, stream_window
from autoseg.labels import Labels
from autoseg.plans import Configuration, Plans
from autoseg.preprocessing.resample_labels import resample_labels

if TYPE_CHECKING:
    from autoseg.store.records import CaseProperties

T = TypeVar("T")

log = logging.getLogger(__name__)


def predict_preprocessed(
    networks: Sequence[nn.Module],
    image: Tensor,
    configuration: Configuration,
    *,
    mirror_axes: Sequence[int] = (),
    device: str | torch.device = "cpu",
    step_size: float = 0.5,
    precision: str = "auto",
    previous_label: np.ndarray | Tensor | None = None,
) -> Tensor:
    """Return logits (K, Z, Y, X) for a preprocessed image (C, Z, Y, X), averaged over the folds' `networks`.

    `previous_label` (Z, Y, X) is the previous stage's label map, internal values, on the same grid; it enters as one
    channel per foreground value. The networks must be on the device; training mode is restored afterwards.
    """
    return predict_mean(
        networks, image, configuration, mirror_axes=mirror_axes, device=device, step_size=step_size,
        precision=precision, previous_label=previous_label,
    ).logits  # fmt: skip


def predict_mean(
    networks: Sequence[nn.Module],
    image: Tensor,
    configuration: Configuration,
    *,
    mirror_axes: Sequence[int] = (),
    device: str | torch.device = "cpu",
    step_size: float = 0.5,
    precision: str = "auto",
    previous_label: np.ndarray | Tensor | None = None,
    activation: Activation | None = None,
    adaptation: Adaptation | None = None,
    regions: bool = False,
) -> Mean:
    """Do as `predict_preprocessed`, and with `activation` return the mean of the activated outputs, too.

    With `adaptation` the networks are first adapted to the image; `regions` tells that outputs are not exclusive.
    """
    image = _with_previous_stage(torch.as_tensor(image), previous_label, configuration)
    with _made_ready(networks, image, configuration, adaptation, regions, step_size, device):
        return sliding_window(
            networks, image, configuration.patch_size, num_outputs=configuration.network.num_outputs,
            step_size=step_size, mirror_axes=mirror_axes, device=device, precision=precision, activation=activation,
        )  # fmt: skip


def predict_rows(
    networks: Sequence[nn.Module],
    image: Tensor,
    configuration: Configuration,
    consume: Callable[[Iterator[Rows]], T],
    *,
    along: int = 0,
    mirror_axes: Sequence[int] = (),
    device: str | torch.device = "cpu",
    step_size: float = 0.5,
    precision: str = "auto",
    previous_label: np.ndarray | Tensor | None = None,
    adaptation: Adaptation | None = None,
    regions: bool = False,
) -> T:
    """Do as `predict_mean`, and return what `consume` makes of the logits, row by row; see `stream_window`."""
    image = _with_previous_stage(torch.as_tensor(image), previous_label, configuration)
    with _made_ready(networks, image, configuration, adaptation, regions, step_size, device):
        return stream_window(
            networks, image, configuration.patch_size, consume, along=along,
            num_outputs=configuration.network.num_outputs, step_size=step_size, mirror_axes=mirror_axes, device=device,
            precision=precision,
        )  # fmt: skip


def predict_label_map(
    networks: Sequence[nn.Module],
    image: Tensor,
    plans: Plans,
    configuration: Configuration,
    properties: CaseProperties,
    labels: Labels,
    **fields: Any,
) -> np.ndarray:
    """Return the internal label map (Z, Y, X) int16 on the original grid; `fields` are those of `predict_rows`.

    Logits are decided as soon as they are finished, so that those of the whole volume are never in memory.
    """

    def decide(parts: Iterator[Rows]) -> np.ndarray:
        resampled = (
            Resampled(part.means[0], properties, plans, configuration, first=part.first) for part in parts
        )  # fmt: skip
        return label_map_of_rows(resampled, labels)

    return predict_rows(
        networks, image, configuration, decide, along=plans.transpose_backward[0], regions=labels.regions, **fields
    )


def _with_previous_stage(
    image: Tensor, previous_label: np.ndarray | Tensor | None, configuration: Configuration
) -> Tensor:
    if previous_label is not None:
        channels = one_hot_foreground(previous_label, configuration.network.in_channels - len(image))
        image = torch.cat([image, channels])
    if len(image) != configuration.network.in_channels:
        raise UserError(f"{configuration.name!r} takes {configuration.network.in_channels} channels, got {len(image)}")
    return image


@contextmanager
def _made_ready(
    networks: Sequence[nn.Module],
    image: Tensor,
    configuration: Configuration,
    adaptation: Adaptation | None,
    regions: bool,
    step_size: float,
    device: str | torch.device,
) -> Iterator[None]:
    """Put the networks into evaluation mode and adapt them to the image, if this is wanted, as long as this lasts."""
    with evaluating(networks), ExitStack() as stack:
        if adaptation is not None:
            entropies = stack.enter_context(
                adapted(
                    networks, image, configuration.patch_size, adaptation, regions=regions, step_size=step_size,
                    device=device,
                )
            )  # fmt: skip
            log.debug("entropy while adapting, per network: %s", entropies)
        yield


def one_hot_foreground(label: np.ndarray | Tensor, count: int) -> Tensor:
    """Return channels (count, Z, Y, X) float32, one per foreground internal value 1..count."""
    label = torch.as_tensor(label)
    return torch.stack([(label == value).float() for value in range(1, count + 1)])


def previous_stage_label(
    label: np.ndarray, properties: CaseProperties, plans: Plans, configuration: Configuration
) -> np.ndarray:
    """Return a label map (Z, Y, X) of the original grid on the preprocessed grid of `configuration`, int16.

    Transposed, cropped and resampled as labels are in preprocessing (order 1).
    """
    box = tuple(slice(int(low), int(high)) for low, high in properties.crop_box)
    transposed = np.ascontiguousarray(label.transpose(plans.transpose_forward)[box])
    spacing = tuple(properties.spacing)
    target = (*spacing[: 3 - configuration.dims], *configuration.spacing)
    return resample_labels(transposed, properties.shape_resampled, current_spacing=spacing, new_spacing=target)


@contextmanager
def evaluating(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Put networks into evaluation mode and back."""
    modes = [network.training for network in networks]
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)
