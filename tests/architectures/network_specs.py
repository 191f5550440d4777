"""Specs for the tests of single networks."""

import torch

from autoseg import plugins
from autoseg.plans import NetworkSpec


def make_spec(dims=3, stages=4, *, patch=None, strides=None, channels=1, outputs=3, base=32, deep=True, **options):
    strides = strides or ((1,) * dims, *[(2,) * dims] * (stages - 1))
    return NetworkSpec(
        dims=dims,
        in_channels=channels,
        num_outputs=outputs,
        patch_size=patch or (32,) * dims,
        strides=strides,
        kernel_sizes=((3,) * dims,) * len(strides),
        features=tuple(min(10 * base, base * 2**level) for level in range(len(strides))),
        blocks_encoder=(1,) * len(strides),
        blocks_decoder=(1,) * (len(strides) - 1),
        deep_supervision=deep,
        options=options,
    )


def make(name, spec):
    return plugins.build_network(name, plugins.load("architecture", name).adapt_spec(spec))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def stir(module):
    """Return the module in float64 and eval mode, its vectors (norms, biases, scales) off 0 and 1: all show."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for vector in (parameter for parameter in module.parameters() if parameter.ndim == 1):
            vector.add_(0.3 * torch.randn(vector.shape, generator=draw))
        for norm in (part for part in module.modules() if getattr(part, "running_mean", None) is not None):
            norm.running_mean.add_(0.3 * torch.randn(norm.running_mean.shape, generator=draw))
            norm.running_var.mul_(0.5 + torch.rand(norm.running_var.shape, generator=draw))
    return module.double().eval()


def to_last(x):
    """Return a map (B, C, *S) as (B, *S, C)."""
    return x.movedim(1, -1)


def to_first(x):
    """Return a map (B, *S, C) as (B, C, *S)."""
    return x.movedim(-1, 1)
