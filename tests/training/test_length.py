"""Which recipe a run gets: by the steps that fit into its time, not by the mere presence of a budget."""

import pytest

from autoseg.errors import UserError
from autoseg.plans import Plans, TrainingPlan
from autoseg.storage import read_json
from autoseg.training import resolving, starting, train
from autoseg.training.probe import StepTime
from autoseg.training.recipe import length_of, published, recipe_for, suited
from autoseg.training.starting import _Training

NAME = "Dataset004_Hippocampus"


@pytest.fixture
def full_plan(scratch):
    """Plans for nnU-Net's full run under another name."""
    plans = Plans.read(scratch.plans_file(NAME, "tiny"))
    full = plans.configurations["3d_fullres"].model_copy(update={"training": TrainingPlan()})
    file = scratch.plans_file(NAME, "full")
    plans.model_copy(update={"plans_name": "full", "configurations": {"3d_fullres": full}}).write(file)
    yield scratch
    file.unlink()


def resolved(workspace, monkeypatch, *, step=1.0, **options):
    monkeypatch.setattr(resolving, "time_step", lambda *_, **__: StepTime(step, "fp32"))
    defaults = {
        "dataset": NAME, "configuration": "3d_fullres", "folds": "0", "trainer": "supervised", "plans_name": "full",
        "architecture": None, "pretrained": None, "settings": None, "recipe": None, "labelled": None,
        "time_budget": None, "device": "cpu", "processes": 1, "seed": 0, "deterministic": False, "restart": False,
        "workers": 1, "workspace": workspace, "name": None,
    }  # fmt: skip
    training = _Training(**{**defaults, **options})
    context = training._context("0", starting.make_splits(training.dataset), training._open_store(), None)
    found = training.asked.of_run(training.time_budget, context.folder)
    return {name: (found[name].value, found[name].origin) for name in ("optimizer", "mirror", "learning_rate", "steps")}


def test_lengths_and_their_recipes():
    assert [length_of(steps) for steps in (10, 4_999, 5_000, 19_999, 20_000)] == [0, 0, 1, 1, 2]
    assert recipe_for(100)["optimizer"] == recipe_for(10_000)["optimizer"] == "adamw"
    assert recipe_for(20_000) == {
        "optimizer": "sgd", "learning_rate": 0.01, "weight_decay": 3e-5, "warmup_steps": 0, "augmentation": "full",
        "mirror": True,
    }  # fmt: skip


def test_the_recipe_of_an_architecture_is_kept_in_full_runs_and_faster_in_short_ones():
    own = {"optimizer": "adamw", "learning_rate": 1e-4, "weight_decay": 0.05, "gradient_clip": 1.0}
    assert suited(own, recipe_for(20_000)) == own
    assert suited(own, recipe_for(19_999)) == {**own, "learning_rate": 5e-4}
    assert suited(own, recipe_for(4_999)) == {**own, "learning_rate": 1e-3}
    assert suited({**own, "learning_rate": 2e-3}, recipe_for(100))["learning_rate"] == 6e-3
    sgd = {"optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 1e-4, "precision": "fp32"}
    assert suited(sgd, recipe_for(20_000)) == sgd
    assert suited(sgd, recipe_for(100)) == {"precision": "fp32"}
    assert suited({}, recipe_for(100)) == {}


@pytest.mark.parametrize(("steps", "rate"), [(None, 3e-4), (19_000, 1.5e-3), (400, 3e-3)])
def test_a_run_gets_the_rate_of_its_architecture_by_its_length(full_plan, monkeypatch, steps, rate):
    given = {} if steps is None else {"settings": {"steps": steps}}
    found = resolved(full_plan, monkeypatch, architecture="primus", **given)
    assert found["learning_rate"] == (pytest.approx(rate), "architecture")


def test_a_published_recipe_is_that_of_a_full_run_at_any_length():
    primus = {"optimizer": "adamw", "learning_rate": 3e-4, "warmup_share": 0.05, "own_rates": True}
    assert published(primus) == {**primus, "weight_decay": 3e-5, "warmup_steps": 0}
    sgd = {"optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 1e-4}
    assert published(sgd) == {**sgd, "warmup_steps": 0}
    assert published({}) == {"optimizer": "sgd", "learning_rate": 0.01, "weight_decay": 3e-5, "warmup_steps": 0}


@pytest.mark.parametrize(("architecture", "rate"), [("primus", 3e-4), ("hiformer", 0.01), (None, 0.01)])
def test_a_short_run_takes_the_published_recipe_where_that_is_asked_for(full_plan, monkeypatch, architecture, rate):
    asked = {"settings": {"steps": 400, "own_recipe": "published"}, "architecture": architecture}
    found = resolved(full_plan, monkeypatch, **asked)
    assert found["learning_rate"] == (rate, "architecture")
    assert found["optimizer"] == ("adamw" if architecture == "primus" else "sgd", "architecture")
    assert found["mirror"] == (False, "length of the run")  # the data's part is that of a short run all the same
    asked["settings"] = {**asked["settings"], "learning_rate": 1e-3}
    assert resolved(full_plan, monkeypatch, **asked)["learning_rate"] == (1e-3, "command line")


def test_two_days_leave_the_plan_as_it_is_and_a_minute_does_not(full_plan, monkeypatch):
    long = resolved(full_plan, monkeypatch, time_budget=48 * 3600.0)
    assert (long["optimizer"][0], long["mirror"][0]) == ("sgd", True)
    assert "length of the run" not in {origin for _, origin in long.values()}
    middle = resolved(full_plan, monkeypatch, time_budget=10_000.0)
    assert middle["optimizer"] == ("adamw", "length of the run")
    assert middle["mirror"][0] is True
    short = resolved(full_plan, monkeypatch, time_budget=60.0)
    assert short["mirror"] == (False, "length of the run")
    given = resolved(full_plan, monkeypatch, time_budget=60.0, settings={"optimizer": "sgd"})
    assert given["optimizer"] == ("sgd", "command line")


def test_few_steps_by_the_user_get_the_short_recipe(full_plan, monkeypatch):
    assert resolved(full_plan, monkeypatch, settings={"steps": 300})["optimizer"] == ("adamw", "length of the run")
    assert resolved(full_plan, monkeypatch)["optimizer"][0] == "sgd"


def test_a_resumed_run_keeps_its_recipe_whatever_the_clock_says(full_plan, monkeypatch):
    monkeypatch.setattr(resolving, "time_step", lambda *_, **__: StepTime(0.01, "fp32"))
    options = {"plans_name": "full", "device": "cpu", "workers": 1, "workspace": full_plan}
    (folder,) = train(NAME, "3d_fullres", "0", time_budget=8.0, settings={"stop_on_collapse": False}, **options)
    kept = read_json(folder / "run.json")["settings"]
    assert kept["optimizer"] == {"value": "adamw", "origin": "length of the run"}
    again = resolved(full_plan, monkeypatch, step=1e-6, time_budget=8.0)
    assert again["learning_rate"] == (kept["learning_rate"]["value"], "length of the run")


def test_a_time_budget_and_determinism_exclude_each_other(full_plan):
    with pytest.raises(UserError, match="--set steps"):
        train(NAME, "3d_fullres", "0", plans_name="full", time_budget=5.0, deterministic=True, workspace=full_plan)
