"""The two U-Nets: sizes, names, outputs, initial state."""

import copy
import math
import weakref

import pytest
import torch
from autoseg.architectures.blocks import joining

from autoseg import plugins
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec

NAMES = ("plain_unet", "residual_encoder_unet")


def make_spec(
    dims=3, stages=4, *, features=None, channels=1, outputs=3, patch=None, strides=None, deep=True, **options
):
    strides = strides or ((1,) * dims, *[(2,) * dims] * (stages - 1))
    features = features or tuple(min(320, 32 * 2**i) for i in range(len(strides)))
    spec = NetworkSpec(
        dims=dims,
        in_channels=channels,
        num_outputs=outputs,
        patch_size=patch or (32,) * dims,
        strides=strides,
        kernel_sizes=[[1 if s == 1 and any(k > 1 for k in stride) else 3 for s in stride] for stride in strides],
        features=features,
        blocks_encoder=(1,) * len(strides),
        blocks_decoder=(1,) * (len(strides) - 1),
        deep_supervision=deep,
        options=options,
    )
    return spec


def make(name, spec):
    return plugins.build_network(name, plugins.load("architecture", name).adapt_spec(spec))


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_counts_are_those_of_nnunet():
    with torch.device("meta"):
        assert count(make("plain_unet", make_spec(stages=6))) == 31_196_399
        assert count(make("plain_unet", make_spec(stages=4))) == 5_603_177
        assert count(make("residual_encoder_unet", make_spec(stages=6))) == 102_350_575


def test_training_gives_one_output_per_decoder_stage_full_resolution_first():
    network = make("plain_unet", make_spec(features=(4, 8, 8, 8)))
    shapes = [tuple(logits.shape) for logits in network(torch.zeros(1, 1, 40, 56, 40))]
    assert shapes == [(1, 3, 40, 56, 40), (1, 3, 20, 28, 20), (1, 3, 10, 14, 10)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("dims", "strides", "channels"),
    [
        (2, ((1, 1), (2, 2), (2, 1)), 3),
        (3, ((1, 1, 1), (1, 2, 2), (2, 2, 2)), 1),
        (3, ((1, 1, 1), (2, 2, 2), (2, 2, 1)), 5),
    ],
)
def test_shapes_dtype_gradients(name, dims, strides, channels):
    torch.manual_seed(0)
    spec = make_spec(dims, strides=strides, features=(4, 6, 8), channels=channels, outputs=2)
    network = make(name, spec)
    x = torch.randn(1, channels, *(8 * a for a in spec.total_stride))
    outputs = network(x)
    assert [out.shape[1] for out in outputs] == [2, 2]
    assert outputs[0].shape[2:] == x.shape[2:]
    sum(out.float().pow(2).mean() for out in outputs).backward()
    gradients = [p.grad for p in network.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    network.eval()
    with torch.no_grad():
        once, twice = network(x), network(x)
        with torch.autocast("cpu", torch.bfloat16):
            low = network(x)
    assert torch.equal(once, twice)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(once, network.train()(x)[0], rtol=1e-4, atol=1e-4)


def test_eval_runs_only_the_full_resolution_head():
    network = make("plain_unet", make_spec(features=(4, 8, 8, 8))).eval()
    called = []
    for index, head in enumerate(network.decoder.seg_layers):
        head.register_forward_hook(lambda *_, index=index: called.append(index))
    network(torch.zeros(1, 1, 16, 16, 16))
    assert called == [2]
    network.train()(torch.zeros(1, 1, 16, 16, 16))
    assert called == [2, 0, 1, 2]


def test_forward_is_decode_of_encode():
    network = make("residual_encoder_unet", make_spec(2, 3, features=(4, 8, 8))).eval()
    x = torch.randn(2, 1, 16, 16)
    features = network.encode(x)
    assert [tuple(f.shape) for f in features] == [(2, 4, 16, 16), (2, 8, 8, 8), (2, 8, 4, 4)]
    assert torch.equal(network.decode(features), network(x))


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_names_each_tensor_once_and_loads_both_forms(name):
    torch.manual_seed(1)
    spec = make_spec(2, 3, features=(4, 8, 8))
    network, other = make(name, spec), make(name, spec)
    state = network.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    assert sum(tensor.numel() for tensor in state.values()) == count(network)
    assert {key.partition(".")[0] for key in state} == {"encoder", "decoder"}
    assert "decoder.stages.0.convs.0.conv.weight" in state
    other.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
    third = make(name, spec)
    third.load_state_dict(network.nnunet_state_dict())
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), third.parameters(), strict=True))
    wanted = type(network).build(network.spec).state_dict().keys()
    assert network.nnunet_state_dict().keys() == wanted
    state.pop("decoder.stages.0.convs.0.conv.weight")
    with pytest.raises(RuntimeError, match=r"decoder\.stages\.0\.convs\.0\.conv\.weight"):
        other.load_state_dict(state)


