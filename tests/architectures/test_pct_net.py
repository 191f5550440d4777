"""PCT-Net: published sizes, outputs, parallel branches, resolution modes from the plan."""

import pytest
import torch
from network_specs import count, make, make_spec, stir, to_first, to_last

from autoseg import plugins
from autoseg.errors import UserError

MODES = {
    0: ((1, 1, 1), *[(2, 2, 2)] * 4),
    1: ((1, 1, 1), (1, 2, 2), *[(2, 2, 2)] * 3),
    2: ((1, 1, 1), (1, 2, 2), (1, 2, 2), *[(2, 2, 2)] * 2),
}
UNUSED_NORMS = 2 * (128 + 256 + 512 + 256 + 128)  # one per transformer in the released code, never applied


def kinds(module, kind):
    return [part for part in module.modules() if isinstance(part, kind)]


def test_published_parameter_counts():
    with torch.device("meta"):
        network = make("pct_net", make_spec(strides=MODES[1], patch=(64, 128, 128), outputs=2))
    assert network.spec.features == (24, 48, 128, 256, 512)
    assert count(network) == 44_199_386 - UNUSED_NORMS
    embedding = count(network.stem) + sum(count(p) for p in (*network.downs[:2], *network.encoder[:2]))
    assert embedding == 332_774
    head = sum(count(p) for p in (*network.ups[:2], *network.decoder[:2], *network.heads[:2]))
    assert head == 324_846
    assert count(network) - embedding - head == 43_541_766 - UNUSED_NORMS
    assert count(network.heads[3]) == 2 * 256 + 1 + 2 * 256 + 2


def test_four_outputs():
    torch.manual_seed(0)
    network = make("pct_net", make_spec(strides=MODES[1], patch=(16, 32, 32), outputs=2, base=4)).train()
    outputs = network(torch.randn(2, 1, 16, 32, 32))
    assert [tuple(output.shape) for output in outputs] == [
        (2, 2, 16, 32, 32), (2, 2, 16, 16, 16), (2, 2, 8, 8, 8), (2, 2, 4, 4, 4),
    ]  # fmt: skip


def test_modes_follow_from_the_strides():
    kind = plugins.load("architecture", "pct_net")
    flat, full = (1, 3, 3), (3, 3, 3)
    for mode, wanted in {0: [full] * 5, 1: [flat, *[full] * 4], 2: [flat, flat, *[full] * 3]}.items():
        assert list(kind.adapt_spec(make_spec(strides=MODES[mode])).kernel_sizes) == wanted
    kernels = kind.adapt_spec(make_spec(2, strides=((1, 1), (2, 2), (1, 1)))).kernel_sizes
    assert kernels == ((3, 3),) * 3  # a level without pooling is no coarse axis


def test_the_second_mode_sees_one_slice_in_its_first_levels():
    network = make("pct_net", make_spec(strides=MODES[2], patch=(4, 32, 32), base=4, deep=False))
    for part in (network.stem, network.encoder[0], network.encoder[1], network.decoder[0], network.ups[1].join):
        assert {conv.kernel_size for conv in kinds(part, torch.nn.Conv3d)} == {(1, 3, 3)}
    assert [down[-1].kernel_size for down in network.downs] == [(1, 3, 3), *[(3, 3, 3)] * 3]
    assert [down[0].kernel_size for down in network.downs] == [*MODES[2][1:]]
    assert {conv.kernel_size for conv in kinds(network.encoder[2], torch.nn.Conv3d)} == {(3, 3, 3)}


def test_without_the_transformer_a_level_is_its_convolutions():
    torch.manual_seed(0)
    level = make("pct_net", make_spec(strides=MODES[0], base=4)).encoder[2].eval()
    x = torch.randn(1, 16, 7, 8, 3)
    assert (level(x) - level.conv(x) - x).abs().max() > 1e-3
    for block in level.transformer.blocks:
        for layer in (block.attn.proj, block.mlp.fc2):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    assert torch.equal(level(x), level.conv(x) + x)  # the transformer's residual path is left
    level.transformer = torch.nn.Threshold(torch.inf, 0.0)  # zero everywhere
    assert torch.equal(level(x), level.conv(x))


