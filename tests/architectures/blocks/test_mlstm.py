"""The matrix LSTM against its definition."""

import math

import pytest
import torch
from autoseg.architectures.blocks.mlstm import mlstm
from autoseg.architectures.blocks.vision_lstm import BlockDiagonal, VisionLSTM
from network_specs import stir


def parallel(q, k, v, i, f):
    """The definition: all tokens with all tokens, float64."""
    length = q.shape[2]
    fade = torch.nn.functional.logsigmoid(f).cumsum(-1)
    exponent = fade[..., :, None] - fade[..., None, :] + i[..., None, :]
    exponent = exponent.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), -math.inf)
    largest = exponent.amax(-1, keepdim=True)
    c = q @ k.mT / math.sqrt(q.shape[-1]) * torch.exp(exponent - largest)
    return c @ v / (torch.maximum(c.sum(-1, keepdim=True).abs(), torch.exp(-largest)) + 1e-6)


def make_inputs(length=50, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 4, generator=generator) for _ in range(3))
    i, f = (scale * torch.randn(2, 3, length, generator=generator) for _ in range(2))
    return q, k, v, i, f + 2


def scalars(values):
    return torch.tensor(values).reshape(1, 1, -1, 1)


def test_the_worked_examples():
    q, k, v = scalars([1.0, 2.0]), scalars([1.0, 1.0]), scalars([3.0, 5.0])
    h = mlstm(q, k, v, scalars([0.0, 0.5])[..., 0], scalars([0.0, 1.0])[..., 0])
    torch.testing.assert_close(h.flatten(), torch.tensor([3.0, 4.3856]), rtol=0, atol=1e-4)
    zero = torch.zeros(1, 1, 1)
    h = mlstm(scalars([0.5]), scalars([1.0]), scalars([3.0]), zero, zero)
    assert h.item() == pytest.approx(1.5, abs=1e-5)  # the normaliser is exp(0) = 1, not 0.5


@pytest.mark.parametrize("chunk", [1, 7, 16, 50, 64])
def test_chunks_give_the_parallel_form_and_its_gradients(chunk):
    inputs = [tensor.double().requires_grad_() for tensor in make_inputs()]
    weight = torch.randn(2, 3, 50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    h, wanted = mlstm(*inputs, chunk=chunk), parallel(*inputs)
    torch.testing.assert_close(h, wanted)
    slopes = torch.autograd.grad((h * weight).sum(), inputs)
    torch.testing.assert_close(slopes, torch.autograd.grad((wanted * weight).sum(), inputs))


def test_float32_over_many_tokens():
    inputs = make_inputs(length=1000)
    wanted = parallel(*(tensor.double() for tensor in inputs))
    error = (mlstm(*inputs, chunk=128) - wanted).norm() / wanted.norm()
    assert error < 1e-4


def test_extreme_gates_do_not_overflow():
    q, k, v, i, f = make_inputs()
    for shift in (-50.0, 50.0, -500.0):
        leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v, i + shift, f)]
        h = mlstm(*leaves, chunk=16)
        slopes = torch.autograd.grad(h.sum(), leaves)
        assert h.isfinite().all()
        assert all(slope.isfinite().all() for slope in slopes)


def test_a_constant_on_all_input_gates_acts_through_the_floor_only():
    q, k, v, i, f = (tensor.double() for tensor in make_inputs())
    high, higher = mlstm(q, k, v, i + 30, f), mlstm(q, k, v, i + 40, f)
    torch.testing.assert_close(high, higher, rtol=1e-3, atol=1e-6)  # the floor exp(-30) is far below the sums
    low = mlstm(q, k, v, i, f)
    assert (low.abs() <= high.abs() * (1 + 1e-3) + 1e-6).all()  # where the floor acts it makes results smaller
    assert (low - high).abs().max() > 1e-3


@pytest.mark.parametrize(("width", "wanted"), [(64, 30_152), (256, 415_496), (320, 642_248)])
def test_block_sizes(width, wanted):
    assert sum(parameter.numel() for parameter in VisionLSTM(width).parameters()) == wanted


@pytest.mark.parametrize("width", [8, 6, 175])
def test_the_block_is_causal_for_any_width(width):
    torch.manual_seed(0)
    block, tokens = VisionLSTM(width), torch.randn(1, 20, width)
    other = tokens.clone()
    other[:, 12:] += torch.randn(1, 8, width)
    difference = (block(tokens) - block(other)).abs().amax((0, 2))
    assert (difference[:12] < 1e-5).all()
    assert (difference[12:] > 1e-3).all()


def test_the_block_runs_in_float32_under_autocast():
    torch.manual_seed(0)
    block, tokens = VisionLSTM(8), torch.randn(1, 20, 8)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = block(tokens)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, block(tokens))


def test_initial_gates_and_norms():
    torch.manual_seed(0)
    layer = VisionLSTM(64).mix
    assert layer.heads == 4
    torch.testing.assert_close(layer.forget_gate.bias, torch.tensor([3.0, 4.0, 5.0, 6.0]))
    assert not layer.input_gate.weight.any()
    assert not layer.norm.any()
    assert layer.up.weight.std().item() == pytest.approx(math.sqrt(2 / (5 * 64)), rel=0.03)
    assert layer.down.weight.std().item() == pytest.approx(2 / 8, rel=0.03)


def test_block_diagonal_mixes_neighbours_only():
    layer = BlockDiagonal(8, 4, 4)
    x = torch.zeros(1, 1, 8)
    x[..., 5] = 1
    y = layer(x)
    assert not y[..., :4].any()
    torch.testing.assert_close(y[0, 0, 4:], layer.weight[1, :, 1])


def test_the_block_by_definition():
    torch.manual_seed(0)
    block, tokens = stir(VisionLSTM(8)), torch.randn(2, 6, 8).double()
    layer, linear, silu = block.mix, torch.nn.functional.linear, torch.nn.functional.silu
    for gate in (layer.input_gate, layer.forget_gate):
        torch.nn.init.normal_(gate.weight, std=0.2)
    norm = torch.nn.functional.layer_norm(tokens, (8,)) * (1 + block.norm)
    m, z = linear(norm, layer.up.weight).chunk(2, -1)
    padded = torch.nn.functional.pad(m.mT, (3, 0))
    c = silu(torch.nn.functional.conv1d(padded, layer.conv.weight, layer.conv.bias, groups=16)).mT
    q, k, v = (
        part @ torch.block_diag(*projection.weight).T
        for part, projection in ((c, layer.query), (c, layer.key), (m, layer.value))
    )
    gates = torch.cat([q, k, v], -1)
    heads = [
        parallel(*(x[:, None, :, 4 * head : 4 * head + 4] for x in (q, k, v)), *(g(gates).mT[:, None, head] for g in (
            layer.input_gate, layer.forget_gate)))[:, 0]
        for head in range(4)
    ]  # fmt: skip
    h = torch.cat([torch.nn.functional.layer_norm(head, (4,)) for head in heads], -1) * (1 + layer.norm)
    mixed = linear((h + layer.learnable_skip * c) * silu(z), layer.down.weight)
    torch.testing.assert_close(block(tokens), tokens + mixed)
