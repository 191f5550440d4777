"""Operations of a training step of any architecture at a plan, counted on fake tensors: nothing is computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from autoseg.planning.memory import with_fake_tensors
from autoseg.plans import NetworkSpec
from autoseg.training.bare_step import training_loss
from autoseg.training.operations import operation_counter


def trace_operations(architecture: type[nn.Module], spec: NetworkSpec, batch_size: int) -> int | None:
    """Return the operations of one training step on `batch_size` patches, a multiply-add as two.

    None where the network does not run on fake tensors. A trainer that asks the network more than once per step, or a
    frozen part that needs no gradient, makes the real step another one.
    """
    return _trace_once(architecture, spec.model_dump_json(), batch_size)


@lru_cache(maxsize=512)
def _trace_once(architecture: type[nn.Module], spec_json: str, batch_size: int) -> int | None:
    spec = NetworkSpec.model_validate_json(spec_json)
    build = partial(architecture, spec)
    try:
        try:
            return _count(build, spec, batch_size)
        except DataDependentOutputException:  # building it reads values, see `trace_training`
            return _count(partial(with_fake_tensors, build()), spec, batch_size)
    except Exception:  # whatever a network stumbles over, an estimate does without
        return None


def _count(build: Callable[[], nn.Module], spec: NetworkSpec, batch_size: int) -> int:
    with FakeTensorMode():
        network = build().train()
        image = torch.empty(batch_size, spec.in_channels, *spec.patch_size)
        target = torch.empty(batch_size, *spec.patch_size, dtype=torch.int64)
        with operation_counter() as counter:
            training_loss(network(image), target).backward()
    return counter.get_total_flops()
