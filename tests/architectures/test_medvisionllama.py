"""MedVisionLlama: published sizes, the frozen layer, adapted mappers, tokens, the user's file."""

import pytest
import torch
from autoseg.architectures.blocks.llama_block import NAMES, LlamaSize, shapes
from autoseg.architectures.medvisionllama import Mapper, fold, unfold
from network_specs import count, make, make_spec, stir
from safetensors.torch import save_file

from autoseg import plugins
from autoseg.errors import UserError

SMALL = LlamaSize(256, 2, 1, 64)


def small(dims=2, patch=(32, 32), **options):
    return make("medvisionllama", make_spec(dims, 4, patch=patch, base=4, **{"llm": [32, 4, 2, 48], **options}))


def write(path, seed=0):
    draw = torch.Generator().manual_seed(seed)
    tensors = {
        f"layers.31.{NAMES[name][0]}.weight": torch.randn(shape, generator=draw) / 16
        for name, shape in shapes(SMALL).items()
    }
    save_file(tensors, path)
    return path


def frozen(network):
    return [buffer.clone() for buffer in network.booster.buffers()]


def test_published_parameter_counts():
    with torch.device("meta"):
        network = make("medvisionllama", make_spec(3, 6, patch=(128,) * 3, outputs=1, llm=[4096, 32, 8, 14336]))
        plain = make("medvisionllama", make_spec(3, 6, patch=(128,) * 3, outputs=1, use_llm=False))
    booster = network.booster
    buffers = sum(buffer.numel() for buffer in network.buffers())
    assert count(network) == 1_165_440
    assert count(network) + buffers == 219_805_824
    assert sum(buffer.numel() for buffer in booster.llm.buffers()) == 218_116_096
    assert count(plain) == 1_128_000
    assert (count(booster.enter), count(booster.leave)) == (20_736, 16_704)


def test_the_frozen_layer_stays_while_the_mappers_learn():
    torch.manual_seed(0)
    network, x = small().train(), torch.randn(2, 1, 32, 32)
    before, mapper = frozen(network), network.booster.enter.lora_b.detach().clone()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2, weight_decay=0.1)
    for _ in range(3):
        network(x).square().mean().backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, frozen(network), strict=True))
    assert not torch.equal(network.booster.enter.lora_b, mapper)
    assert network.booster.enter.lora_a.grad.abs().max() > 0  # through the frozen layer


def test_a_fresh_mapper_is_its_frozen_map():
    torch.manual_seed(0)
    mapper, x = Mapper(6, 9), torch.randn(2, 5, 6)
    assert [name for name, _ in mapper.named_parameters()] == ["bias", "lora_a", "lora_b"]
    torch.testing.assert_close(mapper(x), x @ mapper.weight.T + mapper.bias)
    torch.nn.init.normal_(mapper.lora_b)
    torch.testing.assert_close(mapper(x), x @ (mapper.weight + mapper.lora_b @ mapper.lora_a / 4).T + mapper.bias)
    assert "weight" in dict(Mapper(6, 9, trains=True).named_parameters())


