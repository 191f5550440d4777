"""nnU-Net's loss, sliding window and resampling as its formulas, for machines that have no nnunetv2.

Source: Isensee et al. 2021 and nnunetv2 2.8.1 (Apache-2.0), read and written down anew: what is computed, in which
order and number format, is nnunetv2's, so that its time is near its time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

SMOOTH = 1e-5


def as_nnunet_sets_torch(device: torch.device) -> None:
    """Set what nnU-Net's commands set on a GPU: cuDNN times its kernels, torch takes one thread."""
    torch.backends.cudnn.benchmark = True
    if device.type == "cuda":
        torch.set_num_threads(1)


class Dice(nn.Module):
    """Minus the mean soft Dice of the foreground over samples and classes."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss: logits (B, K, *S), target (B, 1, *S)."""
        axes = tuple(range(2, logits.ndim))
        probabilities = logits.softmax(1)[:, 1:]
        with torch.no_grad():
            one_hot = torch.zeros(logits.shape, dtype=torch.float32, device=logits.device)
            one_hot = one_hot.scatter_(1, target.long(), 1)[:, 1:]
            references = one_hot.sum(axes, dtype=torch.float32)
        overlap = (probabilities * one_hot).sum(axes, dtype=torch.float32)
        found = probabilities.sum(axes, dtype=torch.float32)
        return -((2 * overlap + SMOOTH) / (references + found + SMOOTH).clamp_min(1e-8)).mean()


class Loss(nn.Module):
    """Cross-entropy plus Dice over the outputs, weights halving from each to the next; the last one counts nothing."""

    def __init__(self, outputs: int, *, compiled: bool):
        super().__init__()
        weights = [0.5**level for level in range(outputs - 1)]
        self.weights = [weight / sum(weights) for weight in weights]
        self.cross_entropy = nn.CrossEntropyLoss()
        dice = Dice()
        self.dice = torch.compile(dice) if compiled else dice  # as nnU-Net compiles `loss.dc`

    def forward(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Return the loss: logits (B, K, *S) and targets (B, 1, *S) of every output."""
        total: Any = 0
        for weight, logits, target in zip(self.weights, outputs, targets, strict=False):
            cross_entropy = self.cross_entropy(logits, target[:, 0].long())
            total = total + weight * (cross_entropy + self.dice(logits, target))
        return total


class TrainingStep:
    """The order of nnU-Net's training step: fp16, a gradient scaler, clipping, SGD; the loss is read each time."""

    def __init__(self, network: nn.Module, outputs: int, device: torch.device):
        self.compiles = device.type == "cuda"
        self._device = device
        self._parameters = list(network.parameters())
        self._network = torch.compile(network) if self.compiles else network
        self._optimizer = torch.optim.SGD(self._parameters, 0.01, momentum=0.99, weight_decay=3e-5, nesterov=True)
        self._loss = Loss(outputs, compiled=self.compiles)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.compiles)

    def __call__(self, batch: dict[str, Any]) -> float:
        """Make a step on a batch: "data" (B, C, *S), "target" a list of (B, 1, *S); returns the loss."""
        data = batch["data"].to(self._device, non_blocking=True)
        targets = [target.to(self._device, non_blocking=True) for target in batch["target"]]
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self._device.type, torch.float16, enabled=self.compiles):
            loss = self._loss(self._network(data), targets)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self._parameters, 12)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return float(loss.detach().cpu())


@torch.inference_mode()
def sliding_window(network: Callable[[Tensor], Tensor], image: Tensor, patch: Sequence[int], classes: int) -> Tensor:
    """Return the logits (K, Z, Y, X) in half precision: tiles one by one, mirrored along all axes, Gaussian weights.

    The network and the image (C, Z, Y, X), no smaller than the patch, lie on the device of the result.
    """
    device = image.device
    logits = torch.zeros((classes, *image.shape[1:]), dtype=torch.half, device=device)
    weights = torch.zeros(image.shape[1:], dtype=torch.half, device=device)
    gaussian = _gaussian(patch, device)
    starts = [_starts(size, edge) for size, edge in zip(image.shape[1:], patch, strict=True)]
    mirrors = [axes for count in range(1, 4) for axes in itertools.combinations((2, 3, 4), count)]
    with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
        for corner in itertools.product(*starts):
            place = tuple(slice(start, start + edge) for start, edge in zip(corner, patch, strict=True))
            tile = image[(slice(None), *place)][None].contiguous()
            predicted = network(tile)
            for axes in mirrors:
                predicted += network(tile.flip(axes)).flip(axes)
            predicted /= len(mirrors) + 1
            logits[(slice(None), *place)] += predicted[0] * gaussian
            weights[place] += gaussian
    return logits.div_(weights)


def _starts(size: int, edge: int) -> list[int]:
    """Return where tiles begin along an axis: at most half an edge apart, evenly."""
    count = -(-2 * (size - edge) // edge) + 1
    return [round((size - edge) * place / max(1, count - 1)) for place in range(count)]


def _gaussian(patch: Sequence[int], device: torch.device) -> Tensor:
    """Return the weights of a tile, 10 in its middle, deviation an eighth of its edges."""
    import numpy as np
    from scipy import ndimage

    weights = np.zeros(tuple(patch))
    weights[tuple(edge // 2 for edge in patch)] = 1
    weights = ndimage.gaussian_filter(weights, [edge / 8 for edge in patch], mode="constant")
    half = torch.from_numpy(weights * (10 / weights.max())).to(device, torch.half)
    return half.clamp_min(half[half > 0].min())


def resample(logits: Any, shape: Sequence[int]) -> Any:
    """Return logits (K, Z, Y, X), an array, on another grid: linear, in double precision, class by class."""
    import numpy as np
    from skimage.transform import resize

    result = np.zeros((len(logits), *shape), dtype=logits.dtype)
    for place, values in enumerate(logits.astype(float)):
        result[place] = resize(values, tuple(shape), 1, mode="edge", anti_aliasing=False)
    return result
