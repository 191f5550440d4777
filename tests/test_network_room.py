"""Networks and patches that are larger than the memory are told before they are allocated."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from model_factory import make_plans, write_model
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from autoseg import network_room
from autoseg.architecture import Architecture
from autoseg.demo import bundled_dataset
from autoseg.errors import UserError
from autoseg.inference import Predictor
from autoseg.network_room import check_patch, takes_patch
from autoseg.plugins import build_network, load
from autoseg.training import train
from autoseg.workspace import Workspace


@pytest.fixture
def configuration():
    return make_plans("3d", channels=2, outputs=3).configuration("3d")


def free(monkeypatch, size):
    monkeypatch.setattr(network_room, "available_memory", lambda: size)


def test_weights_are_counted_before_they_are_allocated(monkeypatch, configuration):
    network = build_network("plain_unet", configuration.network)
    exact = 4 * sum(parameter.numel() for parameter in network.parameters())
    free(monkeypatch, exact)
    build_network("plain_unet", configuration.network)
    free(monkeypatch, exact - 1)
    with pytest.raises(UserError, match=r"the weights of PlainUNet with features \(4, 6\).* GiB are free"):
        build_network("plain_unet", configuration.network)


def test_nothing_is_allocated_for_a_network_that_does_not_fit(monkeypatch, configuration):
    wide = configuration.network.model_copy(update={"features": (8192, 8192)})  # 36 GB
    free(monkeypatch, 2**20)
    with pytest.raises(UserError, match=r"features \(8192, 8192\).*blocks_encoder \(1, 1\) need [0-9.]+ GiB"):
        build_network("plain_unet", wide)


def test_a_network_of_fewer_weights_than_a_u_net_is_built(monkeypatch, configuration):
    class Small(Architecture):
        def __init__(self, spec):
            super().__init__(spec)
            self.layer = torch.nn.Linear(1, 1)

    free(monkeypatch, 8)
    assert Small(configuration.network).layer.weight.numel() == 1
    free(monkeypatch, 7)
    with pytest.raises(UserError, match="Small"):
        Small(configuration.network)


def test_a_network_that_cannot_be_traced_is_built(monkeypatch, configuration):
    class ReadsValues(Architecture):
        def __init__(self, spec):
            super().__init__(spec)
            self.value = torch.ones(1).item() + int(torch.ones(3).nonzero().sum())

    free(monkeypatch, 1)
    assert ReadsValues(configuration.network).value == 4


def test_shapes_alone_are_traced_at_any_size(monkeypatch, configuration):
    wide = configuration.network.model_copy(update={"features": (8192, 8192)})
    free(monkeypatch, 1)
    with FakeTensorMode():
        network = build_network("plain_unet", wide)
    assert isinstance(next(network.parameters()), FakeTensor)


def test_what_cannot_be_traced_by_devices_is_traced_by_fake_tensors(monkeypatch, configuration):
    class NamesTheDevice(Architecture):
        def __init__(self, spec):
            super().__init__(spec)
            self.layer = torch.nn.Linear(2, 1, bias=False)
            self.layer.weight.data += torch.ones(1, 2, device="cpu")

    free(monkeypatch, 7)
    with pytest.raises(UserError, match="NamesTheDevice"):
        NamesTheDevice(configuration.network)
    free(monkeypatch, 8)
    assert NamesTheDevice(configuration.network).layer.weight.device.type == "cpu"


def test_a_large_network_is_told_without_loading_what_traces_in_seconds():
    code = """if True:
        import sys
        from model_factory import make_plans
        from autoseg import network_room
        from autoseg.errors import UserError
        from autoseg.plugins import build_network

        network_room.available_memory = lambda: 2**20
        spec = make_plans("3d", channels=1, outputs=3).configuration("3d").network
        try:
            build_network("plain_unet", spec.model_copy(update={"kernel_sizes": ((127,) * 3,) * 2}))
        except UserError as error:
            print(error.what.split(" need ")[0], "torch._dynamo" in sys.modules)
    """
    paths = {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **paths}, capture_output=True, text=True)
    assert done.stdout.startswith("the weights of PlainUNet with features (4, 6), kernel_sizes ((127, 127"), done.stderr
    assert done.stdout.endswith("False\n")


@pytest.mark.parametrize("batch_size", [1, 3])
def test_patches_must_fit_into_the_memory(monkeypatch, configuration, batch_size):
    kind = load("architecture", "plain_unet")
    exact = 4 * 8 * 16 * 16 * (2 + 3) * batch_size
    free(monkeypatch, exact)
    check_patch(configuration, kind, where="plans.json", batch_size=batch_size)
    free(monkeypatch, exact - 1)
    what = "a patch" if batch_size == 1 else "a batch of 3 patches"
    with pytest.raises(UserError, match=rf"{what} \(8, 16, 16\) of 2 channel.* GiB are free\nTo mend it: ") as caught:
        check_patch(configuration, kind, where="plans.json", batch_size=batch_size)
    assert str(caught.value).startswith("plans.json: field configurations.3d.patch_size: ")


def with_patch(configuration, patch, **network):
    network = configuration.network.model_copy(update={"patch_size": patch, **network})
    return configuration.model_copy(update={"patch_size": patch, "network": network})


@pytest.mark.parametrize(
    ("patch", "nearest"), [((8, 17, 16), "8, 16, 16"), ((8, 19, 16), "8, 20, 16"), ((8, 16, 1), "8, 16, 2")]
)
def test_a_patch_that_the_strides_do_not_divide_is_told(configuration, patch, nearest):
    odd = with_patch(configuration, patch)
    with pytest.raises(UserError) as caught:
        check_patch(odd, load("architecture", "plain_unet"), where="plans.json")
    what, mend = str(caught.value).split("\n")
    field = "plans.json: field configurations.3d.patch_size"
    assert what == f"{field}: {patch} is no multiple of (2, 2, 2), and PlainUNet takes nothing else"
    assert mend == f"To mend it: write [{nearest}], which is the nearest, into this field and into network.patch_size"


def test_the_multiple_is_that_of_the_architecture(configuration):
    kind = load("architecture", "swin_unetr")
    check_patch(with_patch(configuration, (32, 32, 64)), kind, where="plans.json")
    with pytest.raises(UserError, match=r"no multiple of \(32, 32, 32\).*\n.*write \[32, 32, 64\]"):  # 32 alone are few
        check_patch(with_patch(configuration, (33, 33, 33)), kind, where="plans.json")
    kind = load("architecture", "hi_end_mae")
    spec = kind.adapt_spec(configuration.network.model_copy(update={"strides": ((1,) * 3, (8,) * 3)}))
    assert set(kind.patch_multiple(spec)) == {2}  # whatever the strides are
    tokens = configuration.model_copy(update={"network": spec})
    check_patch(with_patch(tokens, (8, 18, 16)), kind, where="plans.json")
    with pytest.raises(UserError, match=r"\(8, 17, 16\) is no multiple of \(2, 2, 2\), and HiEndMAE"):
        check_patch(with_patch(tokens, (8, 17, 16)), kind, where="plans.json")


@pytest.mark.parametrize("name", ["unet", "lightm_unet"])  # the second does not run on the meta device
def test_a_network_that_pads_by_itself_takes_any_patch(configuration, name):
    kind = load("architecture", name)
    spec = kind.adapt_spec(configuration.network)
    odd = with_patch(configuration.model_copy(update={"network": spec}), (8, 17, 19))
    check_patch(odd, kind, where="plans.json")
    with torch.no_grad():
        assert kind(odd.network).eval()(torch.zeros(1, 2, 8, 17, 19)).shape == (1, 3, 8, 17, 19)


def test_a_network_that_returns_another_size_does_not_take_the_patch(configuration):
    kind = load("architecture", "vm_unet")
    spec = kind.adapt_spec(configuration.network)
    odd = with_patch(configuration.model_copy(update={"network": spec}), (8, 17, 16))
    with pytest.raises(UserError, match=r"\(8, 17, 16\) is no multiple"):
        check_patch(odd, kind, where="plans.json")


@pytest.fixture
def training(tmp_path):
    """Return a function that asks for training on bundled images by plans, which are changed as given."""
    workspace = Workspace.open(tmp_path)
    dataset = bundled_dataset()

    def ask(patch=(8, 16, 16), *, device="cpu", **settings):
        plans = make_plans("3d", channels=1, outputs=3)
        changed = with_patch(plans.configuration("3d"), patch)
        plans = plans.model_copy(update={"configurations": {"3d": changed}})
        plans.write(workspace.plans_file(dataset.name, "p"))
        given = {"plans_name": "p", "settings": settings, "device": device, "workspace": workspace}
        return train(dataset, "3d", "0", **given)

    return ask


def test_training_refuses_a_batch_that_does_not_fit(monkeypatch, training):
    exact = 4 * 8 * 16 * 16 * (1 + 3) * 2
    free(monkeypatch, exact)
    with pytest.raises(UserError, match="is not preprocessed"):
        training()
    with pytest.raises(UserError, match=r"p\.json: field configurations\.3d\.patch_size: a batch of 3 patches"):
        training(batch_size=3)
    free(monkeypatch, exact - 1)
    with pytest.raises(
        UserError, match=r"p\.json: field configurations\.3d\.patch_size: a batch of 2 patches \(8, 16, 16\)"
    ):
        training()


def test_a_batch_on_a_gpu_is_not_in_main_memory(monkeypatch, training):
    monkeypatch.setattr("autoseg.training.starting.choose_device", torch.device)
    one = 4 * 8 * 16 * 16 * (1 + 3)
    free(monkeypatch, one)
    with pytest.raises(UserError, match="is not preprocessed"):
        training(device="cuda")
    free(monkeypatch, one - 1)
    with pytest.raises(UserError, match=r"a patch \(8, 16, 16\)"):
        training(device="cuda")


def test_training_refuses_a_patch_that_the_strides_do_not_divide(training):
    with pytest.raises(UserError, match=r"p\.json: field configurations\.3d\.patch_size: \(8, 17, 16\) is no multiple"):
        training((8, 17, 16))


def test_prediction_refuses_what_does_not_fit(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"plans\.json: field configurations\.odd\.patch_size: \(8, 17, 16\) is no"):
        Predictor.load(
            write_model(tmp_path / "odd", {"name": "odd", "plans": {"patch_size": (8, 17, 16)}}), device="cpu"
        )
    sound = write_model(tmp_path / "sound")
    free(monkeypatch, 4 * 8 * 16 * 16 * (1 + 3) - 1)
    with pytest.raises(
        UserError, match=r"plans\.json: field configurations\.member0\.patch_size: a patch \(8, 16, 16\)"
    ):
        Predictor.load(sound, device="cpu")


class Doubling(Architecture):
    """Halves and doubles: it gives patches back as they were where their edges are even."""

    traceable = True

    @classmethod
    def patch_multiple(cls, spec):
        return (2,) * spec.dims

    def forward(self, x):
        if not self.traceable:
            raise NotImplementedError
        return torch.nn.functional.interpolate(x[..., ::2, ::2, ::2], scale_factor=2)


def test_which_other_patches_a_network_takes(monkeypatch, configuration):
    spec = configuration.network
    assert takes_patch(Doubling, spec, (10, 12, 14))
    assert not takes_patch(Doubling, spec, (10, 12, 13))
    monkeypatch.setattr(Doubling, "traceable", False)  # then only what its class says tells
    assert takes_patch(Doubling, spec, (10, 12, 14))
    assert not takes_patch(Doubling, spec, (10, 12, 13))
    assert takes_patch(Doubling, spec, spec.patch_size)


def test_a_network_that_is_bound_to_its_patch_takes_no_other(configuration):
    class Bound(Doubling):
        def forward(self, x):
            assert tuple(x.shape[2:]) == self.spec.patch_size
            return x

    assert not takes_patch(Bound, configuration.network, (10, 12, 14))
