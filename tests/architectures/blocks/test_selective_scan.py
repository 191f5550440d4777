"""The selective scan against the plain recurrence, its cost, its memory, the kernel's layout."""

import pytest
import torch
from autoseg.architectures.blocks import selective_scan as scans
from autoseg.architectures.blocks.selective_scan import selective_scan
from torch.utils.flop_counter import FlopCounterMode
from work_counter import Work


def recurrence(u, delta, a, b, c, d):
    """The definition, one position after the other."""
    state, outputs = u.new_zeros(u.shape[0], *a.shape), []
    for t in range(u.shape[1]):
        state = torch.exp(delta[:, t, :, None] * a) * state + (delta[:, t] * u[:, t])[..., None] * b[:, t, None]
        outputs.append((state * c[:, t, None]).sum(-1) + d * u[:, t])
    return torch.stack(outputs, 1)


def make_inputs(batch=2, length=100, width=3, state=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    delta = torch.nn.functional.softplus(draw(batch, length, width) - 2)
    b, c = draw(batch, length, state), draw(batch, length, state)
    return draw(batch, length, width), delta, -torch.exp(draw(width, state)), b, c, draw(width)


def gradients(function, inputs, weight):
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    y = function(*inputs)
    return y, torch.autograd.grad((y * weight).sum(), inputs)


def test_the_worked_example():
    one = torch.ones(1, 2, 1)
    y = selective_scan(torch.tensor([[[1.0], [2.0]]]), one, torch.tensor([[-1.0]]), one, one, torch.zeros(1))
    torch.testing.assert_close(y.flatten(), torch.tensor([1.0, 2.36788]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 31, 32, 33, 257, 600])
def test_output_and_gradients_are_those_of_the_float64_recurrence(length):
    inputs = make_inputs(length=length)
    weight = torch.randn(2, length, 3, generator=torch.Generator().manual_seed(1))
    y, slopes = gradients(selective_scan, inputs, weight)
    wanted, wanted_slopes = gradients(recurrence, [tensor.double() for tensor in inputs], weight.double())
    torch.testing.assert_close(y.double(), wanted, rtol=1e-4, atol=1e-4)
    for slope, other in zip(slopes, wanted_slopes, strict=True):
        assert (slope - other).abs().max() <= 1e-4 * other.abs().max().clamp(min=1)


def test_a_long_scan_is_exact_too():
    inputs = make_inputs(batch=1, length=4096, width=2, state=2)
    weight = torch.randn(1, 4096, 2, generator=torch.Generator().manual_seed(1))
    y, slopes = gradients(selective_scan, inputs, weight)
    wanted, wanted_slopes = gradients(recurrence, [tensor.double() for tensor in inputs], weight.double())
    torch.testing.assert_close(y.double(), wanted, rtol=1e-4, atol=1e-4)
    for slope, other in zip(slopes, wanted_slopes, strict=True):
        assert (slope - other).abs().max() <= 1e-4 * other.abs().max()


def test_segments_change_nothing():
    inputs = make_inputs(length=150)
    weight = torch.ones(2, 150, 3)
    whole = gradients(selective_scan, inputs, weight)
    parts = gradients(lambda u, delta, a, b, c, d: scans._scan(u, delta, a[None], b, c, 40)[0] + d * u, inputs, weight)
    torch.testing.assert_close(parts[0], whole[0])
    torch.testing.assert_close(parts[1], whole[1])


def test_wide_states_are_scanned_one_after_the_other_with_the_same_result(monkeypatch):
    inputs = make_inputs(length=150)
    weight = torch.ones(2, 150, 3)
    narrow = gradients(selective_scan, inputs, weight)
    monkeypatch.setattr(scans, "WIDE", 1)
    wide = gradients(selective_scan, inputs, weight)
    torch.testing.assert_close(wide, narrow)


def test_segments_bound_the_states_of_the_whole_batch(monkeypatch):
    segments = []
    monkeypatch.setattr(scans, "_scan", lambda *arguments: segments.append(arguments[-1]) or [None])
    for batch in (1, 2, 64):
        scans.scan_in_segments(*make_inputs(batch, 8, 3, 4)[:5], elements=3 * 4 * 1000)
    assert segments == [1000, 500, scans.LEAST_SEGMENT]


def test_gradients_pass_gradcheck_across_segments():
    u, delta, a, b, c, _ = (tensor.double().requires_grad_() for tensor in make_inputs(1, 35, 2, 2))
    scan = lambda *tensors: scans._scan(*tensors, 17)[0]  # noqa: E731
    assert torch.autograd.gradcheck(scan, (u, delta, a[None], b, c))


def make_groups():
    """Return inputs of three scans at once."""
    groups = [make_inputs(2, 50, 3, 4, seed) for seed in range(3)]
    return [
        torch.stack(tensors, axis) for tensors, axis in zip(zip(*groups, strict=True), (1, 1, 0, 1, 1, 0), strict=True)
    ]


def test_several_scans_at_once_are_those_scans():
    inputs, weight = make_groups(), torch.randn(2, 3, 50, 3, generator=torch.Generator().manual_seed(1))
    one_by_one = lambda u, delta, a, b, c, d: torch.stack(  # noqa: E731
        [selective_scan(u[:, g], delta[:, g], a[g], b[:, g], c[:, g], d[g]) for g in range(3)], 1
    )
    torch.testing.assert_close(gradients(selective_scan, inputs, weight), gradients(one_by_one, inputs, weight))


def test_the_operations_are_well_formed():
    inputs = [tensor.requires_grad_() for tensor in make_inputs(length=40)[:5]]
    inputs[2] = inputs[2].detach()[None].requires_grad_()
    torch.library.opcheck(scans._scan, (*inputs, 16))
    starts = scans._scan(*inputs, 16)[1]
    tensors = [tensor.detach() for tensor in (torch.ones(2, 40, 3), *inputs, starts)]
    torch.library.opcheck(scans._scan_backward, (*tensors, 16))


@pytest.mark.parametrize("inputs", [make_inputs(2, 50, 3, 4), make_groups()], ids=["one", "groups"])
def test_operations_are_counted(inputs):
    """Else networks of scans would get more steps than others where operations are what all get equally much of."""
    u, delta, a, b, c, _ = (tensor.requires_grad_() for tensor in inputs)
    elements = u.numel() * a.shape[-1]
    with FlopCounterMode(display=False) as forward:
        y = selective_scan(u, delta, a, b, c)
    assert forward.get_total_flops() == scans.OPERATIONS * elements
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert backward.get_total_flops() == scans.BACKWARD_OPERATIONS * elements


def test_extreme_decays_stay_finite():
    u, _, a, b, c, d = make_inputs(length=200)
    for delta in (1e-9, 500.0):
        steps = torch.full_like(u, delta)
        y, slopes = gradients(selective_scan, (u, steps, a, b, c, d), torch.ones_like(u))
        assert y.isfinite().all()
        assert all(slope.isfinite().all() for slope in slopes)


def test_low_precision_inputs_are_scanned_in_float32():
    u, delta, a, b, c, d = make_inputs()
    low = u.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = selective_scan(low, delta, a, b, c, d)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, selective_scan(low.float(), delta, a, b, c, d).bfloat16(), rtol=0, atol=0)


