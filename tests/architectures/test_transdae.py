"""TransDAE: size of the card's completion, the interaction on skips, both attentions, sizes from the plan."""

import pytest
import torch
from autoseg.architectures import transdae
from autoseg.architectures.transdae import LARGE, SMALL, InterScaleInteraction, MixFFN, TransDAE, interaction_kernels
from network_specs import count, make_spec

from autoseg.errors import UserError


def make(spec):
    torch.manual_seed(0)
    return TransDAE(TransDAE.adapt_spec(spec))


def at_224(**options):
    with torch.device("meta"):
        return make(make_spec(2, stages=6, patch=(224, 224), outputs=9, **options))


def test_parameter_counts_of_the_card():
    network = at_224(large_kernels=True)
    assert count(network) == 31_872_265
    assert count(at_224()) == 31_872_265 - 320 * (25 + 49 - 9 - 25)  # the smaller kernels at 14 x 14
    assert [blocks[0].space.reduction for blocks in network.encoder] == [(8, 8), (4, 4), (2, 2), (1, 1)]
    assert [blocks[0].space.heads for blocks in network.encoder] == [1, 2, 5, 8]
    assert network.spec.features[1:] == (64, 128, 320, 512)


def test_the_small_option():
    network = make(make_spec(2, stages=6, patch=(64, 96), width=32)).eval()
    assert network.spec.features[1:] == (32, 64, 160, 256)
    assert [blocks[0].space.heads for blocks in network.encoder] == [1, 2, 5, 8]
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 64, 96)).shape == (1, 3, 64, 96)


def test_without_its_last_convolution_the_interaction_is_a_fusion():
    torch.manual_seed(0)
    module = InterScaleInteraction(4, [((5, 5), (1, 1)), ((7, 7), (3, 3))])
    e, g = torch.randn(1, 4, 9, 9), torch.randn(1, 4, 9, 9)
    torch.nn.init.zeros_(module.out.weight)
    torch.nn.init.zeros_(module.out.bias)
    assert torch.equal(module(e, g), module.fuse(torch.cat([e, g], 1)))


@pytest.mark.parametrize(("kernels", "reach"), [(LARGE, 23), (SMALL, 11)])
def test_the_reach_of_the_interaction(kernels, reach):
    torch.manual_seed(0)
    module = InterScaleInteraction(2, [((k, k), (d, d)) for k, d in kernels]).double()
    e, g = torch.zeros(1, 2, 41, 41, dtype=torch.float64), torch.ones(1, 2, 41, 41, dtype=torch.float64)
    other = e.clone()
    other[..., 20, 20] = 1
    changed = ((module(e, g) - module(other, g)).abs().amax((0, 1)) > 0).nonzero()
    assert (changed.amax(0) - changed.amin(0) + 1).tolist() == [reach, reach]


def test_the_mixed_perceptron_by_definition():
    torch.manual_seed(0)
    ffn, x = MixFFN(3, 12, (3, 3)), torch.randn(1, 4, 4, 3)
    u = ffn.enter(x)
    z = torch.nn.functional.conv2d(u.movedim(-1, 1), ffn.conv.weight, ffn.conv.bias, padding=1, groups=12)
    torch.testing.assert_close(ffn(x), ffn.out(torch.nn.functional.gelu(ffn.norm(z.movedim(1, -1) + u))))


@pytest.mark.parametrize("kind", ["space", "channels"])
def test_both_attentions_matter(kind):
    network, x = make(make_spec(2, stages=3, patch=(16, 16), base=16)).eval(), torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        before = network(x)
        for module in network.modules():
            if isinstance(module, transdae.DualAttentionBlock):
                torch.nn.init.zeros_(getattr(module, kind).out.weight)
        assert (network(x) - before).abs().max() > 1e-4


def test_skips_are_normalised():
    network = make(make_spec(2, stages=3, patch=(16, 16), base=8)).eval()
    for feature in network.encode(torch.randn(1, 1, 16, 16)):
        torch.testing.assert_close(feature.mean(1), torch.zeros_like(feature[:, 0]), atol=1e-5, rtol=0)


def test_other_sizes_than_the_planned_one():
    network = make(make_spec(2, stages=4, patch=(32, 32), base=8)).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 40, 24)).shape == (1, 3, 40, 24)


def test_a_thin_axis():
    strides = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    kernels = ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3))
    spec = make_spec(3, strides=strides, patch=(6, 48, 32), base=8).model_copy(update={"kernel_sizes": kernels})
    network = make(spec).eval()
    assert [embedding.conv.kernel_size for embedding in network.embeddings] == [(1, 7, 7), (1, 3, 3), (3, 3, 3)]
    assert network.encoder[0][0].ffn1.conv.kernel_size == (1, 3, 3)
    assert interaction_kernels(network.spec, 0) == [((1, 5, 3), (1, 1, 1)), ((1, 7, 5), (1, 3, 2))]
    with torch.no_grad():
        features = network.encode(torch.zeros(1, 1, 6, 48, 32))
        assert network.decode(features).shape == (1, 3, 6, 48, 32)
    assert [tuple(feature.shape[2:]) for feature in features] == [(6, 24, 16), (6, 12, 8), (3, 6, 4)]


def test_too_few_reductions_are_refused():
    with pytest.raises(UserError, match="reductions"):
        make(make_spec(2, stages=4, patch=(32, 32), reductions=[2]))
