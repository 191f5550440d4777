"""Y-Net: published size, reach of the spectral encoder, merging, sizes from the plan."""

import pytest
import torch
from autoseg.architectures.y_net import YNet, encoder_widths, interleave, transformed_axes
from network_specs import count, make_spec

from autoseg.errors import UserError


def make(spec):
    torch.manual_seed(0)
    return YNet(YNet.adapt_spec(spec))


def published(**options):
    spec = make_spec(2, stages=5, patch=(224, 224), outputs=9, deep=False, **options)
    with torch.device("meta"):
        return make(spec.model_copy(update={"features": (32, 64, 128, 256, 512)}))


def test_published_parameter_count():
    network = published()
    assert count(network) == 6_925_353
    assert count(published(cat_merge=True)) == 6_925_353
    assert count(published(ratio=0.0)) < 6_925_353
    assert [block[0].in_channels for block in network.decoder] == [64, 128, 256, 384]
    assert [block[0].in_channels for block in published(skip_ffc=True).decoder] == [96, 192, 384, 512]
    assert network.bottom[0].in_channels == 256


def test_logits():
    network = make(make_spec(2, stages=5, patch=(224, 224), outputs=9, base=2)).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 224, 224)).shape == (1, 9, 224, 224)
        assert network(torch.zeros(1, 1, 48, 80)).shape == (1, 9, 48, 80)  # not square, not the planned size


def test_merging_by_hand():
    a = torch.arange(8.0).reshape(1, 2, 2, 2)
    wanted = [[[0, -100], [1, -101]], [[2, -102], [3, -103]], [[4, -104], [5, -105]], [[6, -106], [7, -107]]]
    assert interleave(a, -100 - a)[0].tolist() == wanted


@pytest.mark.parametrize(("options", "everywhere"), [({}, True), ({"ratio": 0.0}, False), ({"ffc": False}, False)])
def test_the_spectral_encoder_sees_the_whole_patch(options, everywhere):
    network = make(make_spec(2, stages=4, patch=(64, 64), base=16, **options)).double().eval()
    x = torch.randn(1, 1, 64, 64, dtype=torch.float64)
    other = x.clone()
    other[0, 0, 3, 3] += 5
    with torch.no_grad():
        maps = [network.spectral(image)[1] for image in (x, other)]
    assert ((maps[1] - maps[0]).abs().amax((0, 1)) > 1e-9).all() == everywhere


@pytest.mark.parametrize("options", [{"ratio": 1.0}, {"ffc": False}, {"skip_ffc": True}, {"cat_merge": True}])
@pytest.mark.parametrize("dims", [2, 3])
def test_options_train(options, dims):
    network = make(make_spec(dims, stages=3, patch=(16,) * dims, base=8, **options))
    outputs = network(torch.randn(2, 1, *(16,) * dims))
    sum(output.square().mean() for output in outputs).backward()
    assert [output.shape[2] for output in outputs] == [16, 8]
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("skip_ffc", [False, True])
def test_step_by_step(skip_ffc):
    """Both encoders, their merging and the decoder around convolutions."""
    network = make(make_spec(2, stages=3, patch=(16, 16), base=8, skip_ffc=skip_ffc)).eval()
    x, pool = torch.randn(1, 1, 16, 16), torch.nn.functional.max_pool2d
    y, local, everywhere, skips = x, x, None, []
    for block, layer in zip(network.spatial, network.spectral.layers, strict=True):
        y, (local, everywhere) = block(y), layer(local, everywhere)
        skips.append(torch.cat([y, local, everywhere], 1) if skip_ffc else y)
        y, local, everywhere = pool(y, 2), pool(local, 2), pool(everywhere, 2)
    y = network.bottom(torch.cat([y, local, everywhere], 1))
    for found, wanted in zip(network.encode(x), [*skips, y], strict=True):
        torch.testing.assert_close(found, wanted)
    for level in (1, 0):
        up = network.ups[level]
        y = torch.nn.functional.conv_transpose2d(y, up.weight, up.bias, 2)
        y = network.decoder[level](torch.cat([y, skips[level]], 1))
    torch.testing.assert_close(network(x), network.heads[0](y))
    assert network.decoder[0][0].bias is None


def test_both_encoders_reach_the_bottleneck():
    network, x = make(make_spec(2, stages=3, patch=(16, 16), base=8)).eval(), torch.randn(1, 1, 16, 16)
    before = network(x)
    torch.nn.init.zeros_(network.spectral.layers[-1].global_norm.weight)
    assert (network(x) - before).abs().max() > 1e-5


def test_widths_and_axes():
    assert encoder_widths((32, 64, 128, 256, 512)) == (32, 64, 128, 128)
    assert encoder_widths((8, 16)) == (8,)
    assert transformed_axes((16, 16)) == (0, 1)
    assert transformed_axes((4, 4, 4)) == (0, 1, 2)
    assert transformed_axes((7, 32, 32)) == (1, 2)
    assert transformed_axes((8, 32, 32)) == (0, 1, 2)
    assert transformed_axes((7, 14, 14)) == (0, 1, 2)


def test_a_coarse_axis_keeps_its_size():
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    network = make(make_spec(3, strides=strides, patch=(6, 16, 16), base=8)).eval()
    with torch.no_grad():
        features = network.encode(torch.zeros(1, 1, 6, 16, 16))
        assert network.decode(features).shape == (1, 3, 6, 16, 16)
    assert [tuple(feature.shape[2:]) for feature in features] == [(6, 16, 16), (6, 8, 8), (3, 4, 4)]
    assert network.spectral.layers[1].global_to_global.axes == (0, 1, 2)


def test_it_tells_frequencies_apart():
    """The class of an image is the frequency of its stripes, which lie anywhere."""
    torch.manual_seed(0)
    network = make(make_spec(2, stages=3, patch=(16, 16), base=8, outputs=2, deep=False))
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)

    def draw(batch):
        fast = torch.arange(batch) % 2
        phase = torch.rand(batch, 1) * 6.28
        wave = torch.sin(torch.arange(16) * (3 + fast[:, None]) * 6.28 / 16 + phase)
        return wave[:, None, None].expand(-1, 1, 16, -1) + 0.3 * torch.randn(batch, 1, 16, 16), fast

    for _ in range(40):
        x, fast = draw(8)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), fast[:, None, None].expand(-1, 16, 16)).backward()
        optimizer.step()
    with torch.no_grad():
        x, fast = draw(32)
        right = (network.eval()(x).argmax(1) == fast[:, None, None]).float().mean()
    assert right > 0.8


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="ratio"):
        make(make_spec(2, stages=2, patch=(8, 8), base=4, ratio=2.0))
    with pytest.raises(UserError, match="two resolutions"):
        make(make_spec(2, stages=1, patch=(8, 8), base=4))
