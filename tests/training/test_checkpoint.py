import copy
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from torch import nn

from autoseg.errors import UserError
from autoseg.storage import file_hash
from autoseg.training.averaging import WeightAverage
from autoseg.training.checkpoint import Progress, State, load_state, load_weights, save_state, save_weights
from autoseg.training.loop import restore_scaler, scaler_state


def trained(seed=0, steps=3):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2, affine=True), nn.Conv2d(2, 1, 1))
    optimizer = torch.optim.AdamW(module.parameters(), 1e-2)
    for _ in range(steps):
        module(torch.randn(2, 1, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return module, optimizer


def test_what_a_module_tells_of_its_weights_goes_into_their_file(tmp_path):
    module, _ = trained()
    save_weights(tmp_path, module)
    with safe_open(tmp_path / "weights.safetensors", "pt") as content:
        assert content.metadata() is None
    module.weights_metadata = {"heads": "3"}
    save_weights(tmp_path, module)
    with safe_open(tmp_path / "weights.safetensors", "pt") as content:
        assert content.metadata() == {"heads": "3"}


def test_a_state_comes_back_bit_for_bit(tmp_path):
    module, optimizer = trained()
    save_state(tmp_path, State({"network": module}, {"network": optimizer}, Progress(step=3, elapsed=1.5)))
    other, other_optimizer = trained(seed=1, steps=1)
    progress = Progress()
    load_state(tmp_path, State({"network": other}, {"network": other_optimizer}, progress))
    assert (progress.step, progress.elapsed) == (3, 1.5)
    for a, b in zip(module.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    x = torch.randn(2, 1, 8, 8)
    for m, o in ((module, optimizer), (other, other_optimizer)):
        m(x).square().mean().backward()
        o.step()
    assert torch.equal(module[0].weight, other[0].weight)


@pytest.mark.parametrize("position", [3, 60, -5])
def test_a_damaged_checkpoint_is_named(tmp_path, position):
    module, optimizer = trained()
    state = State({"network": module}, {"network": optimizer}, Progress())
    save_state(tmp_path, state)
    content = bytearray((tmp_path / "state.pt").read_bytes())
    content[position] ^= 1
    (tmp_path / "state.pt").write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"state\.pt: the checkpoint is damaged"):
        load_state(tmp_path, state)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    module, optimizer = trained()
    save_state(tmp_path, State({"network": module}, {"network": optimizer}, Progress()))
    other = nn.Conv2d(1, 2, 5)
    state = State({"network": other}, {"network": torch.optim.SGD(other.parameters(), 0.1)}, Progress())
    with pytest.raises(UserError, match="does not fit the network"):
        load_state(tmp_path, state)


def test_weights_are_safetensors_and_shared_tensors_are_written_once_each(tmp_path):
    module, _ = trained()
    module[2].bias = nn.Parameter(torch.ones(1))
    module.register_buffer("same", module[2].bias.data)
    digest = save_weights(tmp_path, module)
    assert digest == file_hash(tmp_path / "weights.safetensors")
    loaded = load_weights(tmp_path / "weights.safetensors")
    assert set(loaded) == set(module.state_dict())
    assert torch.equal(loaded["same"], torch.ones(1))


def test_the_weight_average_follows_its_formula():
    source = nn.Linear(1, 1, bias=False)
    source.weight.data.fill_(0.0)
    average = WeightAverage(source, decay=0.9)
    expected = 0.0
    for step in range(200):
        source.weight.data.fill_(float(step))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)
    assert not average.module.weight.requires_grad
    assert copy.deepcopy(source).weight.item() == 199.0


def test_the_scale_of_half_precision_gradients_is_kept(tmp_path):
    def fabric(scale):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return SimpleNamespace(_precision=SimpleNamespace(scaler=scaler))

    module = torch.nn.Linear(2, 2)
    before, after = fabric(1024.0), fabric(65536.0)
    save_state(tmp_path, State({"network": module}, {}, Progress(), scaler_state(before)))
    state = State({"network": module}, {}, Progress())
    load_state(tmp_path, state)
    restore_scaler(after, state.extra)
    assert after._precision.scaler.state_dict() == before._precision.scaler.state_dict()
    assert after._precision.scaler.get_scale() == 1024.0
    assert scaler_state(SimpleNamespace(_precision=object())) == {}
