from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from autoseg.architecture import Architecture
from autoseg.errors import UserError
from autoseg.model_folder import checksums
from autoseg.plans import NetworkSpec
from autoseg.storage import write_json
from autoseg.training.pretrained import head_tensors, load_pretrained, read_weights, table_text


def network(channels=1, kernel=3, outputs=2):
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv3d(channels, 4, kernel), nn.Conv3d(4, outputs, 1))


def test_equal_tensors_are_loaded_and_the_head_of_other_labels_is_fresh(tmp_path):
    source = network()
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    target = network(outputs=5)
    before = target[1].weight.clone()
    table = {row.name: row.status for row in load_pretrained(target, tmp_path)}
    assert table == {"0.weight": "loaded", "0.bias": "loaded", "1.weight": "fresh", "1.bias": "fresh"}
    assert torch.equal(target[0].weight, source[0].weight)
    assert torch.equal(target[1].weight, before)


def test_more_channels_give_the_same_output_for_equal_channels(tmp_path):
    source = network()
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    target = network(channels=4)
    rows = load_pretrained(target, tmp_path / "weights.safetensors")
    assert rows[0].status == "adapted"
    torch.testing.assert_close(target[0].weight.sum(1), source[0].weight[:, 0])
    assert torch.equal(target[0].weight[:, 0], target[0].weight[:, 3])
    assert "1 tensors adapted" in table_text(rows)


def test_kernels_of_another_size_keep_their_sum(tmp_path):
    source = network()
    nn.init.uniform_(source[0].weight, 0.1, 1.0)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    target = network(kernel=5)
    load_pretrained(target, tmp_path)
    assert torch.allclose(target[0].weight.sum((2, 3, 4)), source[0].weight.sum((2, 3, 4)), rtol=1e-4)


def test_a_2d_kernel_in_a_3d_network_sums_to_the_2d_kernel(tmp_path):
    kernel = torch.randn(4, 1, 3, 3)
    state = network().state_dict() | {"0.weight": kernel}
    save_file(state, tmp_path / "weights.safetensors")
    target = network()
    load_pretrained(target, tmp_path)
    assert torch.allclose(target[0].weight.sum(2), kernel, atol=1e-6)


