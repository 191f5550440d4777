"""The frozen layer of a language model: sizes, both naming schemes, attention without order, what is saved."""

import math

import pytest
import torch
from autoseg.architectures.blocks.llama_block import (
    LLAMA_3_8B,
    NAMES,
    LlamaBlock,
    LlamaSize,
    read_layer,
    rms_norm,
    shapes,
    size_of,
)
from safetensors.torch import save_file

from autoseg.errors import UserError

SMALL = LlamaSize(32, 4, 2, 48)


def randn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def write(path, layers=(31,), scheme=0, size=SMALL):
    tensors = {
        f"{'model.' * scheme}layers.{layer}.{NAMES[name][scheme]}.weight": torch.full(shape, float(layer))
        for layer in layers
        for name, shape in shapes(size).items()
    }
    save_file({**tensors, "tok_embeddings.weight": torch.zeros(3)}, path)
    return path


def test_published_parameter_count():
    with torch.device("meta"):
        block = LlamaBlock(LLAMA_3_8B)
    assert sum(buffer.numel() for buffer in block.buffers()) == 218_116_096
    assert not list(block.parameters())
    assert shapes(LLAMA_3_8B)["wk"] == (1024, 4096)


def test_the_layer_by_hand():
    torch.manual_seed(0)
    block, x = LlamaBlock(SMALL), randn(1, 5, 32)
    block.attention_norm.normal_()
    block.ffn_norm.normal_()
    normed = x[0] / (x[0].square().mean(-1, keepdim=True) + 1e-5).sqrt() * block.attention_norm
    q, k, v = normed @ block.wq.T, normed @ block.wk.T, normed @ block.wv.T
    heads = []
    for head in range(4):
        own, shared = slice(8 * head, 8 * head + 8), slice(8 * (head // 2), 8 * (head // 2) + 8)
        heads.append((q[:, own] @ k[:, shared].T / math.sqrt(8)).softmax(-1) @ v[:, shared])
    h = x[0] + torch.cat(heads, -1) @ block.wo.T
    n = rms_norm(h, block.ffn_norm)
    gate = n @ block.w1.T
    out = h + (gate * torch.sigmoid(gate) * (n @ block.w3.T)) @ block.w2.T
    torch.testing.assert_close(block(x)[0], rms_norm(out, torch.ones(32)), rtol=1e-4, atol=1e-5)


def test_attention_has_no_direction_and_no_order():
    torch.manual_seed(0)
    block, x = LlamaBlock(SMALL), randn(2, 6, 32)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order])
    other = x.clone()
    other[:, 5] = -other[:, 5]
    assert (block(x) - block(other))[:, 0].abs().max() > 1e-4  # the first token sees the last


def test_gradients_pass_through_and_weights_stay():
    block, x = LlamaBlock(SMALL), randn(1, 4, 32).requires_grad_()
    block(x).square().sum().backward()
    assert x.grad.abs().max() > 0
    assert not any(buffer.requires_grad for buffer in block.buffers())


@pytest.mark.parametrize("scheme", [0, 1], ids=["meta", "hugging-face"])
def test_the_last_layer_of_a_file(tmp_path, scheme):
    path = write(tmp_path / "layer.safetensors", layers=(2, 10, 9), scheme=scheme)
    tensors = read_layer(path, SMALL)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes(SMALL)
    assert all((tensor == 10).all() for tensor in tensors.values())
    assert size_of(path, head_width=8) == SMALL
    block = LlamaBlock(SMALL, path)
    assert (block.w2 == 10).all()
    assert (block.last_norm == 1).all()


def test_a_layer_from_a_file_is_not_saved_but_a_random_one_is(tmp_path):
    path = write(tmp_path / "layer.safetensors")
    assert LlamaBlock(SMALL, path).state_dict().keys() == {"last_norm"}
    assert LlamaBlock(SMALL).state_dict().keys() == {*NAMES, "last_norm"}
    with torch.device("meta"):
        assert LlamaBlock(SMALL, tmp_path / "nowhere").state_dict().keys() == {"last_norm"}


def test_files_that_do_not_fit_are_refused(tmp_path):
    path = write(tmp_path / "layer.safetensors")
    with pytest.raises(UserError, match="w1 has shape"):
        read_layer(path, SMALL._replace(hidden=50))
    save_file({"layers.3.attention.wq.weight": torch.zeros(4, 4)}, tmp_path / "short.safetensors")
    with pytest.raises(UserError, match="has no wk, wv, wo"):
        read_layer(tmp_path / "short.safetensors")
    (tmp_path / "text").write_text("no weights")
    for name in ("text", "nowhere"):
        with pytest.raises(UserError, match="cannot be read"):
            read_layer(tmp_path / name)
    with pytest.raises(UserError, match="no Llama layer has"):
        LlamaBlock(LlamaSize(32, 5, 2, 48))
