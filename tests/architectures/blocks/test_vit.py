"""The vision transformer's block."""

import math

import torch
from autoseg.architectures.blocks.vit import ViTAttention, ViTBlock, fit_positions


def test_attention_by_hand():
    torch.manual_seed(0)
    layer, tokens = ViTAttention(12, 3), torch.randn(1, 5, 12)
    q, k, v = layer.qkv(tokens)[0].chunk(3, -1)
    heads = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        heads.append((q[:, part] @ k[:, part].T / math.sqrt(4)).softmax(-1) @ v[:, part])
    torch.testing.assert_close(layer(tokens)[0], layer.proj(torch.cat(heads, -1)))


def test_norms_come_first_and_branches_are_added():
    torch.manual_seed(0)
    block, tokens = ViTBlock(12, 3), torch.randn(2, 5, 12)
    middle = tokens + block.attn(block.norm1(tokens))
    torch.testing.assert_close(block(tokens), middle + block.mlp(block.norm2(middle)))
    assert block.norm1.eps == 1e-6


def test_names_and_parameters():
    block = ViTBlock(1536, 16)
    assert sum(p.numel() for p in block.parameters()) == 28_331_520
    assert {name.rpartition(".")[0] for name in block.state_dict()} == {
        "norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2",
    }  # fmt: skip


def test_dropout_and_drop_path_only_in_training():
    torch.manual_seed(0)
    tokens = torch.randn(2, 5, 12)
    for option in ("attention_drop", "drop", "drop_path"):
        block = ViTBlock(12, 3, **{option: 0.5})
        assert not torch.equal(block(tokens), block(tokens))
        block.eval()
        assert torch.equal(block(tokens), block(tokens))


def test_positions_for_another_grid():
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    table = torch.stack([rows.flatten(), columns.flatten()], -1)[None]  # (1, 24, 2)
    assert fit_positions(table, (4, 6), (4, 6)) is table
    halved = fit_positions(table, (4, 6), (2, 3)).reshape(2, 3, 2)
    assert halved[..., 0].tolist() == [[0.5] * 3, [2.5] * 3]
    assert halved[..., 1].tolist() == [[0.5, 2.5, 4.5]] * 2
    assert fit_positions(torch.ones(1, 8, 3), (2, 2, 2), (3, 1, 4)).shape == (1, 12, 3)
