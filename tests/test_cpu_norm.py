"""Instance norm of maps with the channels last gives what torch's gives, precisely, and so do its gradients."""

import pytest
import torch
import torch.nn.functional as F

from autoseg import cpu_norm
from autoseg.cpu_norm import instance_norm, normalise

EPS = 1e-5
SHAPES = [(2, 8, 6, 16, 16), (1, 8, 6, 16, 16), (3, 5, 7, 9, 11), (2, 320, 2, 2, 3), (1, 1500, 3, 2), (4, 32, 24, 20)]


def layout(x):
    return {4: torch.channels_last, 5: torch.channels_last_3d}[x.ndim]


def maps(shape, dtype=torch.float32, seed=0):
    """Return a map whose channels have means of their own, and a gradient."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.arange(shape[1]).view(1, -1, *[1] * (len(shape) - 2)) % 7
    x, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
    return (2 * x + means).to(dtype), gradient.to(dtype)


def parameters(channels, affine):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(channels, generator=generator) + 0.5 for _ in range(2)) if affine else (None, None)


def gradients(function, x, weight, bias, gradient):
    """Return the output and the gradients by everything that there is."""
    inputs = [tensor.detach().requires_grad_() for tensor in (x, weight, bias) if tensor is not None]
    y = function(*inputs, *[None] * (3 - len(inputs)))
    return [y.detach(), *torch.autograd.grad(y, inputs, gradient)]


def in_double(x, weight, bias, gradient):
    """Return the same from the formula, in double precision."""

    def formula(x, weight, bias):
        axes, shape = tuple(range(2, x.ndim)), (1, -1, *[1] * (x.ndim - 2))
        centred = x - x.mean(axes, keepdim=True)
        y = centred / (centred.square().mean(axes, keepdim=True) + EPS).sqrt()
        return y if weight is None else y * weight.view(shape) + bias.view(shape)

    return gradients(formula, *(None if t is None else t.double() for t in (x, weight, bias)), gradient.double())


def furthest(found, truth):
    """Return the largest difference by the largest value."""
    return float((found.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-30))


@pytest.fixture(autouse=True)
def every_size(monkeypatch):
    """Small images are torch's matter; here they are not."""
    monkeypatch.setattr(cpu_norm, "SMALL", 0)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 3e-5), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("last", ["both", "map", "gradient", "none"])
def test_values_and_gradients_are_those_of_the_formula(shape, dtype, limit, affine, last):
    x, gradient = maps(shape, dtype)
    x = x.contiguous(memory_format=layout(x)) if last in ("both", "map") else x
    gradient = gradient.contiguous(memory_format=layout(x)) if last in ("both", "gradient") else gradient
    weight, bias = parameters(shape[1], affine)
    found = gradients(lambda *inputs: instance_norm(*inputs, EPS), x, weight, bias, gradient)
    assert found[0].is_contiguous(memory_format=layout(x))
    assert found[0].dtype == found[1].dtype == dtype
    for mine, truth in zip(found, in_double(x, weight, bias, gradient), strict=True):
        assert furthest(mine, truth) < limit


@pytest.mark.parametrize("offset", [30, 3000])
@pytest.mark.parametrize("size", [(16, 64, 64), (61, 101, 103)], ids=["one_block", "many_narrow_blocks"])
def test_channels_that_vary_little_about_a_large_value_keep_their_precision(size, offset):
    """As precise as by torch; sums of squares, or of a whole channel one value after the other, lose much of these."""
    x, gradient = maps((1, 8, *size))
    x = (x + offset).contiguous(memory_format=torch.channels_last_3d)
    truth = in_double(x, None, None, gradient)
    mine = gradients(lambda *inputs: instance_norm(*inputs, EPS), x, None, None, gradient)
    theirs = gradients(lambda x, *_: F.instance_norm(x.contiguous(), eps=EPS), x, None, None, gradient)
    for one, other, right in zip(mine, theirs, truth, strict=True):
        assert furthest(one, right) < 2 * furthest(other, right) + 1e-9 * offset


def test_blocks_that_differ_are_joined(monkeypatch):
    """A scan whose first slices are air: a block's own mean and variance say nothing of the whole."""
    monkeypatch.setattr(cpu_norm, "ROWS", 2)
    monkeypatch.setattr(cpu_norm, "COLUMNS", 16)
    x, gradient = maps((2, 4, 9, 6, 5))
    x[:, :, :4] = -1000.0
    x = x.contiguous(memory_format=torch.channels_last_3d)
    found = gradients(lambda *inputs: instance_norm(*inputs, EPS), x, *parameters(4, True), gradient)
    for mine, truth in zip(found, in_double(x, *parameters(4, True), gradient), strict=True):
        assert furthest(mine, truth) < 1e-4


