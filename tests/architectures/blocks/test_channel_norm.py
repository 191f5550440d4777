"""Layer norm over the channels of maps."""

import pytest
import torch
from autoseg.architectures.blocks.channel_norm import ChannelNorm


@pytest.mark.parametrize("dims", [2, 3])
def test_every_voxel_is_normalised_by_itself(dims):
    x = torch.randn(2, 6, *[3] * dims, generator=torch.Generator().manual_seed(0)) * 5 + 2
    norm = ChannelNorm(6, eps=1e-5)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(6.0))
        norm.bias.fill_(0.5)
    mean, variance = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
    shape = (1, 6, *[1] * dims)
    wanted = (x - mean) / (variance + 1e-5).sqrt() * norm.weight.view(shape) + 0.5
    torch.testing.assert_close(norm(x), wanted, rtol=1e-4, atol=1e-5)
