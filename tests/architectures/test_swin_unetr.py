"""Swin UNETR (needs MONAI): published count, patch multiples, equality with MONAI's own forward pass."""

import pytest
import torch
from network_specs import count, make, make_spec
from safetensors.torch import save_file

from autoseg import plugins
from autoseg.errors import UserError
from autoseg.inference.adaptation import norm_parameters
from autoseg.training.pretrained import load_pretrained


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
    assert sum(parameter.numel() for parameter in norm_parameters(network).values()) == 17_280  # what ETTA adapts


def published_weights(folder, channels, outputs, wrapping):
    """Write weights under MONAI's own names, as the authors do; returns file and tensors."""
    from monai.networks.nets import SwinUNETR

    torch.manual_seed(1)
    state = SwinUNETR(in_channels=channels, out_channels=outputs, feature_size=12).state_dict()
    if wrapping == "safetensors":
        save_file(state, folder / "swin.safetensors")
        return folder / "swin.safetensors", state
    named = {f"module.{name}": tensor for name, tensor in state.items()} if wrapping == "module" else state
    torch.save({"state_dict": named, "epoch": 3, "best_acc": 0.85}, folder / "swin.pt")
    return folder / "swin.pt", state


@pytest.mark.parametrize("wrapping", ["safetensors", "state_dict", "module"])
def test_published_weights_are_loaded(tmp_path, wrapping):
    pytest.importorskip("monai", reason="MONAI is not installed")
    file, state = published_weights(tmp_path, 1, 5, wrapping)
    network = make("swin_bob", make_spec(3, 4, patch=(32, 32, 64), outputs=5, base=8))
    assert {row.status for row in load_pretrained(network, file)} == {"loaded"}
    ours = network.network.state_dict()
    assert ours.keys() == state.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in state.items())


def test_other_labels_and_channels_than_the_published_ones(tmp_path):
    pytest.importorskip("monai", reason="MONAI is not installed")
    file, state = published_weights(tmp_path, 1, 5, "state_dict")
    network = make("swin_bob", make_spec(3, 4, patch=(32, 32, 64), outputs=3, channels=4, base=8))
    status = {row.name.removeprefix("network."): row.status for row in load_pretrained(network, file)}
    others = {name: found for name, found in status.items() if found != "loaded"}
    assert others == {
        "out.conv.conv.weight": "fresh",
        "out.conv.conv.bias": "fresh",
        "swinViT.patch_embed.proj.weight": "adapted",
        "encoder1.layer.conv1.conv.weight": "adapted",
        "encoder1.layer.conv3.conv.weight": "adapted",
    }
    ours = network.network.state_dict()["swinViT.patch_embed.proj.weight"]
    torch.testing.assert_close(ours.sum(1, keepdim=True), state["swinViT.patch_embed.proj.weight"])


def test_swin_bob_has_its_own_recipe():
    bob, plain = (plugins.load("architecture", name) for name in ("swin_bob", "swin_unetr"))
    assert issubclass(bob, plain)
    assert bob.dims == (3,)
    its_own = {"foreground_fraction": 0.5, "warmup_share": 0.05, "annealing": "cosine"}
    assert bob.recipe == {**plain.recipe, **its_own}
    assert bob.recipe["learning_rate"] == 1e-4
    assert bob.recipe["weight_decay"] == 1e-5


def test_the_split_equals_monais_own_forward_pass():
    pytest.importorskip("monai", reason="MONAI is not installed")
    torch.manual_seed(0)
    network = make("swin_unetr", make_spec(2, 4, patch=(64, 32), channels=2, base=8)).eval()
    x = torch.randn(1, 2, 64, 32)
    with torch.no_grad():
        features = network.encode(x)
        assert [feature.shape[2] for feature in features] == [64, 32, 16, 8, 4, 2]
        assert torch.equal(network(x), network.network(x))
