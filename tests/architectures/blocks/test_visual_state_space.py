"""The visual state-space block: size, directions, symmetries, initial values."""

import pytest
import torch
from autoseg.architectures.blocks.mlp import Mlp
from autoseg.architectures.blocks.visual_state_space import SS2D, VisualStateSpaceBlock
from network_specs import stir


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_size_of_the_published_block():
    assert count(VisualStateSpaceBlock(2, 96)) == 105_408
    # without gate: norm, in, conv without bias, x, dt, A and D, norm, out; norm and perceptron
    d, rank = 96, 6
    mix = d * d + 9 * d + 4 * ((rank + 2) * d + d * rank + d + d + d) + 2 * d + d * d
    block = VisualStateSpaceBlock(2, d, expand=1, state=1, gate=False, conv_bias=False, mlp=Mlp(d, 4 * d))
    assert count(block) == 2 * d + mix + 2 * d + (8 * d * d + 5 * d)


@pytest.mark.parametrize("sizes", [(5, 6), (3, 4, 5)])
def test_all_weights_are_used_and_shapes_kept(sizes):
    torch.manual_seed(0)
    block = VisualStateSpaceBlock(len(sizes), 4, state=2)
    x = torch.randn(2, *sizes, 4)
    block(x).square().sum().backward()
    assert block(x).shape == x.shape
    assert all(parameter.grad.abs().sum() > 0 for parameter in block.parameters())


def test_the_worked_example_of_the_scan():
    layer = SS2D(2, 1, expand=1, state=1, gate=False).scans
    with torch.no_grad():
        layer.A_log.zero_()
        layer.D.zero_()
        layer.x_proj.zero_()
    u = torch.tensor([1.0, 2.0]).reshape(1, 1, 2, 1).expand(1, 4, 2, 1)
    assert (layer(u) == 0).all()  # B and C come from the input through x_proj alone
    with torch.no_grad():
        layer.x_proj[:, 1:] = 1  # B and C are u itself
        layer.dt_proj.zero_()
        layer.dt_bias.fill_(torch.expm1(torch.ones(())).log())  # delta 1
    # h_0 = 1 * 1, h_1 = h_0 / e + 2 * 2; y = u h
    torch.testing.assert_close(layer(u)[0, 0, :, 0], torch.tensor([1.0, 2 * (0.3678794 + 4)]))


def share_weights(layer):
    with torch.no_grad():
        for parameter in layer.scans.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter).clone())


@pytest.mark.parametrize("sizes", [(4, 6), (2, 3, 4)])
def test_scans_with_equal_weights_commute_with_point_reflection(sizes):
    torch.manual_seed(0)
    axes = tuple(range(1, len(sizes) + 1))
    layer, x = SS2D(len(sizes), 4, state=3), torch.randn(1, *sizes, 4)
    with torch.no_grad():
        layer.conv.weight.copy_((layer.conv.weight + layer.conv.weight.flip([axis + 1 for axis in axes])) / 2)
    assert (layer(x.flip(axes)) - layer(x).flip(axes)).abs().max() > 1e-5  # own weights per direction
    share_weights(layer)
    torch.testing.assert_close(layer(x.flip(axes)), layer(x).flip(axes))


def test_transposing_the_map_swaps_the_directions():
    torch.manual_seed(0)
    layer, u = SS2D(2, 4, state=3), torch.randn(1, 4, 6, 8)
    wanted = layer.core(u).transpose(1, 2)
    with torch.no_grad():
        for parameter in layer.scans.parameters():
            parameter.copy_(parameter[[1, 0, 3, 2]])
    torch.testing.assert_close(layer.core(u.transpose(1, 2)), wanted)
    assert not torch.allclose(layer.core(u), wanted.transpose(1, 2))


