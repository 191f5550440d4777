"""`traced` and `auto`: plans that fit the memory, or the time."""

import math
import re

import pytest
import torch
from planning_factory import make_dataset, make_fingerprint

from autoseg import plugins
from autoseg.benchmarking import Budget, Question
from autoseg.conformance.architecture import example_spec
from autoseg.errors import UserError
from autoseg.planning import Frame, Resources, timed
from autoseg.planning.budget import SMALLEST_PATCH, training_seconds
from autoseg.planning.estimate import plain_feature_map_sum
from autoseg.planning.memory import parameter_count, trace_training
from autoseg.planning.timed import in_hours
from autoseg.training.probe import StepTime

HIPPOCAMPUS = make_fingerprint((1, 1, 1), (36, 50, 35), cases=200)
ABDOMEN = make_fingerprint((1, 0.77, 0.77), (432, 512, 512), cases=131, channels=("CT",))
PHOTOS = make_fingerprint((999, 1, 1), (1, 600, 500), cases=2000, channels=("R", "G", "B"), labels=2)


def make_plans(planner, fingerprint, resources, **settings):
    planner = plugins.load("planner", planner)(**settings)
    return planner.plan(fingerprint, resources, make_dataset(fingerprint.num_labels))


def gpu(gib):
    return Resources("cuda", gib, memory_given=True)


@pytest.fixture
def made_up_clock(monkeypatch):
    """A machine on which a step takes a nanosecond per element of the feature maps; returns the timed sizes."""
    asked = []

    def time_step(architecture, spec, batch_size, *, device, optimizer):
        asked.append((spec, batch_size))
        return StepTime(1e-9 * batch_size * plain_feature_map_sum(spec, 3), "fp32")

    monkeypatch.setattr(timed, "time_step", time_step)
    return asked


@pytest.mark.parametrize(
    ("fingerprint", "name", "gib", "architecture"),
    [(ABDOMEN, "3d_fullres", 24.0, "residual_encoder_unet"), (PHOTOS, "2d", 8.0, "plain_unet")],
    ids=["abdomen", "photos"],
)
def test_traced_plans_use_the_memory_and_fit(fingerprint, name, gib, architecture):
    plans = make_plans("traced", fingerprint, gpu(gib), wanted=[name], architecture=architecture)
    (configuration,) = plans.configurations.values()
    network = plugins.load("architecture", configuration.architecture)
    memory = trace_training(network, configuration.network, configuration.batch_size)
    assert 0.65 * gib * 2**30 < memory.device_bytes <= gib * 2**30
    assert configuration.architecture == architecture


def test_small_data_cap_the_batch_not_the_memory():
    full = make_plans("auto", HIPPOCAMPUS, gpu(24.0), wanted=["3d_fullres"]).configuration("3d_fullres")
    assert (full.patch_size, full.batch_size) == ((40, 56, 40), 7)
    assert (full.training.optimizer, full.training.steps) == ("sgd", 250_000)


def test_memory_that_nobody_named_is_used_up_to_24_gib():
    planner = plugins.load("planner", "auto")()
    limits = [
        planner.memory_limit(Frame(ABDOMEN, make_dataset(), resources)) / 2**30
        for resources in (Resources("cuda", 139.0), Resources("cuda", 11.0), gpu(48.0))
    ]
    assert limits == [24, 11, 48]


def test_any_architecture_is_planned_by_its_own_memory():
    photos = make_fingerprint((999, 1, 1), (1, 128, 100), cases=9000)
    plain, residual = (
        make_plans("traced", photos, gpu(4.0), architecture=name, wanted=["2d"]).configuration("2d")
        for name in ("plain_unet", "residual_encoder_unet")
    )
    assert (plain.network.blocks_encoder[:2], residual.network.blocks_encoder[:2]) == ((2, 2), (1, 3))
    assert plain.patch_size == residual.patch_size or math.prod(plain.patch_size) > math.prod(residual.patch_size)
    assert math.prod(plain.patch_size) * plain.batch_size > math.prod(residual.patch_size) * residual.batch_size


@pytest.mark.parametrize(("name", "states"), [("plain_unet", 1), ("primus", 2)], ids=["SGD", "AdamW"])
def test_the_state_of_the_optimizer_that_the_network_is_trained_with_is_counted(name, states):
    network = plugins.load("architecture", name)
    spec = example_spec(network, 3)
    weights = parameter_count(network, spec)
    static = plugins.load("planner", "traced")(architecture=name).trace(spec, 1).static
    assert 4 * (1 + states) * weights <= static < 4 * (1.1 + states) * weights


