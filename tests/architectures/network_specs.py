"""Specs for the tests of single networks."""

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