def test_copies_load_and_run():
    network = make("residual_encoder_unet", make_spec(2, 3, features=(4, 8, 8))).eval()
    twin = copy.deepcopy(network)
    twin.load_state_dict(network.state_dict())
    x = torch.randn(1, 1, 16, 16)
    assert torch.equal(network(x), twin(x))
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert not torch.equal(network(x), twin(x))


def test_he_initialisation():
    torch.manual_seed(0)
    network = make("plain_unet", make_spec(stages=3, features=(64, 64, 64)))
    weight = network.encoder.stages[1][0].convs[1].conv.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (1 + 0.01**2) / (64 * 27)), rel=0.02)
    up = network.decoder.transpconvs[0].weight  # (in, out, 2, 2, 2): the fan-in that torch computes is out x 8
    assert up.std().item() == pytest.approx(math.sqrt(2 / (1 + 0.01**2) / (64 * 8)), rel=0.02)
    assert all((p == 0).all() for n, p in network.named_parameters() if n.endswith("bias"))


def test_residual_blocks_start_as_their_skip():
    torch.manual_seed(0)
    network = make("residual_encoder_unet", make_spec(stages=2, features=(4, 4)))
    stage = network.encoder.stages[1]
    x = torch.randn(1, 4, 4, 4, 4)
    first = torch.nn.functional.leaky_relu(torch.nn.functional.avg_pool3d(x, 2), 0.01)
    again = torch.nn.functional.leaky_relu(torch.nn.functional.leaky_relu(first, 0.01), 0.01)
    torch.testing.assert_close(stage(x), again)


def test_one_stage_network_has_a_head():
    network = make("plain_unet", make_spec(strides=((1, 1, 1),), features=(4,), patch=(5, 5, 5)))
    (logits,) = network(torch.zeros(1, 1, 5, 5, 5))
    assert logits.shape == (1, 3, 5, 5, 5)
    assert network.eval()(torch.zeros(1, 1, 5, 5, 5)).shape == (1, 3, 5, 5, 5)


def test_adapted_block_counts():
    spec = plugins.load("architecture", "residual_encoder_unet").adapt_spec(make_spec(stages=6))
    assert (spec.blocks_encoder, spec.blocks_decoder) == ((1, 3, 4, 6, 6, 6), (1,) * 5)
    spec = plugins.load("architecture", "plain_unet").adapt_spec(make_spec(stages=3))
    assert (spec.blocks_encoder, spec.blocks_decoder) == ((2, 2, 2), (2, 2))


def test_unknown_options_are_refused():
    with pytest.raises(UserError, match="has no option"):
        make("plain_unet", make_spec(width=3))


@pytest.mark.parametrize("name", NAMES)
def test_without_gradients_it_decodes_the_same_and_each_map_goes_once_it_was_used(name):
    torch.manual_seed(0)
    network = make(name, make_spec(features=(4, 8, 8, 8))).eval()
    image, alive = torch.randn(2, 1, 32, 32, 32), []
    expected = network(image)
    encoder, head = network.encoder, network.decoder.seg_layers[-1]
    maps = []
    encoder.register_forward_hook(lambda _, __, features: maps.extend(weakref.ref(each) for each in features))
    head.register_forward_pre_hook(lambda *_: alive.extend(reference() is not None for reference in maps))
    with torch.no_grad():
        found = network(image)
    assert torch.equal(found, expected)
    assert alive == [False] * 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("why", ["traced", "vmap", "exported"])
