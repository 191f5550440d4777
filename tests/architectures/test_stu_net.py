"""STU-Net: published counts, strides from the plan, weights that fit any strides, repeated first kernels."""

import pytest
import torch
from network_specs import count, make, make_spec, stir

from autoseg.errors import UserError
from autoseg.training.pretrained import load_pretrained

UNIT, TWO = (1, 1, 1), (2, 2, 2)


@pytest.mark.parametrize(
    ("size", "published"), [("S", 14_596_941), ("B", 58_262_669), ("L", 440_302_605), ("H", 1_457_326_221)]
)
def test_published_parameter_counts(size, published):
    with torch.device("meta"):
        network = make("stu_net", make_spec(3, 6, patch=(128,) * 3, outputs=105, size=size))
        fewer = make("stu_net", make_spec(3, 4, patch=(40, 56, 40), outputs=105, size=size))
    assert count(network) == count(fewer) == published


def test_three_poolings_end_with_unit_strides_that_count_nothing():
    network = make("stu_net", make_spec(3, 4, patch=(40, 56, 40), base=2, size="S")).train()
    assert network.spec.strides == (UNIT, TWO, TWO, TWO, UNIT, UNIT)
    outputs = network(torch.zeros(1, 1, 40, 56, 40))
    expected = [(40, 56, 40), (20, 28, 20), (10, 14, 10), (5, 7, 5), (5, 7, 5)]
    assert [tuple(output.shape[2:]) for output in outputs] == expected
    assert network.output_weights() == pytest.approx([2 / 3, 1 / 3, 0, 0, 0])


def test_more_poolings_than_five_are_dropped():
    assert make("stu_net", make_spec(2, 7, patch=(64, 64), base=2)).spec.strides == ((1, 1), *[(2, 2)] * 5)


def test_weights_fit_any_strides():
    torch.manual_seed(0)
    isotropic = make("stu_net", make_spec(3, 6, patch=(32,) * 3, base=2))
    flat = (UNIT, (1, 2, 2), TWO, TWO, (1, 2, 2), UNIT)
    other = make("stu_net", make_spec(3, strides=flat, patch=(8, 32, 32), base=2))
    other.load_state_dict(isotropic.state_dict())
    assert other.eval()(torch.zeros(1, 1, 8, 32, 32)).shape == (1, 3, 8, 32, 32)


def test_two_equal_channels_through_repeated_kernels_are_as_one():
    torch.manual_seed(0)
    one = make("stu_net", make_spec(2, 3, patch=(16, 16), base=2)).eval()
    two = make("stu_net", make_spec(2, 3, patch=(16, 16), base=2, channels=2)).eval()
    state = one.state_dict()
    first = [name for name in state if name.startswith("encoder.0.0.") and state[name].shape[1:2] == (1,)]
    assert len(first) == 2
    two.load_state_dict(state | {name: state[name].repeat(1, 2, 1, 1) for name in first})
    x = torch.randn(1, 1, 16, 16)
    block, pair = one.encoder[0][0], two.encoder[0][0]
    twice = 2 * (block.conv1(x) - block.conv1.bias.view(1, -1, 1, 1)) + block.conv1.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(pair.conv1(torch.cat([x, x], 1)), twice)
    torch.testing.assert_close(
        pair.norm1(pair.conv1(torch.cat([x, x], 1))), block.norm1(block.conv1(x)), atol=2e-3, rtol=1e-3
    )


def test_stages_are_residual():
    network = make("stu_net", make_spec(3, 6, patch=(32,) * 3, base=32, size="L"))
    assert network.spec.features == (64, 128, 256, 512, 1024, 1024)
    stage = network.encoder[2]
    assert len(stage) == 2
    assert isinstance(stage[0].skip, torch.nn.Conv3d)
    assert isinstance(stage[1].skip, torch.nn.Identity)


def test_the_width_follows_narrow_plans_and_unknown_sizes_are_told():
    assert make("stu_net", make_spec(3, 3, patch=(16,) * 3, base=8)).spec.features[0] == 8
    with pytest.raises(UserError, match="S, B, L, H"):
        make("stu_net", make_spec(size="XL"))


def test_step_by_step():
    """Residual units, up-sampling without weights, joins, heads of every level."""
    torch.manual_seed(0)
    network = stir(make("stu_net", make_spec(2, 6, patch=(64, 64), base=2, size="L", width=4)))
    x, conv = torch.randn(1, 1, 64, 64).double(), torch.nn.functional.conv2d

    def stage(units, y, stride=1):
        norm, leaky = torch.nn.functional.instance_norm, torch.nn.functional.leaky_relu
        for number, unit in enumerate(units):
            step = 1 if number else stride
            inner = conv(y, unit.conv1.weight, unit.conv1.bias, step, 1)
            inner = leaky(norm(inner, weight=unit.norm1.weight, bias=unit.norm1.bias), 0.01)
            inner = conv(inner, unit.conv2.weight, unit.conv2.bias, padding=1)
            inner = norm(inner, weight=unit.norm2.weight, bias=unit.norm2.bias)
            y = leaky(inner + (y if number else conv(y, unit.skip.weight, unit.skip.bias, step)), 0.01)
        return y

    maps, y = [], x
    for level, units in enumerate(network.encoder):
        y = stage(units, y, 2 if level else 1)
        maps.append(y)
    for found, wanted in zip(network.encode(x), maps, strict=True):
        torch.testing.assert_close(found, wanted)
    logits = []
    for level in (4, 3, 2, 1, 0):
        up, head = network.ups[level], network.heads[level]
        y = conv(y.repeat_interleave(2, 2).repeat_interleave(2, 3), up.weight, up.bias)
        y = stage(network.decoder[level], torch.cat([y, maps[level]], 1))
        logits.insert(0, conv(y, head.weight, head.bias))
    torch.testing.assert_close(network(x), logits[0])
    for found, wanted in zip(network.train()(x), logits, strict=True):
        torch.testing.assert_close(found, wanted)


def published_name(name):
    """The authors' name of a tensor: their decoder counts from the lowest resolution."""
    part, level, rest = name.split(".", 2)
    theirs = {"encoder": "conv_blocks_context", "ups": "upsample_layers", "decoder": "conv_blocks_localization"}
    level = int(level) if part == "encoder" else 4 - int(level)
    rest = f"conv.{rest}" if part == "ups" else rest.replace("skip.", "conv3.")
    return f"{theirs.get(part, 'seg_outputs')}.{level}.{rest}"


def test_published_weights_are_loaded_and_heads_of_other_labels_stay_fresh(tmp_path):
    torch.manual_seed(0)
    source = make("stu_net", make_spec(2, 6, patch=(64, 64), base=2, outputs=5))
    network = make("stu_net", make_spec(2, 4, patch=(32, 32), base=2))
    names = {published_name(name): tensor for name, tensor in source.state_dict().items()}
    assert "conv_blocks_localization.4.0.conv3.weight" in names
    torch.save({"network_weights": names}, tmp_path / "small.pth")
    state, wanted = network.state_dict(), source.state_dict()
    for row in load_pretrained(network, tmp_path / "small.pth"):
        assert row.status == ("fresh" if row.name.startswith("heads.") else "loaded")
        assert row.status == "fresh" or torch.equal(state[row.name], wanted[row.name])
    assert network.ups[0].weight.shape == names["upsample_layers.4.conv.weight"].shape
