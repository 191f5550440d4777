"""DINO's transformer as it is trained: names, features, attention, positions of crops."""

import torch
from autoseg.architectures.blocks.attention_maps import AttentionViT
from autoseg.architectures.blocks.dino_vit import DinoViT, ViTSize
from torch import nn

SMALL = ViTSize(width=24, depth=2, heads=3, patch=4, side=3)


def drawn():
    torch.manual_seed(0)
    vit = DinoViT(SMALL)
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return vit


def test_it_has_the_names_and_the_attention_of_the_frozen_one():
    vit, frozen, x = drawn(), AttentionViT(SMALL, saved=True), torch.randn(2, 3, 12, 16)
    frozen.load_state_dict(vit.state_dict())
    torch.testing.assert_close(frozen(x), vit.attention(x))
    assert sum(each.numel() for each in vit.parameters()) == sum(each.numel() for each in frozen.buffers())
    assert vit.weights_metadata == {"heads": "3"}


def test_features_are_the_normed_class_token_after_all_blocks():
    vit, x = drawn(), torch.randn(2, 3, 12, 12)
    patches = nn.functional.conv2d(x, vit.patch_embed["proj"].weight, vit.patch_embed["proj"].bias, stride=4)
    tokens = torch.cat([vit.cls_token.expand(2, -1, -1), patches.flatten(2).transpose(1, 2)], 1) + vit.pos_embed
    torch.testing.assert_close(vit(x), vit.norm(vit.blocks[1](vit.blocks[0](tokens)))[:, 0])


def test_small_crops_have_interpolated_positions_which_learn():
    vit = drawn()
    grid = vit.pos_embed[0, 1:].T.reshape(1, 24, 3, 3)
    expected = nn.functional.interpolate(grid, size=(2, 2), mode="bicubic").flatten(2)[0].T
    torch.testing.assert_close(vit._positions((2, 2))[0, 1:], expected)
    assert torch.equal(vit._positions((2, 2))[:, :1], vit.pos_embed[:, :1])
    vit(torch.randn(1, 3, 8, 8)).sum().backward()
    assert (vit.pos_embed.grad.abs().sum(-1) > 0).all()  # every position of the grid, and the class token's