def test_what_is_seen_through_is_joined_as_a_whole(why, monkeypatch):
    monkeypatch.setattr(joining, "VALUES_AT_ONCE", 1)
    torch.manual_seed(0)
    network = make("plain_unet", make_spec(features=(4, 8, 8, 8))).eval()
    images = torch.randn(2, 1, 40, 32, 32)
    with torch.no_grad():
        expected = network(images)
        if why == "traced":
            found = torch.jit.trace(network, torch.randn(1, 1, 32, 32, 32))(images)
        elif why == "vmap":
            found = torch.vmap(network)(images[:, None])[:, 0]
        else:
            free = {0: torch.export.Dim("batch")}
            exported = torch.export.export(NoGradient(network), (images,), dynamic_shapes=(free,), strict=True)
            found = exported.module()(images)
    torch.testing.assert_close(found, expected)


class NoGradient(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        with torch.no_grad():
            return self.network(x)


def test_a_stage_lets_its_input_go_after_its_first_convolution():
    network, alive = (
        make("plain_unet", make_spec(features=(4, 8, 8, 8)).model_copy(update={"blocks_decoder": (2,) * 3})),
        [],
    )
    last = network.eval().decoder.stages[-1].convs
    last[0].register_forward_pre_hook(lambda _, given: alive.append(weakref.ref(given[0])))
    last[1].register_forward_pre_hook(lambda *_: alive.append(alive[0]() is not None))
    with torch.no_grad():
        network(torch.randn(1, 1, 32, 32, 32))
    assert alive[1] is False


def test_hooks_on_a_stage_and_its_own_forward_are_called():
    network, told = make("plain_unet", make_spec(features=(4, 8, 8, 8))).eval(), []
    first, second, third = network.decoder.stages
    first.register_forward_hook(lambda *_: told.append("stage"))
    second.convs.register_forward_pre_hook(lambda *_: told.append("convolutions"))
    own = third.forward
    third.forward = lambda x: told.append("forward") or own(x)
    with torch.no_grad():
        network(torch.randn(1, 1, 32, 32, 32))
    assert told == ["stage", "convolutions", "forward"]


def test_a_compiled_stage_is_called_as_such():
    network, compiled = make("plain_unet", make_spec(features=(4, 8, 8, 8))).eval(), []
    network.decoder.stages[0].compile(backend=lambda graph, _: compiled.append(graph) or graph.forward)
    with torch.no_grad():
        network(torch.randn(1, 1, 32, 32, 32))
    assert len(compiled) == 1


def test_hooks_of_all_modules_see_the_same_modules_without_gradients():
    network, seen = make("plain_unet", make_spec(features=(4, 8, 8, 8))).eval(), []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    network(torch.randn(1, 1, 32, 32, 32))
    with_gradients, seen[:] = set(seen) - {type(network.decoder)}, []
    with torch.no_grad():
        network(torch.randn(1, 1, 32, 32, 32))
    handle.remove()
    assert set(seen) - {type(network.decoder)} == with_gradients


def test_feature_maps_of_the_caller_are_left_alone():
    network = make("plain_unet", make_spec(features=(4, 8, 8, 8))).eval()
    with torch.no_grad():
        features = network.encode(torch.randn(1, 1, 32, 32, 32))
        assert torch.equal(network.decode(features), network.decode(features))
    assert len(features) == 4


def test_hooks_on_the_decoder_are_called_without_gradients_too():
    network, told = make("plain_unet", make_spec(features=(4, 8, 8, 8))).eval(), []
    network.decoder.register_forward_hook(lambda *_: told.append(True))
    with torch.no_grad():
        network(torch.randn(1, 1, 32, 32, 32))
    assert told == [True]
