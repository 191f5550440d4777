"""Batches made on a GPU beside the training step, not behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from autoseg.batches.batch import Batch


@dataclass(frozen=True)
class Made:
    """A batch that a GPU may still be at, and the event that tells when it is made; None: it is."""

    batch: Batch
    event: torch.cuda.Event | None = None


class SideStream:
    """A CUDA stream of its own for everything that makes batches; on other devices it changes nothing.

    In the default stream, where training steps queue, a batch would begin when these are done. All threads that make
    batches share one: a GPU gains nothing by several, each of which would keep memory of its own, and what one thread
    leaves on the device for the others is used in order.
    """

    def __init__(self, device: torch.device | str):
        self._device = torch.device(device)
        self._stream: torch.cuda.Stream | None = None
        if self._device.type == "cuda":
            if self._device.index is None:  # the current device is the thread's own
                self._device = torch.device("cuda", torch.cuda.current_device())
            self._stream = torch.cuda.Stream(self._device)
            self._stream.wait_stream(torch.cuda.current_stream(self._device))  # what lies there already is complete

    def make(self, function: Callable[[], Batch]) -> Made:
        """Return the batch of `function`, whose work on the device goes into the side stream; in any thread."""
        if self._stream is None:
            return Made(function())
        # A thread's first device is GPU 0: to go back to it, as the stream alone would, takes memory there.
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            batch = function()
            return Made(batch, self._stream.record_event())

    def hand_out(self, made: Made) -> Batch:
        """Return the batch for the stream of the calling thread, which waits for it on the device, not here."""
        if made.event is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(made.event)
            for tensor in _tensors(made.batch):
                if tensor.is_cuda:
                    tensor.record_stream(current)  # its memory is not given to the next batch before it is read
        return made.batch


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch, also those that a user's function has put into fields of its own."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (tensor for each in value.values() for tensor in _tensors(each))
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from (tensor for each in value for tensor in _tensors(each))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from (tensor for field in fields(value) for tensor in _tensors(getattr(value, field.name)))
