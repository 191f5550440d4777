"""Adapts a network's norms to the image that it is about to segment: less entropy of what it predicts.

Source: Bourigault et al. 2025, UKBOB, arXiv:2504.06908 (ETTA), after Wang et al. 2021, Tent, arXiv:2006.10726; written
from descriptions, nothing taken from the published script, which starts from fresh norms, drops their gradients and
never puts them back. Scales and shifts of the norms alone are trained, from their trained values, by plain gradient
descent on the mean entropy of all tiles of the image; then the image is segmented as usual and they are put back.

Deviations: of regions, which are no distribution over classes, the binary entropies are summed. Voxels that are covered
by several tiles count for each. A network that after a step predicts much more or less foreground than at the start is
taken back to before that step, and left there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from autoseg.devices import is_out_of_memory
from autoseg.errors import UserError
from autoseg.inference.tiles import Tile, make_tiles, padding
from autoseg.watching import watched

log = logging.getLogger(__name__)

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _BatchNorm, _InstanceNorm)
TINY = 1e-10  # keeps the logarithm of a probability finite
COLLAPSE = 3.0  # factor that the foreground may grow or shrink by
FLOOR = 1e-3  # share of foreground that counts as none
TILES_PER_CALL = 2  # a single small volume is slow on a CPU


@dataclass(frozen=True)
class Adaptation:
    """How a network is adapted to each image; `online` keeps what was learned for the next image."""

    steps: int = 3
    learning_rate: float = 0.01
    online: bool = False

    def __post_init__(self) -> None:
        if self.steps < 0 or self.learning_rate < 0:
            raise UserError(
                f"adaptation takes steps and a learning rate of 0 or more, got {self.steps} and {self.learning_rate}"
            )


def norm_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return scales and shifts of all norms by name; norms without them give nothing."""
    return {
        f"{name}.{part}" if name else part: parameter
        for name, module in network.named_modules()
        if isinstance(module, NORMS)
        for part, parameter in module.named_parameters(recurse=False)
    }


@contextmanager
def adapted(
    networks: Sequence[nn.Module],
    image: Tensor,
    patch_size: Sequence[int],
    adaptation: Adaptation,
    *,
    regions: bool = False,
    step_size: float = 0.5,
    device: str | torch.device = "cpu",
) -> Iterator[list[list[float]]]:
    """Adapt every network to a preprocessed image (C, Z, Y, X); put all back at the end, unless `online`.

    Gives per network the mean entropy (nats per voxel) before each step and after the last one. The networks are in
    evaluation mode on the device; they compute in float32.
    """
    with ExitStack() as stack:
        entropies = []
        for network in networks:
            if not adaptation.online:
                stack.enter_context(_put_back(network))
            entropies.append(_adapt(network, image, patch_size, adaptation, regions, step_size, torch.device(device)))
        yield entropies


def entropy(logits: Tensor, *, regions: bool = False) -> Tensor:
    """Return the entropy (B, *S) in nats of the probabilities of logits (B, K, *S), for regions summed over them."""
    logits = logits.float()
    if regions:
        p = logits.sigmoid()
        return -(p * (p + TINY).log() + (1 - p) * (1 - p + TINY).log()).sum(1)
    p = logits.softmax(1)
    return -(p * (p + TINY).log()).sum(1)


def _adapt(
    network: nn.Module,
    image: Tensor,
    patch_size: Sequence[int],
    adaptation: Adaptation,
    regions: bool,
    step_size: float,
    device: torch.device,
) -> list[float]:
    parameters = norm_parameters(network)
    if not adaptation.steps or not adaptation.learning_rate:
        return []
    if not parameters:
        log.warning("%s has no norms with scale and shift, so it is not adapted to the image", type(network).__name__)
        return []
    window = _Window(image, patch_size, step_size, device, regions)
    entropies, start, before = [], None, None
    with _only(network, parameters), _statistics_of_the_batch(network):
        for step in range(adaptation.steps + 1):
            learns = step < adaptation.steps
            value, foreground = window.run(network, learns=learns)
            entropies.append(value)
            start = foreground if start is None else start
            if before is not None and _ratio(foreground, start) > COLLAPSE:
                log.warning(
                    "adaptation stopped after step %d: the predicted foreground went from %.4f to %.4f of the image",
                    *(step, start, foreground),
                )
                _copy(before, parameters)
                break
            if learns:
                before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
                _descend(parameters, adaptation.learning_rate)
    return entropies


