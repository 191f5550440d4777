import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from autoseg.errors import UserError
from autoseg.training.pretrained import load_pretrained, table_text


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
