"""The soft mixture of experts: parameters, weights of dispatch and combine, padding, order."""

import pytest
import torch
from autoseg.architectures.blocks.soft_moe import Experts, SoftMoE, UnitNorm


def reference(moe, x):
    """The written rule for one sample (N, C): logits of all tokens and slots, two softmaxes, expert by expert."""
    x = moe.norm(x)
    number, width = x.shape
    groups = [x[start : start + moe.count].mean(0) for start in range(0, number, moe.count)]
    slots = torch.stack([moe.to_slots(group).view(moe.count, width) for group in groups], 1)  # (E, G, C)
    slots = moe.slot_norm(slots).flatten(0, 1)
    logits = x @ slots.T
    dispatch, combine = logits.softmax(0), logits.softmax(1)
    torch.testing.assert_close(dispatch.sum(0), torch.ones_like(dispatch[0]))
    torch.testing.assert_close(combine.sum(1), torch.ones_like(combine[:, 0]))
    inputs = (dispatch.T @ x).view(moe.count, len(groups), width)
    experts, outputs = moe.experts, []
    for expert in range(moe.count):
        hidden = torch.nn.functional.gelu(inputs[expert] @ experts.weight1[expert] + experts.bias1[expert])
        outputs.append(hidden @ experts.weight2[expert] + experts.bias2[expert])
    return combine @ torch.cat(outputs)


def test_published_parameter_count():
    assert sum(p.numel() for p in SoftMoE(96, 4).parameters()) == 333_888


@pytest.mark.parametrize("sizes", [(4, 4), (3, 5), (2, 3, 3), (1, 2)])
def test_equal_to_the_written_rule_also_with_a_short_last_group(sizes):
    torch.manual_seed(0)
    moe, x = SoftMoE(6, 4).double(), torch.randn(2, *sizes, 6, dtype=torch.float64)
    with torch.no_grad():
        moe.norm.gamma.normal_()
        moe.slot_norm.gamma.normal_()
        y = moe(x)
        assert y.shape == x.shape
        for sample in range(2):
            torch.testing.assert_close(y[sample].flatten(0, -2), reference(moe, x[sample].flatten(0, -2)))


def test_a_constant_stays_its_norm_when_experts_do_nothing():
    moe = SoftMoE(7, 3)
    moe.experts = torch.nn.Identity()
    for value in (1.0, -4.0):
        y = moe(torch.full((1, 2, 5, 7), value))
        torch.testing.assert_close(y, torch.full_like(y, value / abs(value)))


def test_order_matters_and_samples_do_not_mix():
    torch.manual_seed(0)
    moe, x = SoftMoE(6, 4), torch.randn(2, 3, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(moe(x)[:1], moe(x[:1]))
        turned = moe(x.roll(1, 1))
    assert (turned - moe(x).roll(1, 1)).abs().max() > 1e-4


def test_every_token_reaches_every_token():
    torch.manual_seed(0)
    moe, x = SoftMoE(6, 4), torch.randn(1, 8, 8, 6)
    other = x.clone()
    other[0, 0, 0] = -3 * other[0, 0, 0]
    with torch.no_grad():
        assert ((moe(x) - moe(other)).abs().amax(-1) > 0).all()


def test_the_norm_by_hand():
    assert UnitNorm(4)(torch.tensor([3.0, 0, 4, 0])).tolist() == pytest.approx([1.2, 0, 1.6, 0])


def test_experts_start_as_linear_layers_do():
    torch.manual_seed(0)
    experts = Experts(16, 3, 64)
    for weight, fan_in in ((experts.weight1, 16), (experts.bias1, 16), (experts.weight2, 64), (experts.bias2, 64)):
        assert weight.abs().max() <= fan_in**-0.5
        assert weight.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.2)


def test_gradients_under_bfloat16():
    moe = SoftMoE(8, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = moe(torch.randn(1, 5, 5, 8, generator=torch.Generator().manual_seed(0)))
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in moe.parameters())