class _Window:
    """All tiles of one image, of whose predictions the entropy is computed."""

    def __init__(self, image: Tensor, patch_size: Sequence[int], step_size: float, device: torch.device, regions: bool):
        pads = padding(image.shape[1:], patch_size)
        amounts = [amount for pad in reversed(pads) for amount in pad]
        self.image = F.pad(image, amounts)
        self.inside = F.pad(torch.ones(image.shape[1:], dtype=torch.bool), amounts)
        self.tiles = make_tiles(self.image.shape[1:], patch_size, step_size)
        self.voxels = sum(int(self.inside[tile.index].sum()) for tile in self.tiles)
        self.patch_size, self.device, self.regions = tuple(patch_size), device, regions
        self.batch = TILES_PER_CALL

    def run(self, network: nn.Module, *, learns: bool) -> tuple[float, float]:
        """Return mean entropy and share of foreground; gradients are added up where `learns`."""
        while True:
            try:
                return self._run(network, learns=learns)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                network.zero_grad()
                if self.batch == 1:
                    raise UserError(
                        f"the device's memory is too small to adapt to one patch of {self.patch_size}",
                        mend="predict without adaptation, or use --device cpu",
                    ) from None
                self.batch = 1

    def _run(self, network: nn.Module, *, learns: bool) -> tuple[float, float]:
        total = foreground = 0.0
        for first in range(0, len(self.tiles), self.batch):
            tiles = self.tiles[first : first + self.batch]
            work = watched(f"adaptation, tile {first + 1} of {len(self.tiles)}", kind=f"adapting {self.patch_size}")
            with work, torch.set_grad_enabled(learns):
                logits = network(self._stack(self.image, tiles).to(self.device))
                inside = self._stack(self.inside[None], tiles)[:, 0].to(self.device)
                # Tiles weigh by their share of the voxels, so the sum over calls is the mean over the image.
                share = (entropy(logits, regions=self.regions) * inside).sum() / self.voxels
            if learns:
                share.backward()
            found = (logits > 0).any(1) if self.regions else logits.argmax(1) != 0
            total += float(share.detach())
            foreground += int((found & inside).sum()) / self.voxels
        return total, foreground

    def _stack(self, values: Tensor, tiles: Sequence[Tile]) -> Tensor:
        shape = (len(tiles), len(values), *self.patch_size)
        return torch.stack([values[(slice(None), *tile.index)] for tile in tiles]).reshape(shape)


def _ratio(a: float, b: float) -> float:
    return max((a + FLOOR) / (b + FLOOR), (b + FLOOR) / (a + FLOOR))


@torch.no_grad()
def _descend(parameters: dict[str, nn.Parameter], learning_rate: float) -> None:
    """Do one step of gradient descent and forget the gradients."""
    for parameter in parameters.values():
        if parameter.grad is not None:
            parameter.sub_(parameter.grad, alpha=learning_rate)
            parameter.grad = None


@torch.no_grad()
def _copy(values: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


@contextmanager
def _put_back(network: nn.Module) -> Iterator[None]:
    """Leave scales and shifts bit for bit as they were."""
    parameters = norm_parameters(network)
    values = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        yield
    finally:
        _copy(values, parameters)


@contextmanager
def _only(network: nn.Module, parameters: dict[str, nn.Parameter]) -> Iterator[None]:
    """Ask for gradients of these parameters alone, and for none afterwards that were not asked for before."""
    chosen = {id(parameter) for parameter in parameters.values()}
    asked = {parameter: parameter.requires_grad for parameter in network.parameters()}
    try:
        for parameter in asked:
            parameter.requires_grad_(id(parameter) in chosen)
        yield
    finally:
        for parameter, flag in asked.items():
            parameter.requires_grad_(flag)
            parameter.grad = None


@contextmanager
def _statistics_of_the_batch(network: nn.Module) -> Iterator[None]:
    """Let batch norms use the statistics of the tiles at hand, and keep the trained ones as they are."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and not module.training]
    kept = [(norm.track_running_stats, norm.running_mean, norm.running_var) for norm in norms]
    try:
        for norm in norms:
            norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
        yield
    finally:
        for norm, (tracks, mean, variance) in zip(norms, kept, strict=True):
            norm.track_running_stats, norm.running_mean, norm.running_var = tracks, mean, variance
