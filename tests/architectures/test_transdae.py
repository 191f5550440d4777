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


def test_the_interaction_by_definition():
    torch.manual_seed(0)
    module = InterScaleInteraction(3, [((k, k), (d, d)) for k, d in LARGE]).double()
    e, g = torch.randn(2, 1, 3, 25, 24).double()
    conv, (near, far, mix) = torch.nn.functional.conv2d, module.attention
    z = conv(torch.cat([e, g], 1), module.fuse.weight, module.fuse.bias)
    a = conv(z, near.weight, near.bias, padding=2, groups=3)
    a = conv(a, far.weight, far.bias, padding=9, dilation=3, groups=3)
    a = conv(a, mix.weight, mix.bias)
    torch.testing.assert_close(module(e, g), conv(a * z, module.out.weight, module.out.bias) + z)


def test_the_block_attends_over_space_then_over_channels():
    torch.manual_seed(0)
    block, x = transdae.DualAttentionBlock(8, 2, (2, 2), (3, 3)).double(), torch.randn(2, 4, 6, 8).double()
    for norm in block.norms:
        torch.nn.init.normal_(norm.weight)
    y = x + block.space(block.norms[0](x))
    y = y + block.ffn1(block.norms[1](y))
    y = y + block.channels(block.norms[2](y).reshape(2, 24, 8)).reshape(2, 4, 6, 8)
    torch.testing.assert_close(block(x), y + block.ffn2(block.norms[3](y)))


def test_step_by_step():
    """Embedding, norms, expansions, skips and head around the blocks."""
    network, x = make(make_spec(2, stages=3, patch=(16, 16), base=8)).double().eval(), torch.randn(1, 1, 16, 16)
    for norm in (module for module in network.modules() if isinstance(module, torch.nn.LayerNorm)):
        torch.nn.init.normal_(norm.bias)
    y, skips = x.double(), []
    for embed, blocks, norm, kernel in zip(network.embeddings, network.encoder, network.norms, (7, 3), strict=True):
        y = torch.nn.functional.conv2d(y, embed.conv.weight, embed.conv.bias, 2, kernel // 2)
        y = norm(blocks(embed.norm(y.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        skips.append(y)
    for found, wanted in zip(network.encode(x.double()), skips, strict=True):
        torch.testing.assert_close(found, wanted)
    up = network.ups[0](skips[1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    y = network.decoder[0](network.skips[0](skips[0], up).permute(0, 2, 3, 1))
    y = network.expand(y).permute(0, 3, 1, 2)
    torch.testing.assert_close(network(x.double()), network.head(y))


def test_initial_values():
    network = make(make_spec(2, stages=3, patch=(16, 16), base=16))
    ffn = network.encoder[1][0].ffn1
    assert ffn.enter.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert ffn.conv.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.1)
    assert network.embeddings[1].conv.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)
    assert (ffn.enter.bias == 0).all()
    assert (ffn.conv.bias == 0).all()


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
