"""Modules and optimisers on their device, in their precision, over one or more processes: Lightning Fabric."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from autoseg.architecture import Architecture
from autoseg.devices import lay_out_for_cpu, prepare_to_compute
from autoseg.training.checkpoint import unwrapped
from autoseg.training.small_maps import guard_small_maps
from autoseg.training.trainer import Trainer

if TYPE_CHECKING:
    import lightning_fabric

logger = logging.getLogger("autoseg.training")
_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def make_fabric(device: torch.device, precision: str, processes: int) -> lightning_fabric.Fabric:
    """Return Fabric for one device, or for `processes` of its kind with distributed data parallel training."""
    import lightning_fabric  # it loads torch's compiler, a second that what is refused need not wait for
    from lightning_fabric.strategies import DDPStrategy

    devices: Any = processes
    if device.type == "cuda" and processes == 1:
        devices = [device.index or 0]
    strategy: Any = "auto"
    if processes > 1:
        # The lowest deep-supervision head may be without gradient, so unused parameters are looked for.
        strategy = DDPStrategy(
            process_group_backend="nccl" if device.type == "cuda" else "gloo",
            start_method="spawn",
            find_unused_parameters=True,
        )
    return lightning_fabric.Fabric(
        accelerator=device.type, devices=devices, strategy=strategy, precision=_PRECISIONS[precision]
    )


def set_up(
    trainer: Trainer, fabric: lightning_fabric.Fabric
) -> tuple[dict[str, nn.Module], dict[str, torch.optim.Optimizer]]:
    """Build and wrap everything that the trainer trains, in the process that does; returns modules and optimisers."""
    prepare_to_compute(fabric.device, processes=trainer.context.processes)
    modules = trainer.prepare()
    optimizers = trainer.build_optimizers(modules)
    for name, module in modules.items():
        modules[name] = _set_up_module(module, trainer, fabric)
    # The optimisers refer to the parameters themselves, which keep their identity when a module is moved.
    wrapped = {name: fabric.setup_optimizers(optimizer) for name, optimizer in optimizers.items()}
    trainer.modules = modules
    return modules, wrapped


def _set_up_module(module: nn.Module, trainer: Trainer, fabric: lightning_fabric.Fabric) -> nn.Module:
    if fabric.device.type == "cpu":
        # Faster there; on CUDA instance norm loses more than convolutions win.
        lay_out_for_cpu(module, trainer.context.configuration.dims)
        if fabric._precision.precision == _PRECISIONS["bf16"]:
            guard_small_maps(module)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        return module.to(fabric.device)
    module.to(fabric.device)
    if trainer.context.processes > 1:
        keep_gradient_strides(module)
    compiled = _compiled(module, trainer, fabric)
    wrapped = fabric.setup_module(compiled)
    if isinstance(module, Architecture):
        for method in ("encode", "decode"):
            wrapped.mark_forward_method(method)
    return wrapped


def keep_gradient_strides(module: nn.Module) -> None:
    """Give each gradient exactly the strides of its parameter, also along axes of length 1, where none is needed.

    A 1x1 convolution's gradient has those of its input's layout, a slice's those of the whole; distributed training
    compares them with the parameter's and warns. Nothing is copied.
    """
    for parameter in module.parameters():
        if parameter.requires_grad and 1 in parameter.shape:
            parameter.register_hook(functools.partial(_with_strides, parameter.stride()))


def _with_strides(strides: tuple[int, ...], gradient: torch.Tensor | None) -> torch.Tensor | None:
    """Return the gradient with `strides` where only the axes of length 1 differ.

    None comes for a parameter whose outputs the loss did not read, such as a head of a lower resolution.
    """
    if gradient is None:
        return None
    found = zip(gradient.shape, gradient.stride(), strides, strict=True)
    if gradient.stride() == strides or any(size > 1 and own != wanted for size, own, wanted in found):
        return gradient  # what differs elsewhere, too, is copied to the parameter's layout by autograd
    return gradient.as_strided(gradient.shape, strides)


def _compiled(module: nn.Module, trainer: Trainer, fabric: lightning_fabric.Fabric) -> nn.Module:
    """Try torch.compile on a batch as training has them; on failure say so once and go on without."""
    wanted = trainer.compile == "on" or (trainer.compile == "auto" and fabric.device.type == "cuda")
    if not wanted or not isinstance(module, Architecture):
        return module
    spec = module.spec
    try:
        batch_size = trainer._share(trainer.stream_settings().batch_size)
        compiled = torch.compile(module, dynamic=False)  # batches all have one shape
        with _without_traces(module, fabric.device):
            sample = torch.zeros(batch_size, spec.in_channels, *spec.patch_size, device=fabric.device)
            with fabric.autocast():
                outputs = compiled(fabric._precision.convert_input(sample))  # as Fabric's wrapper hands it on
            _go_backward(outputs if isinstance(outputs, (list, tuple)) else [outputs], module)
    except Exception as error:  # whatever the compiler stumbles over, training can go on without it
        logger.warning("torch.compile failed (%s: %.120s); going on without it", type(error).__name__, error)
        return module
    return compiled


def _go_backward(outputs: Sequence[torch.Tensor], module: nn.Module) -> None:
    """Compute the gradients of all parameters, and keep none."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    torch.autograd.grad(sum(output.float().sum() for output in outputs), trained, allow_unused=True)


@contextmanager
def _without_traces(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Give buffers, such as the statistics of batch norms, and torch's random numbers back as they were."""
    kept = [(part, name, buffer, buffer.clone()) for part in module.modules() for name, buffer in part._buffers.items()
            if buffer is not None]  # fmt: skip
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for part, name, buffer, values in kept:
                part._buffers[name] = buffer if torch.equal(buffer, values) else buffer.copy_(values)


def parameter_count(module: nn.Module) -> int:
    """Return the number of parameters of the unwrapped module."""
    return sum(parameter.numel() for parameter in unwrapped(module).parameters())
