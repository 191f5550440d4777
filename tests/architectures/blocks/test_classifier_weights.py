"""Published encoders: every tensor of theirs finds its place, and nothing else moves."""

import torch
from autoseg.architectures.blocks.classifier_weights import mscan_weights, resnet_weights, swin_weights
from network_specs import make, make_spec
from safetensors.torch import save_file

from autoseg.training.pretrained import load_pretrained

UNIT = "attn.spatial_gating_unit."


def norm(name):
    return [f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]


def both(name):
    return [f"{name}.weight", f"{name}.bias"]


def mscan_names(depths=(3, 3, 5, 2)):
    """The published names, in the order of the layers."""
    names = []
    for stage, depth in enumerate(depths, start=1):
        place = f"patch_embed{stage}"
        if stage == 1:
            names += [*both(f"{place}.proj.0"), *norm(f"{place}.proj.1")]
            names += [*both(f"{place}.proj.3"), *norm(f"{place}.proj.4")]
        else:
            names += [*both(f"{place}.proj"), *norm(f"{place}.norm")]
        for number in range(depth):
            block = f"block{stage}.{number}."
            names += [f"{block}layer_scale_1", f"{block}layer_scale_2"]
            names += [*norm(f"{block}norm1"), *norm(f"{block}norm2"), *both(f"{block}attn.proj_1")]
            names += [name for strip in range(3) for way in (1, 2) for name in both(f"{block}{UNIT}conv{strip}_{way}")]
            names += [name for conv in ("conv0", "conv3") for name in both(f"{block}{UNIT}{conv}")]
            names += [*both(f"{block}attn.proj_2"), *both(f"{block}mlp.fc1"), *both(f"{block}mlp.dwconv.dwconv")]
            names += both(f"{block}mlp.fc2")
        names += both(f"norm{stage}")
    return names


def test_every_tensor_of_mscan_has_its_place(tmp_path):
    network = make("mcanet", make_spec(2, 6, patch=(128, 128), channels=3, outputs=2))
    found = mscan_weights({f"backbone.{name}": torch.zeros(3) for name in mscan_names()}, 2)
    ours = {name: tensor.shape for name, tensor in network.state_dict().items() if name.startswith("stages.")}
    assert found.keys() == ours.keys()
    theirs = {"block1.0.attn.spatial_gating_unit.conv0_1.weight": (32, 1, 1, 7),
              "block1.2.attn.spatial_gating_unit.conv2_2.weight": (32, 1, 21, 1),
              "block2.0.attn.spatial_gating_unit.conv0.weight": (64, 1, 5, 5),
              "block4.1.mlp.dwconv.dwconv.weight": (1024, 1, 3, 3), "block3.4.layer_scale_2": (160,),
              "patch_embed1.proj.3.weight": (32, 16, 3, 3), "patch_embed4.proj.weight": (256, 160, 3, 3),
              "norm3.bias": (160,), "head.weight": (1000, 256)}  # fmt: skip
    weights = {name: torch.randn(shape) for name, shape in theirs.items()}
    weights |= {f"block{stage}.{last}.norm1.weight": torch.ones(1) for stage, last in ((1, 2), (2, 2), (3, 4), (4, 1))}
    save_file(weights, tmp_path / "mscan.safetensors")
    rows = {row.name: row.status for row in load_pretrained(network, tmp_path / "mscan.safetensors")}
    assert sum(status == "loaded" for status in rows.values()) == len(theirs) - 1
    state = network.state_dict()
    torch.testing.assert_close(
        state["stages.0.1.attention.strips.0.0.weight"], weights["block1.0.attn.spatial_gating_unit.conv0_1.weight"]
    )
    torch.testing.assert_close(state["stages.2.5.scale2"].flatten(), weights["block3.4.layer_scale_2"])
    torch.testing.assert_close(state["stages.2.6.bias"], weights["norm3.bias"])


def test_a_resnet_and_a_swin_start_the_pyramids_of_hiformer(tmp_path):
    network = make("hiformer", make_spec(2, 4, patch=(32, 32), base=4, size="s"))
    fresh = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    cnn = {name: torch.randn(t.shape) for name, t in network.cnn.state_dict().items() if t.is_floating_point()}
    assert {"conv1.weight", "bn1.running_var", "layer3.5.conv2.weight", "layer2.0.downsample.0.weight"} <= cnn.keys()
    swin = {f"layers.{name}": torch.randn(tensor.shape) for name, tensor in network.swin.state_dict().items()}
    swin |= {
        f"layers.{name.replace('.', '.downsample.', 1)}": torch.randn(tensor.shape)
        for name, tensor in network.merge.state_dict().items()
    }
    assert {
        "layers.0.blocks.1.attn.relative_position_bias_table", "layers.2.blocks.5.mlp.fc2.bias",
        "layers.1.downsample.reduction.weight", "layers.0.downsample.norm.bias",
    } <= swin.keys()  # fmt: skip
    other = {"layers.3.blocks.0.norm1.weight": torch.zeros(8), "fc.weight": torch.zeros(5, 8)}
    save_file(cnn | swin | other, tmp_path / "both.safetensors")
    rows = {row.name: row.status for row in load_pretrained(network, tmp_path / "both.safetensors")}
    state = network.state_dict()
    moved = {name for name, tensor in state.items() if not torch.equal(tensor, fresh[name])}
    assert moved == {name for name, status in rows.items() if status == "loaded"}
    assert len(moved) == len(cnn) + len(swin)
    assert torch.equal(state["cnn.layer1.0.conv1.weight"], cnn["layer1.0.conv1.weight"])
    assert torch.equal(state["merge.1.reduction.weight"], swin["layers.1.downsample.reduction.weight"])
    assert network.translate_weights(state) is state  # its own


def test_a_resnet_starts_the_convolutions_of_paratranscnn(tmp_path):
    network = make("paratranscnn", make_spec(2, 4, patch=(32, 32), base=4))
    weights = {name: torch.randn(t.shape) for name, t in network.cnn.state_dict().items() if t.is_floating_point()}
    weights["conv1.weight"] = torch.randn(8, 3, 7, 7)
    save_file(weights, tmp_path / "resnet34.safetensors")
    rows = {row.name: row.status for row in load_pretrained(network, tmp_path / "resnet34.safetensors")}
    assert rows.pop("cnn.conv1.weight") == "adapted"  # to one channel
    assert {name for name, status in rows.items() if status == "loaded"} == {
        f"cnn.{name}" for name in weights if name != "conv1.weight"
    }
    assert network.translate_weights(network.state_dict()).keys() == network.state_dict().keys()


def test_other_weights_are_left_alone():
    other = {"decoder.layer1.weight": torch.zeros(1), "stages.0.weight": torch.zeros(1)}
    assert resnet_weights(other, "cnn.") == swin_weights(other, "a.", "b.") == mscan_weights(other, 2) == {}
