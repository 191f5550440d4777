"""Norms by name."""

import pytest
import torch
from autoseg.architectures.blocks.normalization import NORMS, make_norm, usual_norm


def test_batch_norm_in_2d_only_is_usual():
    assert [usual_norm(dims) for dims in (2, 3)] == ["batch", "instance"]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", NORMS)
def test_the_norm_has_scale_and_shift_and_its_axes(kind, dims):
    norm = make_norm(dims, kind, 5)
    assert {name: tuple(p.shape) for name, p in norm.named_parameters()} == {"weight": (5,), "bias": (5,)}
    x = torch.randn(2, 5, *[4] * dims, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 9.0]).reshape(
        2, *[1] * (dims + 1)
    )
    means = norm(x).flatten(2).mean(2).detach()
    if kind == "instance":  # every sample has mean zero
        torch.testing.assert_close(means, torch.zeros(2, 5), atol=1e-5, rtol=0)
    else:  # only the batch has
        torch.testing.assert_close(means.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
        assert means.abs().min() > 0.5
