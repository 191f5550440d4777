"""UNet++: published counts, the triangle, full-resolution heads, pruning, averaging."""

import pytest
import torch
from autoseg.architectures.unet_plus_plus import PaperUnit, key
from network_specs import count, make, make_spec, stir

from autoseg import plugins
from autoseg.errors import UserError
from autoseg.losses import dice_loss
from autoseg.planning.memory import trace_training


def wide(spec, features):
    return spec.model_copy(update={"features": features})


def test_published_parameter_counts_of_the_paper():
    with torch.device("meta"):
        features = (32, 64, 128, 256, 512)
        network = make("unet_plus_plus", wide(make_spec(2, 5, outputs=1, deep=False, style="paper"), features))
        heads = make("unet_plus_plus", wide(make_spec(2, 5, outputs=1, style="paper"), features))
    assert count(network) == 9_041_601
    assert count(heads) - count(network) == 3 * 33


def test_published_parameter_count_of_the_engine_variant():
    spec = wide(make_spec(2, 6, outputs=2), (32, 64, 128, 256, 480, 480))
    with torch.device("meta"):
        assert count(make("unet_plus_plus", spec)) == 24_000_032


@pytest.mark.parametrize("levels", [2, 3, 5, 6])
def test_any_depth_makes_a_triangle(levels):
    network = make("unet_plus_plus", make_spec(2, levels, patch=(32, 32), base=2))
    assert len(network.nodes) == levels * (levels + 1) // 2
    assert len(network.ups) == levels * (levels - 1) // 2
    assert len(network.heads) == levels - 1


def test_all_heads_have_full_resolution_and_count_the_same():
    network = make("unet_plus_plus", make_spec(2, 6, patch=(64, 96), outputs=2, base=2)).train()
    outputs = network(torch.zeros(1, 1, 64, 96))
    assert [tuple(output.shape) for output in outputs] == [(1, 2, 64, 96)] * 5
    assert network.output_weights() == [0.2] * 5


def test_the_first_output_is_the_one_that_predicts():
    torch.manual_seed(0)
    network = make("unet_plus_plus", make_spec(2, 3, patch=(16, 16), base=2))
    x = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(network.train()(x)[0], network.eval()(x))


def pruned(network, depth):
    other = make("unet_plus_plus", network.spec.model_copy(update={"options": {"inference": f"prune:{depth}"}}))
    other.load_state_dict(network.state_dict())
    return other.eval()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_pruning_gives_that_head_and_needs_no_deeper_node(depth):
    torch.manual_seed(0)
    network = make("unet_plus_plus", make_spec(3, 4, patch=(16, 16, 16), base=2))
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        expected = network.train()(x)[-depth]
        assert torch.equal(pruned(network, depth)(x), expected)
        for name, node in network.nodes.items():
            if sum(map(int, name.split("_"))) > depth:
                for parameter in node.parameters():
                    parameter.zero_()
        small = pruned(network, depth)
        assert torch.equal(small(x), expected)
        assert len(small.encode(x)) == depth + 1


def test_without_the_nodes_between_it_is_a_u_net():
    """Only X(i, L-1-i) with X(i, 0) and the map from below: the weights of all nodes between are zero."""
    torch.manual_seed(0)
    network = make("unet_plus_plus", make_spec(2, 3, patch=(16, 16), base=4, deep=False)).eval()
    with torch.no_grad():
        middle = network.nodes[key(0, 1)]
        for parameter in middle.parameters():
            parameter.zero_()
        x = torch.randn(1, 1, 16, 16)
        encoder = [network.nodes[key(0, 0)](x)]
        for level in (1, 2):
            encoder.append(network.nodes[key(level, 0)](encoder[-1]))
        low = network.nodes[key(1, 1)](torch.cat([network.ups[key(1, 1)](encoder[2]), encoder[1]], 1))
        zero = torch.zeros(1, 4, 16, 16)
        top = network.nodes[key(0, 2)](torch.cat([network.ups[key(0, 2)](low), encoder[0], zero], 1))
        assert torch.equal(network.heads["2"](top), network(x))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_averaging_takes_the_mean_of_probabilities(activation):
    torch.manual_seed(0)
    options = {"inference": "average", "activation": activation}
    network = make("unet_plus_plus", make_spec(2, 4, patch=(16, 16), base=2, **options))
    x = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        outputs = torch.stack(network.train()(x))
        mean = network.eval()(x)
    probabilities = outputs.softmax(2).mean(0) if activation == "softmax" else outputs.sigmoid().mean(0)
    given = mean.softmax(1) if activation == "softmax" else mean.sigmoid()
    torch.testing.assert_close(given, probabilities)


