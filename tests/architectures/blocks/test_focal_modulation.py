"""Focal modulation: by hand, its global path, its locality, kernels on small and thin grids."""

import pytest
import torch
from autoseg.architectures.blocks.focal_modulation import FocalBlock, FocalModulation, focal_kernels


def make(width=4, levels=3, dims=2):
    torch.manual_seed(0)
    return FocalModulation(width, focal_kernels(levels, 3, 2, (16,) * dims, (False,) * dims))


def test_modulation_by_hand():
    layer = make(1, 1)
    with torch.no_grad():
        layer.f.weight.zero_()
        layer.f.bias.copy_(torch.tensor([2.0, 1.0, 1.0, 1.0]))  # query, context, two gates
        layer.focal_layers[0][0].weight.zero_()
        layer.focal_layers[0][0].weight[0, 0, 1, 1] = 1
        for identity in (layer.h, layer.proj):
            torch.nn.init.ones_(identity.weight)
            torch.nn.init.zeros_(identity.bias)
        y = layer(torch.ones(1, 5, 5, 1))
    # 2 (GELU(1) + GELU(GELU(1))) = 2 (0.84134 + 0.67301)
    torch.testing.assert_close(y, torch.full((1, 5, 5, 1), 3.0287), atol=2e-4, rtol=0)


def test_by_definition():
    layer, x = make().double(), torch.randn(2, 6, 7, 4, generator=torch.Generator().manual_seed(1)).double()
    torch.nn.init.normal_(layer.f.weight)
    gelu = torch.nn.functional.gelu
    assert [block[0].kernel_size for block in layer.focal_layers] == [(3, 3), (5, 5), (7, 7)]
    assert not any(block[0].bias is not None for block in layer.focal_layers)
    projected = layer.f(x).permute(0, 3, 1, 2)
    query, context, gates = projected[:, :4], projected[:, 4:8], projected[:, 8:]
    total = torch.zeros_like(query)
    for level, block in enumerate(layer.focal_layers):
        context = gelu(torch.nn.functional.conv2d(context, block[0].weight, padding=level + 1, groups=4))
        total = total + gates[:, level, None] * context
    total = total + gates[:, 3, None] * gelu(context.mean((2, 3), keepdim=True))
    mixed = torch.nn.functional.conv2d(total, layer.h.weight, layer.h.bias)
    torch.testing.assert_close(layer(x), layer.proj((query * mixed).permute(0, 2, 3, 1)))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_block_normalises_before_and_adds(dims):
    torch.manual_seed(0)
    block, x = FocalBlock(4, [(3,) * dims]).double(), torch.randn(2, *(5,) * dims, 4).double()
    for norm in (block.norm1, block.norm2):
        torch.nn.init.normal_(norm.weight)
    middle = x + block.modulation(block.norm1(x))
    torch.testing.assert_close(block(x), middle + block.mlp(block.norm2(middle)))


def only_global(layer):
    width = layer.split[0]
    with torch.no_grad():
        layer.f.weight[2 * width :] = 0
        layer.f.bias[2 * width :] = 0
        layer.f.bias[-1] = 1


def without_global(layer):
    with torch.no_grad():
        layer.f.weight[-1] = 0
        layer.f.bias[-1] = 0


def test_the_global_gate_sees_the_spatial_mean_only():
    layer, x = make(), torch.randn(1, 8, 8, 4, generator=torch.Generator().manual_seed(1))
    only_global(layer)
    seen = []
    layer.h.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    layer(x)
    torch.testing.assert_close(seen[0], seen[0][..., :1, :1].expand_as(seen[0]))
    other = x.clone()
    other[0, 7, 7] += 5
    changed = (layer(other) - layer(x)).abs().amax(-1)[0]
    assert (changed > 0).all()  # a pixel reaches every other, through the mean


def test_contexts_are_cumulative_and_local():
    layer, x = make(levels=2).double(), torch.zeros(1, 17, 17, 4, dtype=torch.float64)
    without_global(layer)
    other = x.clone()
    other[0, 8, 8] += 1
    changed = (layer(other) - layer(x)).abs().amax(-1)[0] > 0
    reach = changed.nonzero()
    assert reach.amin(0).tolist() == [5, 5]  # 3- then 5-convolution: one and two pixels
    assert reach.amax(0).tolist() == [11, 11]


def test_a_shift_of_the_map_shifts_the_output_away_from_borders():
    layer, x = make(), torch.randn(1, 24, 24, 4, generator=torch.Generator().manual_seed(1))
    without_global(layer)
    shifted = layer(x.roll((2, 3), (1, 2)))
    torch.testing.assert_close(shifted[:, 9:-9, 9:-9], layer(x).roll((2, 3), (1, 2))[:, 9:-9, 9:-9])


@pytest.mark.parametrize("dims", [2, 3])
def test_without_the_projection_only_the_perceptron_is_left(dims):
    torch.manual_seed(0)
    block, x = FocalBlock(4, [(3,) * dims, (5,) * dims]), torch.randn(1, *(6,) * dims, 4)
    torch.nn.init.zeros_(block.modulation.proj.weight)
    assert not torch.equal(block(x), x + block.mlp(block.norm2(x)))
    torch.nn.init.zeros_(block.modulation.proj.bias)
    assert torch.equal(block(x), x + block.mlp(block.norm2(x)))


def test_kernels_fit_the_grid_and_thin_axes():
    assert focal_kernels(3, 3, 2, (16, 16), (False, False)) == [(3, 3), (5, 5), (7, 7)]
    assert focal_kernels(3, 3, 2, (4, 6), (False, False)) == [(3, 3), (3, 5), (3, 5)]
    assert focal_kernels(2, 3, 2, (1, 8, 8), (False, True, False)) == [(1, 1, 3), (1, 1, 5)]


def test_the_count_of_a_published_block():
    block = FocalBlock(96, [(3, 3), (5, 5), (7, 7)])
    assert sum(parameter.numel() for parameter in block.parameters()) * 4 == 480_784
