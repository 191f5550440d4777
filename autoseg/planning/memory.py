"""Peak memory of one training step of any architecture, found by tracing it on fake tensors: no GPU, no allocation.

The step (forward under autocast, deep-supervision loss, backward, optimiser) runs under torch's FakeTensorMode, which
computes shapes only; a dispatch mode adds up the storages that are alive. What a real device needs on top (context,
cuDNN work space, fragmentation of the caching allocator) is a constant, see `Memory.device_bytes`.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autoseg.errors import AutosegError
from autoseg.plans import NetworkSpec
from autoseg.training.bare_step import DTYPES, make_optimizer, training_loss

CONTEXT_BYTES = 2 * 2**30  # CUDA context, cuDNN work space, fragmentation


class Untraceable(AutosegError):
    """The architecture cannot run on fake tensors, for instance because it branches on values."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one training step: `static` lives between steps (weights, optimiser state), `peak` is the maximum."""

    static: int
    peak: int

    @property
    def device_bytes(self) -> float:
        """Return what the device needs: the peak and `CONTEXT_BYTES`.

        Fitted to the published memory of nnU-Net's four U-Nets on an A100 (7.7, 9.1, 22.7, 36.6 GB; nnU-Net Revisited,
        arXiv:2404.09556): over plans for five data sets the mean estimates are 7.6, 9.8, 23.9, 38.8 GB.
        """
        return self.peak + CONTEXT_BYTES


def trace_training(
    architecture: type[nn.Module],
    spec: NetworkSpec,
    batch_size: int,
    *,
    precision: str = "bf16",
    optimizer: str = "sgd",
) -> Memory:
    """Return the memory of one training step of `architecture(spec)` on `batch_size` patches of `spec.patch_size`.

    Remembered, since a search asks again and planners ask the same. Raises Untraceable if the architecture does not
    run on fake tensors.
    """
    return _trace_once(architecture, spec.model_dump_json(), batch_size, precision, optimizer)


@lru_cache(maxsize=512)
def _trace_once(
    architecture: type[nn.Module], spec_json: str, batch_size: int, precision: str, optimizer: str
) -> Memory:
    spec = NetworkSpec.model_validate_json(spec_json)
    build = partial(architecture, spec)
    try:
        try:
            return _trace(build, spec, batch_size, precision, optimizer)
        except DataDependentOutputException:
            # Building some libraries' networks reads values, which fake tensors do not have: build a real one once.
            return _trace(partial(with_fake_tensors, build()), spec, batch_size, precision, optimizer)
    except Exception as error:
        raise Untraceable(
            f"{architecture.__name__} at patch {spec.patch_size}: {type(error).__name__}: {error}"
        ) from error


def _trace(
    build: Callable[[], nn.Module], spec: NetworkSpec, batch_size: int, precision: str, optimizer: str
) -> Memory:
    ledger = _Ledger()
    with FakeTensorMode(), ledger:
        network = build().train()
        parameters = list(network.parameters())
        updater = make_optimizer(optimizer, parameters)
        weights = ledger.alive
        _forward_and_backward(network, spec, batch_size, DTYPES[precision])
        peak = ledger.peak
        updater.step()
        updater.zero_grad(set_to_none=True)
        static = ledger.alive
    # The optimiser's state comes into being in the first step; from the second on it lies beside the activations.
    return Memory(static, max(peak + static - weights, ledger.peak))


def with_fake_tensors(network: nn.Module) -> nn.Module:
    """Replace all parameters and buffers by tensors of the current mode, of the same shapes."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(fake, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return network


def _forward_and_backward(network: nn.Module, spec: NetworkSpec, batch_size: int, dtype: torch.dtype) -> None:
    image = torch.empty(batch_size, spec.in_channels, *spec.patch_size)
    target = torch.empty(batch_size, *spec.patch_size, dtype=torch.int64)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = network(image)
    loss = training_loss(logits, target)
    del logits
    loss.backward()


class _Ledger(TorchDispatchMode):
    """Adds up the bytes of the storages that are alive; `peak` is their maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):  # most are; half of the rest are devices
            self._enter(result.untyped_storage())
        elif isinstance(result, (tuple, list)):
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    self._enter(leaf.untyped_storage())
        return result

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.alive += self._known[key]
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._leave, key).atexit = False

    def _leave(self, key: int) -> None:
        self.alive -= self._known.pop(key)


def parameter_count(architecture: type[nn.Module], spec: NetworkSpec) -> int:
    """Return the number of parameters, without allocating them where the network can be built so."""
    try:
        with FakeTensorMode():
            network = architecture(spec)
    except DataDependentOutputException:
        network = architecture(spec)
    return sum(math.prod(parameter.shape) for parameter in network.parameters())