def scan_work(length):
    """What the scan and its gradient do inside of their two operations."""
    u, delta, a, b, c, _ = make_inputs(batch=1, length=length, width=2, state=2)
    with Work() as counted:
        starts = scans._forward(u, delta, a[None], b, c, 2**20)[1]
        scans._backward(u, u, delta, a[None], b, c, starts, 2**20)
    return counted


def loop_work(length):
    inputs = make_inputs(batch=1, length=length, width=2, state=2)
    with Work() as counted:
        gradients(recurrence, inputs, torch.ones(1, length, 2))
    return counted


def test_the_cost_is_linear_and_the_operations_are_few():
    short, long = scan_work(1024), scan_work(8 * 1024)
    assert short.operations > 50
    assert long.elements < 8.1 * short.elements
    assert long.operations < 2 * short.operations
    # the loop spends its time on its operations, of which it has far over 20 times as many at length 4096
    assert 4 * loop_work(1024).operations > 50 * scan_work(4096).operations


def test_states_of_one_segment_are_kept_for_the_backward_pass():
    inputs = make_inputs(batch=1, length=2048, width=16, state=16)
    u, delta, a, b, c, _ = (tensor.requires_grad_() for tensor in inputs)
    kept = 0

    def count(tensor):
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        scans.scan_in_segments(u, delta, a, b, c, elements=16 * 16 * 256)
    assert kept < 2048 * 16 * 16 / 3  # of the states of the sequence; the inputs are a quarter of that


def test_the_kernel_gets_its_own_layout():
    inputs = make_inputs()

    def kernel(u, delta, a, b, c):
        assert all(tensor.is_contiguous() for tensor in (u, delta, a, b, c))
        assert u.shape == delta.shape == (2, 3, 100)
        assert b.shape == c.shape == (2, 4, 100)
        return recurrence(u.mT, delta.mT, a, b.mT, c.mT, torch.zeros(3)).mT

    y = scans.scan_by_kernel(kernel, *inputs[:5])
    torch.testing.assert_close(y, selective_scan(*inputs[:5]), rtol=1e-4, atol=1e-5)


def test_the_kernel_gets_groups_in_the_channels():
    inputs = make_groups()

    def kernel(u, delta, a, b, c):
        assert u.shape == delta.shape == (2, 9, 50)
        assert a.shape == (9, 4)
        assert b.shape == c.shape == (2, 3, 4, 50)
        parts = zip(u.chunk(3, 1), delta.chunk(3, 1), a.chunk(3), b.unbind(1), c.unbind(1), strict=True)
        zero = torch.zeros(3)
        return torch.cat([recurrence(u.mT, delta.mT, a, b.mT, c.mT, zero).mT for u, delta, a, b, c in parts], 1)

    torch.testing.assert_close(
        scans.scan_by_kernel(kernel, *inputs[:5]), scans.scan_in_segments(*inputs[:5]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_agrees_with_the_cpu():
    inputs = make_inputs(length=600)
    weight = torch.randn(2, 600, 3, generator=torch.Generator().manual_seed(1))
    y, slopes = gradients(selective_scan, inputs, weight)
    there, there_slopes = gradients(selective_scan, [tensor.cuda() for tensor in inputs], weight.cuda())
    torch.testing.assert_close(there.cpu(), y, rtol=1e-4, atol=1e-4)
    for slope, other in zip(slopes, there_slopes, strict=True):
        torch.testing.assert_close(other.cpu(), slope, rtol=1e-3, atol=1e-3)
