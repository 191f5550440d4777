"""What a dry run says of steps, time and disk, with plans and without, under each kind of equality."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from benchmarking_players import DATASET

from autoseg.benchmarking import Budget, Question, dry_run, foreseeing
from autoseg.benchmarking.estimating import as_dict
from autoseg.errors import UserError
from autoseg.planning.operations import trace_operations
from autoseg.plans import Plans
from autoseg.plugins import load
from autoseg.raw import open_dataset, read_geometry
from autoseg.training.bare_step import training_loss
from autoseg.training.operations import operation_counter

RATE = 1e10  # operations a second, played


@pytest.fixture(autouse=True)
def played_speed(monkeypatch):
    monkeypatch.setattr(foreseeing, "speed", lambda device, threads: RATE)


@pytest.fixture
def told(place):
    def call(equal, budget, *architectures, keep_weights=False, jobs=None, **asked):
        question = Question(
            datasets=(str(place.raw / DATASET),), architectures=architectures or ("plain_unet",),
            budget=Budget.parse(equal, budget), **{"device": "cpu", "seeds": 2, "recipes": "common", **asked},
        )  # fmt: skip
        (one,) = dry_run(question, workspace=place, keep_weights=keep_weights, jobs=jobs)
        return one

    return call


def step_operations(place):
    """Count a real step at the plan `tiny`."""
    planned = Plans.read(place.plans_file(DATASET, "tiny")).configuration("3d_fullres")
    network = load("architecture", "plain_unet")(planned.network).train()
    x = torch.zeros(planned.batch_size, planned.network.in_channels, *planned.patch_size)
    with operation_counter() as counter:
        training_loss(network(x), torch.zeros(planned.batch_size, *planned.patch_size, dtype=torch.int64)).backward()
    return counter.get_total_flops()


def set_timing(place, seconds, steps):
    file = place.plans_file(DATASET, "tiny")
    content = json.loads(file.read_text())
    for configuration in content["configurations"].values():
        configuration["training"] |= {"time_budget": seconds, "steps": steps}
    file.write_text(json.dumps(content))


def test_equal_operations_at_known_plans_are_so_many_steps(told, place):
    set_timing(place, None, 1000)
    each = step_operations(place)
    (method,) = told("flops", 100.5 * each, plans="tiny").methods
    assert (method.method, method.runs, method.finished, method.steps) == ("plain_unet", 2, 0, 100)
    assert method.train_seconds == pytest.approx(100 * each / RATE)
    assert "operations traced at the plan" in method.rule
    (method,) = told("flops", each / 10, plans="tiny").methods
    assert method.steps == 1  # no run has none


def test_equal_operations_without_plans_follow_the_budget(told):
    one, ten = told("flops", "1e12"), told("flops", "1e13")
    assert [one.methods[0].train_seconds, ten.methods[0].train_seconds] == pytest.approx([100.0, 1000.0])
    assert one.methods[0].steps is ten.steps is None
    assert ten.seconds - one.seconds == pytest.approx(2 * 900 * 1.5)  # two runs, and half as long for their scores


def test_a_plan_whose_steps_were_timed_tells_steps_and_seconds(told, place):
    set_timing(place, 100.0, 400)  # 0.25 s a step
    (method,) = told("time", "20s", plans="tiny").methods
    assert (method.steps, method.train_seconds, method.rule) == (80, 20.0, "the plan's timed steps")
    (method,) = told("steps", "30", plans="tiny").methods
    assert (method.steps, method.train_seconds) == (30, 7.5)
    (method,) = told("flops", 40 * step_operations(place), plans="tiny").methods
    assert (method.steps, method.train_seconds) == (40, 10.0)


def test_without_plans_equal_time_is_the_budget(told):
    (method,) = told("time", "20s").methods
    assert (method.steps, method.train_seconds, method.rule) == (None, 20.0, "the budget")


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ({"device": "cpu"}, "for 720 s of training"),
        ({"device": "auto"}, "for 720 s of training"),  # where there is no GPU, as played here
        ({"device": "cuda"}, "for the memory"),
        ({"planner": "nnunet"}, "for the memory"),
        ({"plan_for": 60.0}, "for 60 s of training"),
    ],
)
def test_few_steps_do_not_make_small_plans_and_that_is_said(told, monkeypatch, asked, size):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    (method,) = told("steps", "3", **asked).methods
    assert (method.steps, f"planned {size} (--plan-for)" in method.rule) == (3, True)
    assert method.rule.startswith("assumed: ")


def test_dear_networks_are_foreseen_as_such_before_anything_is_planned(told, place):
    """Their smallest size tells the operations of a step, where plans for so short a time would leave less."""
    shutil.rmtree(place.preprocessed)
    cheap, dear = told("steps", "10", "plain_unet", "paratranscnn", plan_for=1.0).methods
    assert (cheap.steps, dear.steps) == (10, 10)
    assert dear.train_seconds > 5 * cheap.train_seconds  # 11 times the operations at the plans of RESULTS.md
    assert cheap.train_seconds > 10 * 0.9 / 1500
    planner = load("planner", "auto")(architecture="plain_unet", workspace=place.root)
    dataset = open_dataset(place.raw / DATASET, place)
    grids = [read_geometry(case.images[0]) for case in dataset.cases]
    seen = SimpleNamespace(spacings=np.array([grid.spacing for grid in grids]), channel_names=dataset.channel_names,
                           shapes_after_crop=np.array([grid.size for grid in grids]))  # fmt: skip
    sized = planner.smallest(seen, dataset, 3)
    assert (sized.spec.features[0], sized.batch_size) == (8, 2)
    assert 2**14 < torch.Size(sized.spec.patch_size).numel() <= 2**15
    counted = trace_operations(load("architecture", "plain_unet"), sized.spec, sized.batch_size)
    assert cheap.train_seconds == pytest.approx(10 * counted / RATE)


def test_a_dry_run_for_a_device_elsewhere_goes_without_its_speed(told, monkeypatch):
    def speed(device, threads):
        raise UserError(f"device {device!r} was asked for, but no CUDA GPU can be used here")

    monkeypatch.setattr(foreseeing, "speed", speed)
    (method,) = told("steps", "3", device="cuda").methods
    assert method.train_seconds == pytest.approx(3 * foreseeing.UNKNOWN_STEP)


def test_a_network_that_cannot_be_sized_is_foreseen_by_rule(told, place, tmp_path):
    shutil.rmtree(place.preprocessed)
    plugin = tmp_path / "stumbling.py"
    plugin.write_text(
        "from autoseg import Architecture, register\n"
        "@register.architecture('stumbling')\n"
        "class Stumbling(Architecture):\n"
        "    @classmethod\n"
        "    def adapt_spec(cls, spec):\n"
        "        raise ValueError('no')\n"
    )
    stumbling, usual = told("steps", "10", str(plugin), "plain_unet", plan_for=60.0).methods
    assert stumbling.train_seconds == pytest.approx(10 * 0.9 * 60 / 1500)
    assert usual.train_seconds > 0


def test_measured_steps_count_more_than_plans(campaign, players, told, place):
    campaign("plain_unet", "unet", equal="flops", budget="1e10", seeds=1, device="cpu", name="equal-1e10flops")
    one = told("flops", "1e10", "plain_unet", "unet")
    assert [(m.method, m.steps, m.train_seconds) for m in one.methods] == [
        ("plain_unet", 100, 10.0),
        ("unet", 50, 10.0),
    ]
    assert [(method.runs, method.finished, method.rule) for method in one.methods] == [(2, 1, "measured steps")] * 2


def test_processor_time_is_that_of_all_threads(told, monkeypatch):
    monkeypatch.setattr("autoseg.benchmarking.cores.available_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    whole = as_dict([told("time", "60s", jobs=2)])
    assert whole["threads"] == 4
    assert whole["processor_hours"] == pytest.approx(whole["hours"] * 2 * 4)


def test_disk_of_label_maps_weights_and_data(told, place):
    planned = told("steps", "10", plans="tiny", folds="cv")
    labels = sum(file.stat().st_size for file in (place.raw / DATASET / "labelsTr").glob("*.nii.gz"))
    assert planned.disk_bytes == 2 * labels  # two seeds; the store is there
    network = load("architecture", "plain_unet")(
        Plans.read(place.plans_file(DATASET, "tiny")).configuration("3d_fullres").network
    )
    parameters = sum(p.numel() for p in network.parameters())
    kept = told("steps", "10", plans="tiny", folds="cv", keep_weights=True)
    assert kept.disk_bytes - planned.disk_bytes == 4 * parameters * kept.runs
    assert planned.run_bytes == 16 * parameters
    shutil.rmtree(place.preprocessed)
    bare = told("steps", "10", folds="cv")
    cases = open_dataset(place.raw / DATASET, place).cases
    voxels = sum(torch.Size(read_geometry(case.images[0]).size).numel() for case in cases)
    assert bare.disk_bytes == pytest.approx(2 * labels + 3 * voxels)  # half precision and a byte of label
    assert bare.run_bytes is None


def test_the_speed_of_this_machine_is_plausible():
    assert 1e7 < foreseeing._product_speed(torch.device("cpu")) < 1e13


@pytest.mark.parametrize("name", ["plain_unet", "transdae"])  # building the second reads values of tensors
def test_operations_of_a_traced_step_are_those_of_a_real_one(place, name):
    spec = Plans.read(place.plans_file(DATASET, "tiny")).configuration("2d").network
    kind = load("architecture", name)
    spec = kind.adapt_spec(spec.model_copy(update={"options": {}}))
    if any(size % m for size, m in zip(spec.patch_size, kind.patch_multiple(spec), strict=True)):
        spec = spec.model_copy(update={"patch_size": kind.patch_multiple(spec)})
    network = kind(spec).train()
    with operation_counter() as counter:
        logits = network(torch.zeros(2, spec.in_channels, *spec.patch_size))
        training_loss(logits, torch.zeros(2, *spec.patch_size, dtype=torch.int64)).backward()
    assert trace_operations(kind, spec, 2) == counter.get_total_flops() > 0