@pytest.mark.parametrize(("sizes", "token"), [((8, 12), (4, 2)), ((4, 6, 8), (2, 3, 4))])
def test_unfolding_and_folding(sizes, token):
    x = torch.randn(2, 3, *sizes)
    tokens = unfold(x, token)
    grid = [size // edge for size, edge in zip(sizes, token, strict=True)]
    assert torch.equal(fold(tokens, grid, token), x)
    corner = x[(0, slice(None), *(slice(edge) for edge in token))]
    assert torch.equal(tokens[0, 0], corner.flatten())  # channel by channel
    last = x[(0, slice(None), *[slice(edge) for edge in token[:-1]], slice(token[-1], 2 * token[-1]))]
    assert torch.equal(tokens[0, 1], last.flatten())  # row-major


def test_without_the_layers_output_the_residual_path_is_left():
    torch.manual_seed(0)
    booster, tokens = small().booster, torch.randn(1, 5, 16)
    with torch.no_grad():
        booster.llm.last_norm.zero_()
        torch.testing.assert_close(booster(tokens), booster.leave(booster.enter(tokens)))


def test_the_plan_sets_the_token_size():
    kind = plugins.load("architecture", "medvisionllama")
    strides = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert kind.patch_multiple(make_spec(strides=strides, patch=(16, 64, 64))) == (2, 8, 8)
    assert kind.patch_multiple(make_spec(patch=(128,) * 3)) == (8, 8, 8)
    assert kind.patch_multiple(make_spec(patch=(192,) * 3)) == (16, 16, 16)
    options = kind.adapt_spec(make_spec(base=8)).options
    assert (options["width"], options["depth"], options["llm"]) == (16, 4, [256, 8, 2, 896])
    with pytest.raises(UserError, match="no multiple of the token size"):
        small(patch=(30, 32))
    with pytest.raises(UserError, match="llm takes four numbers"):
        small(llm=[32, 4])


def test_a_random_frozen_layer_says_so(tmp_path, caplog):
    kind, spec = plugins.load("architecture", "medvisionllama"), make_spec(base=8)
    file = write(tmp_path / "layer.safetensors")
    for options in ({"use_llm": False}, {"llm_file": str(file)}):
        kind.adapt_spec(spec.model_copy(update={"options": options}))
    assert caplog.text == ""
    kind.adapt_spec(spec)
    assert "frozen layer has random weights" in caplog.text
    assert "llm_file=FILE" in caplog.text


def test_another_size_than_planned():
    torch.manual_seed(0)
    network = small(3, (16, 16, 16)).eval()
    with torch.no_grad():
        assert network.encode(torch.randn(1, 1, 24, 16, 8))[0].shape == (1, 16, 3, 2, 1)
        assert network(torch.randn(1, 1, 24, 16, 8)).shape == (1, 3, 24, 16, 8)


def test_a_users_file_is_named_verified_and_not_saved(tmp_path):
    path = write(tmp_path / "layer.safetensors")
    network = small(llm=None, llm_file=str(path))
    options = network.spec.options
    assert options["llm"] == [256, 2, 1, 64]
    assert len(options["llm_hash"]) == 64
    assert not any(".llm.w" in name for name in network.state_dict())
    again = plugins.build_network("medvisionllama", network.spec)
    again.load_state_dict(network.state_dict())
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), network.eval()(x))
    assert type(network).adapt_spec(network.spec) == network.spec
    write(path, seed=1)
    with pytest.raises(UserError, match="another one than the network was trained with"):
        plugins.build_network("medvisionllama", network.spec)
    path.unlink()
    with pytest.raises(UserError, match="is not there"):
        plugins.build_network("medvisionllama", network.spec)


def test_memory_is_traced_without_reading_the_file(tmp_path):
    from autoseg.planning.memory import trace_training

    network = small(llm=None, llm_file=str(write(tmp_path / "layer.safetensors")))
    (tmp_path / "layer.safetensors").unlink()
    assert trace_training(type(network), network.spec, 1).peak > 0


def test_step_by_step():
    """Tokens, mapper, frozen layer with its residual path, mapper, positions, blocks, head."""
    torch.manual_seed(0)
    network, x = stir(small()), torch.randn(2, 1, 32, 32).double()
    booster, linear = network.booster, torch.nn.functional.linear
    for mapper in (booster.enter, booster.leave):
        torch.nn.init.normal_(mapper.lora_b)

    def adapted(mapper, tokens):
        return linear(tokens, mapper.weight + mapper.lora_b @ mapper.lora_a / 4, mapper.bias)

    patches = torch.stack(
        [x[:, 0, a : a + 8, b : b + 8].flatten(1) for a in range(0, 32, 8) for b in range(0, 32, 8)], 1
    )
    tokens = linear(patches, network.embedding.weight, network.embedding.bias)
    wide = adapted(booster.enter, tokens)
    tokens = adapted(booster.leave, booster.llm(wide) + wide) + network.position
    for block in network.blocks:
        tokens = tokens + block.attn(block.norm1(tokens))
        tokens = tokens + block.mlp(block.norm2(tokens))
    torch.testing.assert_close(network.encode(x)[0].flatten(2).mT, tokens)
    values = linear(tokens, network.head.weight, network.head.bias).reshape(2, 4, 4, 3, 8, 8)
    torch.testing.assert_close(network(x), values.permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 32, 32))


def test_drops_heads_and_first_values_are_the_published_ones():
    torch.manual_seed(0)
    network = make("medvisionllama", make_spec(2, 4, patch=(64, 64), use_llm=False))
    block = network.blocks[0]
    assert len(network.blocks) == 16
    assert (block.attn.heads, block.attn.drop, block.mlp.drop.p, block.norm1.eps) == (4, 0.2, 0.2, 1e-5)
    assert network.position.std().item() == pytest.approx(1, rel=0.1)
    mapper = Mapper(300, 400)
    assert mapper.weight.abs().max() <= 300**-0.5  # as torch draws linear layers, and the same for A
    assert mapper.lora_a.abs().max() <= 300**-0.5
    assert not mapper.lora_b.any()
