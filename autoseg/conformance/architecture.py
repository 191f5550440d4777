"""The contract of an architecture: built from any spec, split into encode and decode, trainable, saveable."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import torch

from autoseg.architecture import Architecture
from autoseg.conformance.findings import Finding, attempt, require
from autoseg.devices import prepare_to_compute
from autoseg.network_sizing import NetworkSizing
from autoseg.plans import NetworkSpec
from autoseg.plugins import Found, named_sizing

STAGES = 3
ISOTROPIC = ((1, 1, 1), (2, 2, 2), (2, 2, 2))
ANISOTROPIC = ((1, 1, 1), (1, 2, 2), (2, 2, 2))


def check(found: Found, architecture: type[Architecture]) -> Iterator[Finding]:
    """Yield one finding per check and dimension."""
    plugin = f"architecture {found.name}"
    prepare_to_compute(torch.device("cpu"))
    yield attempt(plugin, "is a network class", lambda: _is_class(architecture))
    if found.sizing:
        yield attempt(plugin, "is sized by its base class", lambda: _is_sized(found, architecture))
    for dims in getattr(architecture, "dims", ()):
        build = cache(partial(_build, architecture, dims))
        checks = {
            "isotropic logits": lambda build=build: _logits(build(ISOTROPIC)),
            "anisotropic logits, odd channels": lambda build=build: _logits(build(ANISOTROPIC, 3, 5)),
            "deep supervision": lambda build=build: _deep_supervision(build(ISOTROPIC)),
            "without deep supervision": lambda build=build: _single_output(build(ISOTROPIC, deep_supervision=False)),
            "finite gradients": lambda build=build: _gradients(build(ANISOTROPIC, 3, 5)),
            "learns": lambda build=build: _learns(build(ISOTROPIC)),
            "bfloat16 autocast": lambda build=build: _autocast(build(ISOTROPIC)),
            "eval is deterministic": lambda build=build: _deterministic(build(ISOTROPIC)),
            "samples do not mix": lambda build=build: _independent(build(ISOTROPIC)),
            "encode, decode": lambda build=build: _split(build(ISOTROPIC)),
            "state dict round trip": lambda build=build: _round_trip(architecture, build(ISOTROPIC)),
            "copies": lambda build=build: _copies(build(ISOTROPIC)),
        }
        for name, action in checks.items():
            yield attempt(plugin, f"{dims}D: {name}", action)


def example_spec(
    architecture: type[Architecture],
    dims: int,
    strides: tuple[tuple[int, ...], ...] = ISOTROPIC,
    in_channels: int = 1,
    num_outputs: int = 3,
    *,
    deep_supervision: bool = True,
) -> NetworkSpec:
    """Return a small spec as a planner would make it for this architecture."""
    spec = NetworkSpec(
        dims=dims,
        in_channels=in_channels,
        num_outputs=num_outputs,
        patch_size=tuple(4 * math.prod(axis) for axis in zip(*(stride[-dims:] for stride in strides), strict=True)),
        strides=tuple(stride[-dims:] for stride in strides),
        kernel_sizes=((3,) * dims,) * STAGES,
        features=tuple(8 * 2**stage for stage in range(STAGES)),
        blocks_encoder=(1,) * STAGES,
        blocks_decoder=(1,) * (STAGES - 1),
        deep_supervision=deep_supervision,
    )
    spec = architecture.adapt_spec(spec)
    multiple = architecture.patch_multiple(spec)
    patch = tuple(math.ceil(edge / step) * step for edge, step in zip(spec.patch_size, multiple, strict=True))
    return spec.model_copy(update={"patch_size": patch})


def _is_class(architecture: type[Architecture]) -> None:
    require(isinstance(architecture, type) and issubclass(architecture, Architecture), "it must derive Architecture")
    dims = architecture.dims
    require(isinstance(dims, tuple) and dims and set(dims) <= {2, 3}, f"dims must be (2,), (3,) or (2, 3), got {dims}")


def _is_sized(found: Found, architecture: type[Architecture]) -> None:
    """Plans made from the sizing alone are those of the network."""
    sizing = named_sizing(found)
    require(issubclass(architecture, sizing), f"{sizing.__name__} is no base class of {architecture.__name__}")
    for name in (name for name in vars(NetworkSizing) if not name.startswith("_")):
        own, planned = (getattr(kind, name) for kind in (architecture, sizing))
        same = getattr(own, "__func__", own) == getattr(planned, "__func__", planned)
        require(same, f"{name} is another one than that of {sizing.__name__}, by which it is planned: move it there")


def _build(architecture: type[Architecture], dims: int, *arguments: object, **options: object) -> Architecture:
    torch.manual_seed(0)
    return architecture(example_spec(architecture, dims, *arguments, **options))


def _input(network: Architecture, batch: int = 1) -> torch.Tensor:
    shape = (batch, network.spec.in_channels, *network.spec.patch_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _predict(network: Architecture, x: torch.Tensor) -> torch.Tensor:
    network.eval()
    with torch.no_grad():
        return network(x)


def _train_outputs(network: Architecture, x: torch.Tensor) -> list[torch.Tensor]:
    network.train()
    outputs = network(x)
    return outputs if isinstance(outputs, list) else [outputs]


def _logits(network: Architecture) -> None:
    logits = _predict(network, _input(network, 2))
    require(isinstance(logits, torch.Tensor), f"in eval mode it must return one tensor, got {type(logits).__name__}")
    expected = (2, network.spec.num_outputs, *network.spec.patch_size)
    require(tuple(logits.shape) == expected, f"logits must have shape {expected}, got {tuple(logits.shape)}")
    require(logits.isfinite().all(), "logits must be finite")
    require((logits < 0).any(), "logits must come without activation, but none is negative")


def _deep_supervision(network: Architecture) -> None:
    network.train()
    outputs = network(_input(network, 2))
    if isinstance(outputs, torch.Tensor):  # a network without heads at lower resolution
        outputs = [outputs]
    require(isinstance(outputs, list), f"in training mode it must return a list, got {type(outputs).__name__}")
    sizes = [tuple(output.shape[2:]) for output in outputs]
    require(sizes[0] == network.spec.patch_size, f"the first output must have full resolution, got {sizes[0]}")
    falling = all(math.prod(a) >= math.prod(b) for a, b in pairwise(sizes))
    require(falling, f"outputs must run from high to low resolution, got {sizes}")
    channels = {output.shape[1] for output in outputs}
    require(channels == {network.spec.num_outputs}, f"every output needs {network.spec.num_outputs} channels")
    weights = network.output_weights()
    fits = weights is None or (len(weights) == len(outputs) and abs(sum(weights) - 1) < 1e-6 and weights[0] > 0)
    require(fits, f"output_weights must be one per output and sum to 1, got {weights} for {len(outputs)} outputs")
    most = max(1, len(network.spec.features) - 1)
    fits = weights is not None or len(outputs) <= most
    require(fits, f"at most {most} outputs fit {len(network.spec.features)} stages, got {len(outputs)}")


def _single_output(network: Architecture) -> None:
    network.train()
    output = network(_input(network, 2))
    require(isinstance(output, torch.Tensor), "without deep supervision training mode must return one tensor")
    require(tuple(output.shape[2:]) == network.spec.patch_size, f"wrong shape {tuple(output.shape)}")


def _gradients(network: Architecture) -> None:
    network.zero_grad()
    sum(output.square().mean() for output in _train_outputs(network, _input(network, 2))).backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.requires_grad}
    unused = [name for name, gradient in gradients.items() if gradient is None]
    require(not unused, f"parameters that no output depends on: {', '.join(unused[:5])}")
    broken = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    require(not broken, f"gradients are not finite: {', '.join(broken[:5])}")


def _learns(network: Architecture) -> None:
    """A few steps on one batch must lower the loss, else gradients do not reach the weights that matter."""
    network = copy.deepcopy(network)
    x = _input(network, 2)
    target = (x[:, 0] > 0).long()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(_train_outputs(network, x)[0], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    require(losses[-1] < losses[0], f"8 steps on one batch did not lower the loss: {losses[0]:.3f} -> {losses[-1]:.3f}")


def _autocast(network: Architecture) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        logits = _predict(network, _input(network))
    require(logits.isfinite().all(), "logits under bfloat16 autocast must be finite")


def _deterministic(network: Architecture) -> None:
    x = _input(network)
    require(torch.equal(_predict(network, x), _predict(network, x)), "two calls in eval mode must agree bit for bit")


def _independent(network: Architecture) -> None:
    x = _input(network, 2)
    difference = (_predict(network, x)[:1] - _predict(network, x[:1])).abs().max()
    require(difference < 1e-3, f"the output for a sample must not depend on its batch; it changes by {difference:.3g}")


def _split(network: Architecture) -> None:
    x = _input(network)
    whole = _predict(network, x)
    with torch.no_grad():
        features = network.encode(x)
        require(isinstance(features, list), f"encode must return a list, got {type(features).__name__}")
        sizes = [math.prod(feature.shape[2:]) for feature in features if feature.ndim > 2]
        require(sizes == sorted(sizes, reverse=True), "encode must return features from high to low resolution")
        require(torch.equal(network.decode(features), whole), "decode(encode(x)) must equal forward(x)")


def _round_trip(architecture: type[Architecture], network: Architecture) -> None:
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, file)
        again = architecture(network.spec)
        again.load_state_dict(load_file(file))
    x = _input(network)
    require(torch.equal(_predict(again, x), _predict(network, x)), "loaded weights must predict the same")


def _copies(network: Architecture) -> None:
    x = _input(network)
    require(torch.equal(_predict(copy.deepcopy(network), x), _predict(network, x)), "a deep copy must predict the same")