def test_weights_of_something_else_are_refused(tmp_path):
    save_file({"other": torch.ones(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="no tensor of these weights fits"):
        load_pretrained(network(), tmp_path)
    with pytest.raises(UserError, match="no weights found"):
        load_pretrained(network(), tmp_path / "nowhere")


class Net(nn.Module):
    """Stem, a hidden 1x1 convolution with as many inputs as labels, a head registered before another module."""

    def __init__(self, channels=1, outputs=2, hidden=4, deep=3):
        super().__init__()
        torch.manual_seed(channels + outputs)
        self.spec = SimpleNamespace(in_channels=channels, num_outputs=outputs)
        self.stem = nn.Conv3d(channels, hidden, 3)
        self.body = nn.Conv3d(hidden, hidden, deep)
        self.seg_layers = nn.ModuleList([nn.Conv3d(hidden, outputs, 1), nn.Conv3d(hidden, outputs, 1)])
        self.out = nn.ModuleDict({"1": nn.Conv3d(hidden, outputs, 1)})
        self.after = nn.Conv3d(hidden, hidden, 3)


def save_model(folder, network, names, make_model):
    """Write weights and description of a model with these labels; returns its folder."""
    folder.mkdir()
    save_file(network.state_dict(), folder / "weights.safetensors")
    (folder / "validation").mkdir()
    write_json(folder / "validation" / "summary.json", {"mean": {name: {"dice": 0.5} for name in names}})
    return make_model(folder, names) if make_model else folder


def as_model_folder(folder, names):
    (folder / "plans.json").write_text("{}")
    member = {
        "name": "3d", "plans_file": "plans.json", "configuration": "3d", "architecture": "x", "trainer": "x",
        "folds": {"0": "weights.safetensors"}, "mirror_axes": [],
    }  # fmt: skip
    content = {
        "dataset_name": "Dataset001_X", "channel_names": ["CT"], "file_ending": ".nii.gz", "members": [member],
        "labels": {"values": {name: [value] for value, name in enumerate(names, start=1)}},
        "checksums": checksums(folder),
    }  # fmt: skip
    write_json(folder / "model.json", content)
    return folder


HEADS = {f"{name}.{part}" for name in ("seg_layers.0", "seg_layers.1", "out.1") for part in ("weight", "bias")}


@pytest.mark.parametrize("make_model", [None, as_model_folder], ids=["run folder", "model folder"])
def test_heads_of_other_labels_start_fresh_even_with_the_same_size(tmp_path, make_model):
    source = save_model(tmp_path / "old", Net(), ("liver", "tumour"), make_model)
    target = Net()
    rows = load_pretrained(target, source, labels=("tumour", "liver"))
    assert {row.name for row in rows if row.status == "fresh"} == HEADS
    assert {row.reason for row in rows if row.status == "fresh"} == {"other labels"}
    assert "fresh    out.1.weight  other labels" in table_text(rows)
    for labels in (("liver", "tumour"), None):
        assert {row.status for row in load_pretrained(Net(), source, labels=labels)} == {"loaded"}


def test_heads_of_a_network_that_learnt_without_labels_start_fresh(tmp_path):
    """Whatever else its record says, and whichever of its files is named."""
    source = save_model(tmp_path / "fold_all", Net(), (), None)
    for place in (source, source / "weights.safetensors", source.parent):
        write_json(source / "run.json", {"command": "pretrain"})
        rows = load_pretrained(Net(), place, labels=("liver", "tumour"))
        assert {row.name for row in rows if row.status == "fresh"} == HEADS
        assert {row.reason for row in rows if row.status == "fresh"} == {"learnt without labels"}
        for record in ({"command": "train"}, {}):
            write_json(source / "run.json", record)
            rows = load_pretrained(Net(), place, labels=("liver", "tumour"))
            assert {row.status for row in rows} == {"loaded"}


def test_a_linear_layer_behind_everything_is_a_head_too():
    last = Net()
    last.head = nn.Linear(4, 2 * 8)  # to the voxels of a token
    assert head_tensors(last) == HEADS | {"head.weight", "head.bias"}
    between = Net()
    between.joins, between.out2 = nn.Linear(4, 16), nn.Conv3d(4, 2, 3)
    assert head_tensors(between) == HEADS | {"out2.weight", "out2.bias"}


def test_heads_stay_as_initialised(tmp_path):
    source = Net()
    nn.init.zeros_(source.out["1"].weight)
    folder = save_model(tmp_path / "old", source, ("a",), None)
    target = Net()
    before = target.out["1"].weight.clone()
    load_pretrained(target, folder, labels=("b",))
    assert torch.equal(target.out["1"].weight, before)
    load_pretrained(target, folder / "weights.safetensors", labels=("b",))
    assert torch.equal(target.out["1"].weight, before)


def test_only_the_stem_is_adapted_to_other_channels(tmp_path):
    """A hidden convolution of another width, and a head behind another width, keep nothing of the old one."""
    save_file(Net(hidden=4).state_dict(), tmp_path / "weights.safetensors")
    wider = Net(channels=3)
    wider.after, wider.seg_layers[0] = nn.Conv3d(6, 4, 3), nn.Conv3d(6, 2, 1)
    wider.body = nn.Conv3d(4, 4, 5)
    rows = {row.name: row.status for row in load_pretrained(wider, tmp_path)}
    assert {name for name, status in rows.items() if status == "adapted"} == {"stem.weight", "body.weight"}
    assert {name for name, status in rows.items() if status == "fresh"} == {"after.weight", "seg_layers.0.weight"}


def test_heads_of_another_kernel_size_are_not_adapted(tmp_path):
    source = Net()
    source.seg_layers[0] = nn.Conv3d(4, 2, 3)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    rows = {row.name: row.status for row in load_pretrained(Net(), tmp_path)}
    assert rows["seg_layers.0.weight"] == "fresh"


class Named(Architecture):
    """One convolution in a wrapper, whose published name lacks the wrapper's."""

    def __init__(self, spec):
        super().__init__(spec)
        self.wrapped = nn.ModuleDict({"stem": nn.Conv3d(1, 4, 3)})

    def translate_weights(self, weights):
        return {f"wrapped.{name}" if name.startswith("stem.") else name: t for name, t in weights.items()}


@pytest.mark.parametrize("wrapping", ["plain", "state_dict", "model", "network_weights", "teacher", "module."])
def test_torch_files_of_others_and_their_names(tmp_path, wrapping):
    spec = NetworkSpec(
        dims=3, in_channels=1, num_outputs=2, patch_size=(8, 8, 8), strides=((1, 1, 1),), kernel_sizes=((3, 3, 3),),
        features=(4,), blocks_encoder=(1,), blocks_decoder=(),
    )  # fmt: skip
    source, target = Named(spec), Named(spec)
    state = {name.removeprefix("wrapped."): tensor for name, tensor in source.state_dict().items()}
    if wrapping == "module.":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    wrapped = state if wrapping in ("plain", "module.") else {wrapping: state, "epoch": 3}
    torch.save(wrapped, tmp_path / "published.pt")
    rows = load_pretrained(target, tmp_path / "published.pt")
    assert [row.status for row in rows] == ["loaded", "loaded"]
    assert torch.equal(target.wrapped["stem"].weight, source.wrapped["stem"].weight)
    load_pretrained(Named(spec), tmp_path / "published.pt")
    save_file(source.state_dict(), tmp_path / "own.safetensors")  # its own names stay
    assert {row.status for row in load_pretrained(target, tmp_path / "own.safetensors")} == {"loaded"}


class Trap:
    """What a pickle could run."""

    def __reduce__(self):
        return (print, ("a pickle ran",))


def test_torch_files_run_nothing(tmp_path, capsys):
    file = tmp_path / "hostile.pth"
    torch.save({"state_dict": network().state_dict(), "trap": Trap()}, file)
    with pytest.raises(UserError, match="not readable as plain weights"):
        read_weights(file)
    assert "a pickle ran" not in capsys.readouterr().out
    torch.save({"epoch": 3}, file)
    with pytest.raises(UserError, match="no named tensors"):
        read_weights(file)
    file.write_bytes(b"nothing")
    with pytest.raises(UserError, match="not readable as plain weights"):
        read_weights(file)
    with pytest.raises(UserError, match="not readable as safetensors"):
        read_weights(file.rename(tmp_path / "weights.safetensors"))