def test_each_direction_sees_what_comes_before_it():
    torch.manual_seed(0)
    layer, u = SS2D(2, 2, expand=1, state=2), torch.randn(1, 3, 4, 2)
    other = u.clone()
    other[0, 1, 2] += 1
    for direction, reached in (
        (0, [(1, 2), (1, 3), *((2, w) for w in range(4))]),
        (1, [(1, 2), (2, 2), *((h, 3) for h in range(3))]),
        (2, [*((0, w) for w in range(4)), (1, 0), (1, 1), (1, 2)]),
        (3, [(h, w) for h in range(3) for w in range(2)] + [(0, 2), (1, 2)]),
    ):
        scans = layer.scans
        saved = [parameter.detach().clone() for parameter in scans.parameters()]
        with torch.no_grad():
            silent = [way for way in range(4) if way != direction]
            scans.D[silent] = 0
            scans.x_proj[silent] = 0
            changed = (layer.core(u) - layer.core(other)).abs().amax(-1)[0] > 1e-7
            for parameter, tensor in zip(scans.parameters(), saved, strict=True):
                parameter.copy_(tensor)
        assert sorted(map(tuple, changed.nonzero().tolist())) == sorted(reached)


def test_initial_values():
    torch.manual_seed(0)
    scans = SS2D(2, 64).scans
    steps = torch.nn.functional.softplus(scans.dt_bias)
    assert steps.min() >= 0.001 * 0.999
    assert steps.max() <= 0.1 * 1.001
    torch.testing.assert_close(scans.A_log.exp()[3, 5], torch.arange(1.0, 17.0))
    assert (scans.D == 1).all()
    assert scans.dt_proj.abs().max() <= 0.5  # rank 4
    assert scans.x_proj.abs().max() <= 128**-0.5


def test_scans_run_in_float32_under_autocast():
    torch.manual_seed(0)
    block, x = VisualStateSpaceBlock(2, 8, drop_path=0.5).eval(), torch.randn(1, 4, 4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        low = block(x)
    torch.testing.assert_close(low.float(), block(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("gated", [True, False])
def test_the_block_by_definition(gated):
    torch.manual_seed(0)
    options = {"state": 2} if gated else {"state": 1, "expand": 1, "gate": False, "conv_bias": False}
    block = stir(VisualStateSpaceBlock(2, 6, mlp=None if gated else Mlp(6, 24), **options))
    x, layer, silu = torch.randn(2, 3, 4, 6).double(), block.mix, torch.nn.functional.silu
    u = torch.nn.functional.linear(block.norm(x), layer.in_proj.weight)
    u, gate = u.chunk(2, -1) if gated else (u, None)
    convolved = torch.nn.functional.conv2d(
        u.movedim(-1, 1), layer.conv.weight, layer.conv.bias, padding=1, groups=u.shape[-1]
    )
    y = layer.norm(layer.core(silu(convolved).movedim(1, -1)))
    y = x + torch.nn.functional.linear(y * silu(gate) if gated else y, layer.out_proj.weight)
    torch.testing.assert_close(block(x), y if gated else y + block.mlp(block.mlp_norm(y)))
    assert (layer.conv.bias is not None) == gated
    assert layer.in_proj.bias is layer.out_proj.bias is None


def test_one_direction_by_definition():
    torch.manual_seed(0)
    scans, u = SS2D(2, 20, expand=1, state=3).scans.double(), torch.randn(1, 4, 5, 20).double()
    torch.nn.init.normal_(scans.D)
    found = scans(u)
    for way in range(4):
        step, b, c = (u[0, way] @ scans.x_proj[way].T).split([2, 3, 3], -1)  # rank: 20 / 16, rounded up
        delta = torch.nn.functional.softplus(step @ scans.dt_proj[way].T + scans.dt_bias[way])
        state = torch.zeros(20, 3).double()
        for t in range(5):
            grown = (delta[t] * u[0, way, t])[:, None] * b[t]
            state = torch.exp(-delta[t][:, None] * scans.A_log[way].exp()) * state + grown
            wanted = state @ c[t] + scans.D[way] * u[0, way, t]
            torch.testing.assert_close(found[0, way, t], wanted.to(found.dtype), atol=1e-5, rtol=1e-4)