def test_options_of_the_network_are_planned_with(made_up_clock):
    sizes = {}
    for size in ("S", "L"):
        plans = make_plans("auto", HIPPOCAMPUS, Resources("cpu", 16.0, 1200.0, 2), architecture="stu_net",
                           wanted=["3d_fullres"], network_options={"size": size})  # fmt: skip
        sizes[size] = plans.configuration("3d_fullres").network
    assert sizes["S"].options["size"] == "S"
    assert (sizes["S"].blocks_encoder[0], sizes["L"].blocks_encoder[0]) == (1, 2)
    assert sizes["L"].features[0] == 4 * sizes["S"].features[0]


def test_a_loose_architecture_with_its_own_patch_multiple(tmp_path):
    source = '''
"""A network that wants patches in multiples of 24."""
from autoseg import Architecture, register
from torch import nn

@register.architecture("twenty_four")
class TwentyFour(Architecture):
    """One convolution."""
    def __init__(self, spec):
        super().__init__(spec)
        self.layer = nn.Conv3d(spec.in_channels, spec.num_outputs, 3, padding=1)

    @classmethod
    def patch_multiple(cls, spec):
        return (24,) * spec.dims

    def encode(self, x):
        return [x] if PEEK and x.sum().item() > 0 else [x]

    def decode(self, features):
        return self.layer(features[0])
'''
    for peek in (False, True):
        path = tmp_path / f"network_{peek}.py"
        path.write_text(source.replace("PEEK", str(peek)))
        plans = make_plans("traced", ABDOMEN, gpu(4.0), architecture=str(path), wanted=["3d_fullres"])
        full = plans.configuration("3d_fullres")
        assert all(edge % 24 == 0 for edge in full.patch_size)
        assert full.network.patch_size == full.patch_size
        assert any("could not be traced" in note for note in plans.notes) is peek


def test_too_little_memory_is_told():
    plans = make_plans("traced", HIPPOCAMPUS, gpu(1.9), wanted=["3d_fullres"])
    assert any("more than the 1.9 GiB at hand" in note for note in plans.notes)


def test_a_cpu_plan_fits_its_time(made_up_clock):
    plans = make_plans("auto", HIPPOCAMPUS, Resources("cpu", 16.0, 1200.0, 2))
    for configuration in plans.configurations.values():
        recipe, spec = configuration.training, configuration.network
        step = 1e-9 * configuration.batch_size * plain_feature_map_sum(spec, 3)
        # 240 s for a fold, a tenth of it start-up; validating its 40 cases takes up to 35 %.
        assert (240 * 0.55 < recipe.steps * step < 240 * 0.9) or recipe.steps == 250_000
        assert recipe.steps >= 1500
        optimizer = "adamw" if recipe.steps < 20_000 else "sgd"
        assert (configuration.architecture, recipe.optimizer, recipe.time_budget) == ("plain_unet", optimizer, 240)
    assert plans.configuration("3d_fullres").patch_size == (40, 56, 40)
    assert "3d_lowres" not in plans.configurations
    assert plans.resources["time_budget"] == 1200


def test_more_time_buys_a_larger_network(made_up_clock):
    sizes = []
    for budget in (60.0, 600.0, 6000.0, 60000.0):
        full = make_plans("auto", ABDOMEN, Resources("cpu", 16.0, budget), wanted=["3d_fullres"])
        full = full.configuration("3d_fullres")
        sizes.append((full.network.features[0], math.prod(full.patch_size) * full.batch_size))
    assert sizes == sorted(sizes)
    assert sizes[0][0] == 8
    assert sizes[-1][0] == 32


