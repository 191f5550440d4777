"""Prediction of one preprocessed case by the folds of one configuration, with or without a previous stage."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from autoseg.errors import UserError
from autoseg.inference.adaptation import Adaptation, adapted
from autoseg.inference.export import Outputs, export_rows
from autoseg.inference.resampling import Resampled
from autoseg.inference.tile_pass import Activation, Rows
from autoseg.inference.window import Mean, Window, stream_windows
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
        Request(networks, image, configuration, mirror_axes, device, step_size, precision, previous_label)
    ).logits  # fmt: skip


@dataclass(frozen=True, eq=False)
class Request:
    """What is to be predicted of a preprocessed image (C, Z, Y, X) by the folds' `networks`; see `Window`.

    `previous_label` as in `predict_preprocessed`. With `adaptation` the networks are first adapted to the image;
    `regions` tells that outputs are not exclusive. With `activated` the mean of the activated outputs comes, too.
    """

    networks: Sequence[nn.Module]
    image: Tensor
    configuration: Configuration
    mirror_axes: Sequence[int] = ()
    device: str | torch.device = "cpu"
    step_size: float = 0.5
    precision: str = "auto"
    previous_label: np.ndarray | Tensor | None = None
    adaptation: Adaptation | None = None
    regions: bool = False
    activated: bool = False

    @contextmanager
    def window(self, along: int | None) -> Iterator[Window]:
        """Return the sliding window; networks are in evaluation mode, and adapted if this is wanted, meanwhile."""
        image = _with_previous_stage(torch.as_tensor(self.image), self.previous_label, self.configuration)
        patch, outputs = self.configuration.patch_size, self.configuration.network.num_outputs
        activation: Activation = "sigmoid" if self.regions else "softmax"
        with evaluating(self.networks), ExitStack() as stack:
            if self.adaptation is not None:
                entropies = stack.enter_context(
                    adapted(
                        self.networks, image, patch, self.adaptation, regions=self.regions, step_size=self.step_size,
                        device=self.device,
                    )
                )  # fmt: skip
                log.debug("entropy while adapting, per network: %s", entropies)
            yield Window(
                self.networks, image, patch, outputs, self.step_size, self.mirror_axes, self.device, self.precision,
                activation=activation if self.activated else None, along=along,
            )  # fmt: skip


def predict_mean(request: Request) -> Mean:
    """Return the mean logits, and activated outputs if they are wanted, of the whole image."""
    with request.window(None) as window:
        return stream_windows([window], lambda streams: Mean(*next(streams[0]).means))


def predict_rows(request: Request, consume: Callable[[Iterator[Rows]], T], *, along: int = 0) -> T:
    """Return what `consume` makes of the rows of the mean along an axis of (Z, Y, X); see `stream_windows`."""
    with request.window(along) as window:
        return stream_windows([window], lambda streams: consume(streams[0]))


def predict_label_map(request: Request, plans: Plans, properties: CaseProperties, labels: Labels) -> np.ndarray:
    """Return the internal label map (Z, Y, X) int16 on the original grid.

    Logits are decided as soon as they are finished, so that those of the whole volume are never in memory.
    """
    place = properties, plans, request.configuration
    return predict_rows(
        request, lambda parts: export_rows([outputs_of(parts, *place)], labels).label, along=plans.transpose_backward[0]
    )


def outputs_of(
    parts: Iterator[Rows], properties: CaseProperties, plans: Plans, configuration: Configuration
) -> Iterator[Outputs]:
    """Yield rows along the image's first axis as the export takes them."""
    for part in parts:
        yield Outputs(*(Resampled(mean, properties, plans, configuration, first=part.first) for mean in part.means))


def _with_previous_stage(
    image: Tensor, previous_label: np.ndarray | Tensor | None, configuration: Configuration
) -> Tensor:
    if previous_label is not None:
        channels = one_hot_foreground(previous_label, configuration.network.in_channels - len(image))
        image = torch.cat([image, channels])
    if len(image) != configuration.network.in_channels:
        raise UserError(f"{configuration.name!r} takes {configuration.network.in_channels} channels, got {len(image)}")
    return image


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
