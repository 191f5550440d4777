"""The vision transformer of DINOv3: rotary positions, registers, drop path on subsets."""

import math

import pytest
import torch
from autoseg.architectures.blocks.dinov3_vit import (
    AxialRope,
    DinoAttention,
    DinoBlock,
    DinoVisionTransformer,
    add_on_subset,
    turn,
)
from network_specs import stir


def randn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_angles_by_hand():
    sine, cosine = AxialRope(8)((2, 4))  # 2 periods per axis: 1 and 100^(1/2) = 10
    assert sine.shape == (8, 8)
    row, column = 2 * 1.5 / 2 - 1, 2 * 2.5 / 4 - 1  # token (1, 2): 0.5, 0.25
    angles = 2 * math.pi * torch.tensor([row / 1, row / 10, column / 1, column / 10] * 2)
    torch.testing.assert_close(sine[6], angles.sin())
    torch.testing.assert_close(cosine[6], angles.cos())
    assert AxialRope(64).periods.shape == (16,)
    assert AxialRope(64).periods[8].item() == pytest.approx(10)
    with pytest.raises(ValueError, match="4 divides"):
        AxialRope(6)


def test_a_quarter_turn_pairs_the_halves_and_spares_extra_tokens():
    x = torch.tensor([[9.0, 8, 7, 6], [1, 2, 3, 4]])
    turned = turn(x, torch.ones(1, 4), torch.zeros(1, 4))
    assert turned.tolist() == [[9, 8, 7, 6], [-3, -4, 1, 2]]


def test_turning_keeps_norms_and_logits_follow_coordinate_differences():
    rope, content = AxialRope(16), randn(16)
    q = turn(content.expand(24, 16), *rope((4, 6)))
    torch.testing.assert_close(q.norm(dim=-1), content.norm().expand(24))
    logits = (q @ q.T).reshape(4, 6, 4, 6)
    torch.testing.assert_close(logits[0, 0, 1, 2], logits[2, 3, 3, 5], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[3, 1, 1, 4], logits[2, 0, 0, 3], rtol=1e-4, atol=1e-4)
    assert (logits[0, 0, 1, 2] - logits[0, 0, 2, 1]).abs() > 1e-3


def test_attention_by_hand():
    torch.manual_seed(0)
    layer, rope, tokens = DinoAttention(16, 2, qkv_bias=True), AxialRope(8), randn(1, 7, 16)
    turns = rope((2, 3))
    q, k, v = layer.qkv(tokens)[0].chunk(3, -1)
    heads = []
    for part in (slice(0, 8), slice(8, 16)):
        logits = turn(q[:, part], *turns) @ turn(k[:, part], *turns).T / math.sqrt(8)
        heads.append(logits.softmax(-1) @ v[:, part])
    torch.testing.assert_close(layer(tokens, turns)[0], layer.proj(torch.cat(heads, -1)))


def test_published_parameter_counts():
    def count(**options):
        with torch.device("meta"):
            network = DinoVisionTransformer(3, 768, 12, 12, 16, (11,), **options)
        return sum(tensor.numel() for name, tensor in network.state_dict().items() if name != "rope_embed.periods")

    assert count() == 85_641_984
    assert count(storage_tokens=0, qkv_bias=True) == 85_666_560


def test_names_are_the_published_ones():
    network = DinoVisionTransformer(3, 64, 2, 1, 4, (1,))
    names = {name for name in network.state_dict() if not name.startswith("blocks.1.")}
    block = {
        "norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.proj.weight", "attn.proj.bias", "ls1.gamma",
        "norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias", "ls2.gamma",
    }  # fmt: skip
    assert names == {f"blocks.0.{name}" for name in block} | {
        "cls_token", "storage_tokens", "mask_token", "patch_embed.proj.weight", "patch_embed.proj.bias",
        "rope_embed.periods", "norm.weight", "norm.bias",
    }  # fmt: skip


def test_taps_are_normed_patch_tokens_and_nearly_equal_at_first():
    torch.manual_seed(0)
    network = DinoVisionTransformer(3, 64, 4, 1, 4, (0, 1, 2, 3)).eval()
    x = randn(2, 3, 8, 12)
    with torch.no_grad():
        maps = network(x)
        assert [tuple(part.shape) for part in maps] == [(2, 64, 2, 3)] * 4
        assert (maps[0] - maps[3]).abs().max() < 1e-3  # LayerScale of 1e-5: blocks are nearly the identity
        embedded = network.norm(network.patch_embed.proj(x).movedim(1, -1)).movedim(-1, 1)
        torch.testing.assert_close(maps[0], embedded, rtol=1e-3, atol=1e-3)
        network.taps = (3,)
        assert torch.equal(network(x)[0], maps[3])
        for block in network.blocks:
            block.ls1.gamma.fill_(1)
        assert (network(x)[0] - maps[3]).abs().max() > 0.01


def test_registers_are_seen_by_patches():
    torch.manual_seed(0)
    network, x = DinoVisionTransformer(3, 64, 1, 1, 4, (0,)).eval(), randn(1, 3, 8, 8)
    with torch.no_grad():
        network.blocks[0].ls1.gamma.fill_(1)
        before = network(x)[0]
        network.storage_tokens[0, 3] += 5 * randn(64)
        assert (network(x)[0] - before).abs().amax(1).min() > 0


def test_a_subset_of_the_batch():
    torch.manual_seed(0)
    x = randn(10, 3)
    seen = []

    def branch(part):
        seen.append(part.shape[0])
        return torch.ones_like(part)

    y = add_on_subset(x, branch, 0.2) - x
    assert seen == [8]
    assert sorted(y[:, 0].tolist()) == pytest.approx([0] * 2 + [10 / 8] * 8, abs=1e-6)
    assert (add_on_subset(x[:2], branch, 0.2) - x[:2]).amax(1).sum().item() == pytest.approx(2)
    assert seen[1:] == [1]
    torch.testing.assert_close(add_on_subset(x[:1], branch, 0.9), x[:1] + 1)
    torch.testing.assert_close(add_on_subset(x, branch, 0.0), x + 1)


def test_the_block_normalises_before_scales_and_adds():
    torch.manual_seed(0)
    block, tokens, turns = stir(DinoBlock(16, 2)), randn(2, 7, 16).double(), AxialRope(8)((2, 3))
    middle = tokens + block.ls1.gamma * block.attn(block.norm1(tokens), turns)
    torch.testing.assert_close(block(tokens, turns), middle + block.ls2.gamma * block.mlp(block.norm2(middle)))
    assert block.norm1.eps == block.norm2.eps == 1e-6