def test_on_a_gpu_with_time_enough_memory_decides_and_time_only_the_steps(made_up_clock, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    resources = Resources("cuda", 8.0, 5 * 86_400.0, 4, memory_given=True)
    timed = make_plans("auto", HIPPOCAMPUS, resources, wanted=["3d_fullres"]).configuration("3d_fullres")
    whole = make_plans("traced", HIPPOCAMPUS, gpu(8.0), wanted=["3d_fullres"]).configuration("3d_fullres")
    assert timed.architecture == "residual_encoder_unet"
    assert (timed.patch_size, timed.batch_size, timed.network) == (whole.patch_size, whole.batch_size, whole.network)
    assert timed.training.time_budget == 86_400
    assert 5_000 <= timed.training.steps <= 250_000
    little = Resources("cuda", 8.0, 600.0, 4, memory_given=True)
    small = make_plans("auto", HIPPOCAMPUS, little, wanted=["3d_fullres"]).configuration("3d_fullres")
    assert small.architecture == "plain_unet"


def test_short_plans_have_a_cascade_only_when_asked(made_up_clock):
    resources = Resources("cpu", 16.0, 60.0, 2)
    assert "3d_cascade_fullres" not in make_plans("auto", ABDOMEN, resources).configurations
    asked = make_plans("auto", ABDOMEN, resources, wanted=["3d_cascade_fullres"]).configurations
    assert set(asked) == {"3d_lowres", "3d_cascade_fullres"}
    assert asked["3d_cascade_fullres"].previous_stage == "3d_lowres"
    assert asked["3d_lowres"].training.steps < 250_000


@pytest.mark.parametrize(
    ("seconds", "words"), [(20, "20 seconds"), (600, "10 minutes"), (7_300, "2 hours"), (26e6, "301 days")]
)
def test_time_spans_in_words(seconds, words):
    assert in_hours(seconds) == words


def test_too_short_a_time_ends_at_the_smallest_patch(made_up_clock):
    full = make_plans("auto", ABDOMEN, Resources("cpu", 16.0, 0.1), wanted=["3d_fullres"]).configuration("3d_fullres")
    assert math.prod(full.patch_size) <= SMALLEST_PATCH[3]
    assert full.training.steps >= 1


def test_without_gpu_and_budget_an_hour_is_planned(made_up_clock):
    plans = make_plans("auto", PHOTOS, Resources("cpu", 16.0))
    assert plans.configuration("2d").training.time_budget == 720
    assert any("60 minutes of training per configuration" in note for note in plans.notes)
    assert made_up_clock[0][0].dims == 2


def test_timed_plans_of_large_images_have_a_low_resolution_stage_and_no_cascade(made_up_clock):
    plans = make_plans("auto", ABDOMEN, Resources("cpu", 16.0, 3600.0))
    assert set(plans.configurations) == {"2d", "3d_lowres", "3d_fullres"}
    assert plans.configuration("3d_lowres").next_stage is None
    assert len(made_up_clock) < 30, "the low-resolution search times nothing"


def test_a_cpu_with_little_memory_gets_small_patches(made_up_clock):
    full = make_plans("auto", ABDOMEN, Resources("cpu", 0.1, 3600.0), wanted=["3d_fullres"])
    full = full.configuration("3d_fullres")
    network = plugins.load("architecture", full.architecture)
    assert trace_training(network, full.network, full.batch_size, optimizer="adamw").peak < 0.2 * 2**30


def test_short_runs_are_sized_with_the_state_of_their_optimizer():
    network = plugins.load("architecture", "d_former")  # has no optimiser of its own: SGD where time does not count
    sized = timed.Sized((1.0, 1.0, 1.0), (36.0, 50.0, 35.0), example_spec(network, 3), 2)
    needed = [
        trace_training(network, sized.spec, 2, precision="bf16", optimizer=name).peak for name in ("sgd", "adamw")
    ]
    assert needed[0] < needed[1]
    planner = plugins.load("planner", "auto")(architecture="d_former")
    between = Resources("cpu", sum(needed) / 2 / 2**30, time_budget=60.0)
    enough = Resources("cpu", needed[1] / 2**30, time_budget=60.0)
    fits = [planner._fits(sized, Frame(HIPPOCAMPUS, make_dataset(), one)) for one in (between, enough)]
    assert fits == [False, True]


def test_a_named_architecture_wins_on_the_cpu_too(made_up_clock):
    resources = Resources("cpu", 16.0, 1200.0)
    plans = make_plans("auto", HIPPOCAMPUS, resources, architecture="residual_encoder_unet", wanted=["3d_fullres"])
    full = plans.configuration("3d_fullres")
    assert full.architecture == "residual_encoder_unet"
    assert full.network.blocks_encoder[:2] == (1, 3)


def test_few_cases_mean_fewer_folds(made_up_clock):
    fingerprint = make_fingerprint((1, 1, 1), (36, 50, 35), cases=2)
    full = make_plans("auto", fingerprint, Resources("cpu", 16.0, 1200.0), wanted=["3d_fullres"])
    assert full.configuration("3d_fullres").training.time_budget == 600
    assert training_seconds(1200, 2) == pytest.approx(540)


@pytest.mark.parametrize("fields", [{"memory_gib": 0.0}, {"time_budget": -1.0}, {"time_budget": float("nan")}])
def test_resources_are_positive(fields):
    with pytest.raises(UserError, match="must be positive"):
        Resources(**fields)


@pytest.mark.parametrize("memory", [1e-9, 0.0099, 0, -1, 1e6, math.inf, math.nan])
def test_a_memory_that_no_device_has_is_told(memory):
    told = rf"--gpu-memory: a plan needs 0\.01 to 100000 GiB, got {re.escape(f'{memory:g}')}\nTo mend it: "
    with pytest.raises(UserError, match=told):
        Resources.detect("auto", gpu_memory=memory)
    with pytest.raises(UserError, match=told):
        Question(("data",), ("unet",), Budget("steps", 1), gpu_memory=memory)


def test_the_memory_of_tiny_plans_is_taken():
    assert Resources.detect("cpu", gpu_memory=0.01).memory_gib == 0.01


def test_named_memory_means_a_gpu():
    assert Resources.detect("auto", gpu_memory=24).device == "cuda"
    assert Resources.detect("cpu", gpu_memory=24).device == "cpu"
    found = Resources.detect("cpu", time_budget=60)
    assert (found.memory_given, found.time_budget) == (False, 60)
    assert found.memory_gib > 0
