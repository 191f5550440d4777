"""Losses that are no numbers, and networks that see nothing: told with a diagnosis instead of trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autoseg.errors import AutosegError


class TrainingFailed(AutosegError):
    """Training cannot go on; the message says why and what to change."""


class LossMeter:
    """Sums losses on the device; reading it is the only moment that waits for the device."""

    def __init__(self, device: torch.device):
        self._sum = torch.zeros((), device=device)
        self._count = 0

    def add(self, loss: torch.Tensor) -> None:
        """Add the loss of one optimiser step."""
        self._sum += loss.detach().float()
        self._count += 1

    def read(self) -> float | None:
        """Return the mean since the last reading, None if there was no step."""
        if self._count == 0:
            return None
        mean = self._sum.item() / self._count
        self._sum.zero_()
        self._count = 0
        return mean


def check_finite(loss: float | None, step: int, learning_rate: float, precision: str) -> None:
    """Raise TrainingFailed when the mean loss is no finite number."""
    if loss is not None and not torch.isfinite(torch.tensor(loss)):
        raise TrainingFailed(
            f"the loss became {loss} before step {step} (learning rate {learning_rate:.2g}, precision {precision}).\n"
            "To mend it: lower --set learning_rate, try --set precision=fp32, and run `autoseg check` for voxels that "
            "are not finite. The last good checkpoint was kept."
        )


def check_not_blind(blind_validations: int, progress: float) -> None:
    """Raise TrainingFailed when late validations, one after the other, predicted no foreground."""
    if blind_validations >= 3 and progress >= 0.6:
        raise TrainingFailed(
            f"the last {blind_validations} validations found no foreground at {progress:.0%} of the run: nothing but "
            "background was predicted, or output that is not finite.\n"
            "To mend it: more steps or time, --set foreground_fraction=0.66, --set optimizer=adamw "
            "--set learning_rate=0.001; for output that is not finite, a lower --set learning_rate and --restart; or "
            "--set stop_on_collapse=false to go on regardless."
        )


def memory_is_full(step: int, batch_size: int, patch_size: Sequence[int], planning: str) -> TrainingFailed:
    """Return what is said when the device's memory did not suffice for a step; `planning`: the command for less."""
    patch = " x ".join(map(str, patch_size))
    return TrainingFailed(
        f"the device's memory was full at step {step}, with batches of {batch_size} patches of {patch} voxels.\n"
        "To mend it: close other programs that use the device, or plan for less: "
        f"{planning}. The last checkpoint was kept, and the same command goes on from there."
    )