def test_a_constant_channel_becomes_its_shift():
    x = torch.full((1, 2, 4, 4), 5.0).contiguous(memory_format=torch.channels_last)
    assert torch.equal(
        instance_norm(x, torch.ones(2), torch.tensor([1.0, -2.0]), EPS)[0, :, 0, 0], torch.tensor([1.0, -2.0])
    )


@pytest.mark.parametrize("small", [0, 2**16])
@pytest.mark.parametrize("affine", [True, False])
def test_the_gradient_can_be_differentiated(affine, small, monkeypatch):
    monkeypatch.setattr(cpu_norm, "SMALL", small)
    x, found = maps((1, 3, 4, 4, 2))[0].contiguous(memory_format=torch.channels_last_3d), []
    for function in (instance_norm, F.instance_norm):
        mine = function is instance_norm
        values = [
            None if value is None else (value if mine else value.double().contiguous()).detach().requires_grad_()
            for value in (x, *parameters(3, affine))
        ]
        y = function(*values, 0.1) if mine else function(values[0], weight=values[1], bias=values[2], eps=0.1)
        inputs = [value for value in values if value is not None]
        slopes = torch.autograd.grad(y.pow(3).sum(), inputs, create_graph=True)
        found.append(torch.autograd.grad(sum(slope.square().sum() for slope in slopes), inputs))
    for mine, right in zip(*found, strict=True):
        assert furthest(mine, right) < 1e-4


@pytest.mark.parametrize("images", [1, 2])
def test_small_images_have_the_right_gradient_and_the_channels_last(images, monkeypatch):
    monkeypatch.setattr(cpu_norm, "SMALL", 2**16)
    x, gradient = maps((images, 4, 3, 5, 4))
    x, gradient = (tensor.contiguous(memory_format=torch.channels_last_3d) for tensor in (x, gradient))
    given = x, *parameters(4, True), gradient
    found = gradients(lambda *inputs: instance_norm(*inputs, EPS), *given)
    assert found[0].is_contiguous(memory_format=torch.channels_last_3d)
    for mine, right in zip(found, in_double(*given), strict=True):
        assert furthest(mine, right) < 1e-5


def test_the_default_number_format_and_device_do_not_matter():
    x, before = maps((2, 4, 6, 6))[0], torch.get_default_dtype()
    right = instance_norm(x, None, None, EPS)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            values = x.clone().requires_grad_()
            found = instance_norm(values, None, None, EPS)
            found.sum().backward()
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, right)
    assert values.grad.dtype == torch.float32


def test_a_bias_may_change_before_the_gradient_is_taken():
    x, gradient = maps((2, 4, 6, 6))
    weight, bias = (parameter.requires_grad_() for parameter in parameters(4, True))
    y = instance_norm(x, weight, bias, EPS)
    with torch.no_grad():
        bias += 1
    y.backward(gradient)
    assert torch.allclose(bias.grad, gradient.sum((0, 2, 3)), atol=1e-5)


@pytest.mark.parametrize("wanted", ["x", "weight"])
def test_only_what_needs_a_gradient_gets_one(wanted):
    x, gradient = maps((2, 4, 6, 6))
    weight, bias = parameters(4, True)
    {"x": x, "weight": weight}[wanted].requires_grad_()
    instance_norm(x, weight, bias, EPS).backward(gradient)
    assert (x.grad is not None, weight.grad is not None, bias.grad) == (wanted == "x", wanted == "weight", None)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_values_are_written_over_what_they_come_from(shape, dtype, affine):
    x, _ = maps(shape, dtype)
    x = x.contiguous(memory_format=layout(x))
    expected = instance_norm(x, *parameters(shape[1], affine), EPS)
    found = normalise(x, *parameters(shape[1], affine), EPS)
    assert found.data_ptr() == x.data_ptr()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("small", [0, 2**30])
def test_maps_that_are_small_or_lie_otherwise_are_not_written_over(small, monkeypatch):
    monkeypatch.setattr(cpu_norm, "SMALL", small)
    x, _ = maps((1, 8, 6, 16, 16))
    x = x.contiguous(memory_format=layout(x)) if small else x
    kept = x.clone()
    assert torch.equal(normalise(x, None, None, EPS), instance_norm(kept, None, None, EPS))
    assert torch.equal(x, kept)