@pytest.mark.parametrize(("most", "kept"), [(1, [4]), (2, [3, 4]), (4, [1, 2, 3, 4]), (9, [1, 2, 3, 4])])
def test_columns_of_full_resolution_can_be_capped(most, kept):
    network = make("unet_plus_plus", make_spec(2, 5, patch=(32, 32), base=2, max_columns=most))
    assert [int(name.split("_")[1]) for name in network.nodes if name.startswith("0_")] == [0, *kept]
    assert list(network.heads) == [str(column) for column in kept]
    assert len(network.nodes) == 15 - 4 + len(kept), "lower levels keep every node"
    # The last node of level 0 sees the up-sampled node, the encoder's and the kept ones before it.
    assert network.nodes["0_4"].layers[0].in_channels == 2 * (len(kept) + 1)
    outputs = network.train()(torch.randn(2, 1, 32, 32))
    outputs = outputs if isinstance(outputs, list) else [outputs]
    assert len(outputs) == len(network.output_weights()) == len(kept)
    sum(output.square().mean() for output in outputs).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_capped_columns_take_less_memory_and_cannot_be_pruned_to():
    architecture = plugins.load("architecture", "unet_plus_plus")
    whole, capped = make_spec(2, 5, patch=(64, 64), base=8), make_spec(2, 5, patch=(64, 64), base=8, max_columns=1)
    assert trace_training(architecture, capped, 2).peak < 0.7 * trace_training(architecture, whole, 2).peak
    with pytest.raises(UserError, match="heads 3 to 4, not 2"):
        make("unet_plus_plus", make_spec(2, 5, base=2, max_columns=2, inference="prune:2"))
    for wrong in (0, -1, True, "2"):
        with pytest.raises(UserError, match="cannot take max_columns"):
            make("unet_plus_plus", make_spec(2, 5, base=2, max_columns=wrong))


def test_units_of_the_paper():
    unit = PaperUnit(2, 1, 4, (3, 3), (2, 2))
    kinds = [type(layer).__name__ for layer in unit.layers]
    assert kinds == ["Conv2d", "ReLU", "Dropout"] * 2
    assert [layer.p for layer in unit.layers if isinstance(layer, torch.nn.Dropout)] == [0.5, 0.5]
    assert unit(torch.zeros(1, 1, 8, 8)).shape == (1, 4, 4, 4)


@pytest.mark.parametrize(
    "options",
    [{"style": "new"}, {"inference": "prune:x"}, {"inference": "prune:9"}, {"depth": 2}, {"activation": "no"}],
)
def test_unknown_options_are_told(options):
    with pytest.raises(UserError, match=r"UNetPlusPlus|heads|deep supervision"):
        make("unet_plus_plus", make_spec(2, 3, patch=(16, 16), base=2, **options))


@pytest.mark.parametrize("style", ["engine", "paper"])
def test_step_by_step(style):
    """Units, the way down, every node with all nodes before it, heads."""
    torch.manual_seed(0)
    network = stir(make("unet_plus_plus", make_spec(2, 4, patch=(16, 16), base=4, style=style)))
    x, conv = torch.randn(2, 1, 16, 16).double(), torch.nn.functional.conv2d
    paper = style == "paper"

    def unit(node, y, stride=1):
        first, norm1, _, second, norm2, _ = node.layers
        if paper:  # pooled before, no norm
            y = torch.nn.functional.max_pool2d(y, stride) if stride > 1 else y
            y = torch.relu(conv(y, first.weight, first.bias, padding=1))
            return torch.relu(conv(y, second.weight, second.bias, padding=1))
        for layer, norm, step in ((first, norm1, stride), (second, norm2, 1)):
            y = conv(y, layer.weight, layer.bias, step, 1)
            y = torch.nn.functional.instance_norm(y, weight=norm.weight, bias=norm.bias)
            y = torch.nn.functional.leaky_relu(y, 0.01)
        return y

    nodes = {}
    for level in range(4):
        below = nodes[level - 1, 0] if level else x
        nodes[level, 0] = unit(network.nodes[key(level, 0)], below, 2 if level else 1)
    for column in (1, 2, 3):
        for level in range(4 - column):
            up = network.ups[key(level, column)]
            larger = torch.nn.functional.conv_transpose2d(nodes[level + 1, column - 1], up.weight, up.bias, 2)
            earlier = [nodes[level, number] for number in range(column)]
            nodes[level, column] = unit(network.nodes[key(level, column)], torch.cat([larger, *earlier], 1))
    heads = [network.heads[str(column)] for column in (1, 2, 3)]
    assert {(head.bias is not None, up.bias is not None) for head in heads} == {(paper, paper)}
    logits = [conv(nodes[0, column], head.weight, head.bias) for column, head in enumerate(heads, start=1)]
    torch.testing.assert_close(network(x), logits[2])
    if not paper:  # which drops in training
        for found, wanted in zip(network.train()(x), reversed(logits), strict=True):
            torch.testing.assert_close(found, wanted)


def test_the_loss_of_the_paper():
    """0.5 BCE - (2 sum P Y + 1) / (sum P + sum Y + 1), worked out for a right prediction."""
    logits, target = torch.tensor([[[-100.0, 100.0], [100.0, -100.0]]]), torch.tensor([[1, 0]])
    entropy = torch.nn.functional.cross_entropy(logits, target)
    loss = 0.5 * entropy + dice_loss(logits, target, batch_dice=True, smooth=1.0)
    assert loss.item() == pytest.approx(-1, abs=1e-6)
