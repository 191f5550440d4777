"""Swin UNETR (needs MONAI): published count, patch multiples, equality with MONAI's own forward pass."""

import pytest
import torch
from network_specs import count, make, make_spec

from autoseg import plugins
from autoseg.errors import UserError


def test_without_monai_the_mend_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "monai.networks.nets", None)
    with pytest.raises(UserError, match=r"pip install .*monai"):
        make("swin_unetr", make_spec(3, 4, patch=(32, 32, 64), base=8))


def test_patches_are_multiples_of_32():
    kind = plugins.load("architecture", "swin_unetr")
    assert kind.patch_multiple(make_spec(3, patch=(64, 32, 32))) == (32, 32, 32)
    assert kind.patch_multiple(make_spec(3, patch=(16, 32, 32))) == (32, 32, 64)
    assert kind.adapt_spec(make_spec(3, base=32)).options["feature_size"] == 48
    assert kind.adapt_spec(make_spec(3, base=8)).options["feature_size"] == 12
    with pytest.raises(UserError, match="multiples of"):
        make("swin_unetr", make_spec(3, patch=(40, 64, 32)))


def test_published_parameter_count():
    pytest.importorskip("monai", reason="MONAI is not installed")
    network = make("swin_unetr", make_spec(3, 6, patch=(96,) * 3, outputs=14))
    assert count(network) == 62_187_296
    norms = [m for m in network.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert sum(count(norm) for norm in norms) == 17_280


def test_the_split_equals_monais_own_forward_pass():
    pytest.importorskip("monai", reason="MONAI is not installed")
    torch.manual_seed(0)
    network = make("swin_unetr", make_spec(2, 4, patch=(64, 32), channels=2, base=8)).eval()
    x = torch.randn(1, 2, 64, 32)
    with torch.no_grad():
        features = network.encode(x)
        assert [feature.shape[2] for feature in features] == [64, 32, 16, 8, 4, 2]
        assert torch.equal(network(x), network.network(x))
