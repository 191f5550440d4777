"""Attention maps: sizes and weights of DINO's transformers, the attention row, scaling, positions of other grids."""

import pytest
import torch
from autoseg.architectures.blocks.attention_maps import (
    AttentionViT,
    ViTSize,
    as_pictures,
    attention_maps,
    load_vit,
    picture_size,
    random_vit,
)
from safetensors.torch import save_file

from autoseg.errors import UserError

TINY = ViTSize(width=64, depth=2, heads=1, patch=4, side=3)


def count(module):
    return sum(buffer.numel() for buffer in module.buffers())


def test_sizes_of_the_published_transformers():
    with torch.device("meta"):
        assert count(AttentionViT(ViTSize(384, 12, 6, 16, 14))) == 21_665_664
        vit = AttentionViT(ViTSize(384, 12, 6, 8, 28), saved=True)
    assert count(vit) == 21_670_272
    assert not list(vit.parameters())
    names = set(vit.state_dict())
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "norm.bias"} < names
    block = {f"blocks.11.{part}.{kind}" for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
             for kind in ("weight", "bias")}  # fmt: skip
    assert block < names
    assert len(names) == 2 + 2 + 12 * 12 + 2


def test_the_row_of_the_class_token_by_hand():
    vit = random_vit(ViTSize(128, 2, 2, 4, 3))
    with torch.no_grad():
        vit.pos_embed.normal_()
    x, seen = torch.randn(2, 3, 12, 12), []
    vit.blocks[0].register_forward_hook(lambda _module, _given, output: seen.append(output))
    maps = vit(x)
    last = vit.blocks[1]
    q, k, _ = last.attn.qkv(last.norm1(seen[0])).chunk(3, -1)
    for head in range(2):
        part = slice(64 * head, 64 * head + 64)
        weights = (q[..., part] @ k[..., part].mT / 8).softmax(-1)
        torch.testing.assert_close(maps[:, head].flatten(1), weights[:, 0, 1:])
    sums = maps.sum((2, 3))
    assert (maps >= 0).all()
    assert (sums < 1).all()
    assert (sums > 0.5).all()


@pytest.mark.parametrize("sizes", [(12, 12), (17, 30), (2, 16, 20)])
def test_maps_have_the_shape_of_the_image_and_reach_from_0_to_1(sizes):
    maps = attention_maps(random_vit(ViTSize(128, 2, 2, 4, 3)), torch.randn(2, 1, *sizes) * 50 + 7)
    assert maps.shape == (2, 2, *sizes)
    slices = maps.flatten(-2)
    assert (slices.amin(-1) == 0).all()
    torch.testing.assert_close(slices.amax(-1), torch.ones(slices.shape[:-1]))


def test_slices_of_a_volume_are_pictures():
    vit, x = random_vit(TINY), torch.randn(2, 1, 3, 12, 12)
    maps = attention_maps(vit, x)
    for z in range(3):
        torch.testing.assert_close(maps[:, :, z], attention_maps(vit, x[:, :, z]))


def test_patches_show_as_squares():
    maps = attention_maps(random_vit(TINY), torch.randn(1, 1, 12, 16))
    squares = maps.unflatten(3, (4, 4)).unflatten(2, (3, 4))
    assert (squares == squares[:, :, :, :1, :, :1]).all()


def test_intensities_are_scaled_by_percentiles():
    grey = torch.linspace(0, 1000, 20 * 50).reshape(1, 1, 20, 50)
    pictures = as_pictures(grey) * torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    pictures = pictures + torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    assert torch.allclose(pictures[:, 0], pictures[:, 2], atol=1e-6)
    assert pictures[0, 0].flatten()[[0, 4, -5, -1]].tolist() == pytest.approx([0, 0, 1, 1], abs=1e-6)
    assert pictures[0, 0].flatten()[500].item() == pytest.approx((500.5 - 5) / (995 - 5), abs=1e-3)
    torch.testing.assert_close(as_pictures(3 * grey - 5), as_pictures(grey), rtol=0, atol=1e-4)
    colours = torch.cat([grey, grey / 2, grey / 4], 1)  # scaled together, so they stay darker
    means = as_pictures(colours).mean((0, 2, 3))
    assert means[0] > means[1] > means[2]


def test_sizes_of_pictures():
    assert picture_size((224, 200), 16) == (224, 192)
    assert picture_size((3, 40), 16) == (16, 32)
    wide = picture_size((2048, 1024), 8)
    assert wide[0] % 8 == wide[1] % 8 == 0
    assert 0.95 * 4096 < wide[0] // 8 * (wide[1] // 8) <= 4096


def test_positions_of_other_grids_are_interpolated_in_place():
    vit = random_vit(TINY)
    with torch.no_grad():  # one channel tells the row
        vit.pos_embed.zero_()
        vit.pos_embed[0, 1:, 0] = torch.arange(3.0).repeat_interleave(3)
    assert torch.equal(vit._positions((3, 3)), vit.pos_embed)
    rows = vit._positions((6, 5))[0, 1:, 0].reshape(6, 5)
    assert torch.allclose(rows, rows[:, :1].expand(6, 5))
    assert (rows[1:, 0] > rows[:-1, 0]).all()


@pytest.mark.parametrize("form", ["plain", "prefix", "teacher", "safetensors"])
def test_published_files_are_read(tmp_path, form):
    vit = random_vit(TINY, saved=True)
    state = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    file = tmp_path / "vit.pth"
    if form == "safetensors":
        file = tmp_path / "vit.safetensors"
        save_file(state, file)
    elif form == "teacher":
        heads = {"head.mlp.0.weight": torch.zeros(2)}
        torch.save({"teacher": {f"module.backbone.{name}": tensor for name, tensor in state.items()} | heads}, file)
    else:
        prefix = "backbone." if form == "prefix" else ""
        torch.save({prefix + name: tensor for name, tensor in state.items()}, file)
    loaded, x = load_vit(file), torch.randn(1, 3, 12, 12)
    assert loaded.size == TINY
    assert torch.equal(loaded(x), vit(x))


def test_files_that_are_no_vit_are_refused(tmp_path):
    state = dict(random_vit(TINY, saved=True).state_dict())
    with pytest.raises(UserError, match="does not exist"):
        load_vit(tmp_path / "none.pth")
    torch.save({name: tensor for name, tensor in state.items() if name != "norm.bias"}, tmp_path / "lacks.pth")
    with pytest.raises(UserError, match="not those of a DINO ViT"):
        load_vit(tmp_path / "lacks.pth")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="lacks 'patch_embed"):
        load_vit(tmp_path / "other.pth")


def test_nothing_is_trained_or_drawn_anew():
    vit, x = random_vit(TINY), torch.randn(1, 1, 12, 12, requires_grad=True)
    vit.train()
    assert not any(module.training for module in vit.modules())
    assert not attention_maps(vit, x).requires_grad
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    again = random_vit(TINY)
    assert torch.equal(torch.rand(1), before)
    assert all(torch.equal(a, b) for a, b in zip(vit.buffers(), again.buffers(), strict=True))