def test_layers_are_in_pre_activation_order():
    network = make("pct_net", make_spec(strides=MODES[0], base=4, dropout=0.3))
    names = ["BatchNorm3d", "PReLU", "Conv3d", "BatchNorm3d", "PReLU", "Dropout", "Conv3d"]
    for level, rate in ((0, 0.0), (1, 0.0)):
        assert [type(layer).__name__ for layer in network.encoder[level]] == names
        assert network.encoder[level][5].p == rate
    below = network.encoder[3]
    assert [type(layer).__name__ for layer in below.conv] == names
    block = below.transformer.blocks[1]
    assert (below.conv[5].p, block.attn.attention_drop, block.attn.proj_drop.p, block.drop_path.rate) == (
        0.3, 0.3, 0.3, 0.2,
    )  # fmt: skip
    assert (block.shifted, block.window, block.attn.heads) == (True, (6, 6, 6), 8)
    assert {prelu.num_parameters for prelu in kinds(network, torch.nn.PReLU)} == {1}


def test_another_size_than_planned_and_the_other_norm():
    torch.manual_seed(0)
    network = make("pct_net", make_spec(2, 5, patch=(32, 32), base=4, norm="instance"))
    assert not kinds(network, torch.nn.BatchNorm2d)
    network.train()(torch.randn(1, 1, 32, 32))[0].mean().backward()
    with torch.no_grad():
        assert network.eval()(torch.randn(1, 1, 48, 32)).shape == (1, 3, 48, 32)


def test_widths_and_levels():
    kind = plugins.load("architecture", "pct_net")
    assert kind.adapt_spec(make_spec(stages=4, base=8)).features == (6, 12, 32, 64)
    assert kind.adapt_spec(make_spec(stages=7, patch=(64,) * 3, widths=[32, 64, 128, 256, 512])).features[0] == 32
    with pytest.raises(UserError, match="3 to 5 resolutions"):
        make("pct_net", make_spec(stages=2))


def before(layers, x):
    """What precedes a convolution: norm, then PReLU with one slope."""
    norm, prelu = layers
    assert isinstance(norm, torch.nn.BatchNorm2d | torch.nn.InstanceNorm2d)
    x = norm(x)
    return torch.where(x > 0, x, prelu.weight * x)


def conv_block(layers, x):
    norm1, prelu1, conv1, norm2, prelu2, _, conv2 = layers
    return conv2(before((norm2, prelu2), conv1(before((norm1, prelu1), x))))


def pyramid(level, x):
    tokens = to_last(x)
    for block in level.transformer.blocks:
        tokens = tokens + block.attend(block.norm1(tokens))
        tokens = tokens + block.mlp(block.norm2(tokens))
    return conv_block(level.conv, x) + to_first(tokens)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_step_by_step(norm):
    """Stem, poolings, both kinds of levels, joins and heads; the heads in training mode, where nothing is dropped."""
    torch.manual_seed(0)
    spec = make_spec(2, 4, patch=(16, 16), base=4, norm=norm, dropout=0.0, drop_path=0.0, window=2)
    network, x = stir(make("pct_net", spec)), torch.randn(2, 1, 16, 16).double()
    steps = [conv_block, conv_block, pyramid, pyramid]
    y = torch.nn.functional.conv2d(x, network.stem.weight, network.stem.bias, padding=1)
    maps = [conv_block(network.encoder[0], y)]
    for down, level, step in zip(network.downs, network.encoder[1:], steps[1:], strict=True):
        pooled = torch.nn.functional.max_pool2d(maps[-1], 2)
        maps.append(step(level, down[3](before((down[1], down[2]), pooled))))
    for found, wanted in zip(network.encode(x), maps, strict=True):
        torch.testing.assert_close(found, wanted)
    y, logits = maps[3], []
    for number in (2, 1, 0):
        up = network.ups[number].up
        larger = torch.nn.functional.conv_transpose2d(before(up[:2], y), up[2].weight, up[2].bias, 2)
        join = network.ups[number].join
        y = steps[number](network.decoder[number], join[2](before(join[:2], torch.cat([maps[number], larger], 1))))
        logits.insert(0, network.heads[number][2](before(network.heads[number][:2], y)))
    torch.testing.assert_close(network(x), logits[0])
    if norm == "instance":  # batch norm has the batch's own statistics in training
        for found, wanted in zip(network.train()(x), logits, strict=True):
            torch.testing.assert_close(found, wanted)
