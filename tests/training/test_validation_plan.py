"""Whole-case validation is fitted into a time budget."""

from types import SimpleNamespace

import pytest
import torch

from autoseg.storage import read_json
from autoseg.training import train, validation_plan
from autoseg.training.log import read_events
from autoseg.training.validation_plan import ValidationPlan, count_tiles, plan_validation

NAME = "Dataset004_Hippocampus"


def test_tiles_are_counted_on_the_padded_grid():
    assert count_tiles((10, 10, 10), (16, 16, 16), 0.5) == 1
    assert count_tiles((32, 16, 16), (16, 16, 16), 0.5) == 3
    assert count_tiles((32, 32, 16), (16, 16, 16), 1.0) == 4
    assert count_tiles((7, 32, 32), (32, 16), 1.0) == 14


@pytest.mark.parametrize(("budget", "step_size", "tiles"), [(100, 0.5, 27), (80, 0.75, 7), (20, 1.0, 6), (1, 1.0, 6)])
def test_tiles_overlap_less_when_time_is_short(monkeypatch, budget, step_size, tiles):
    """Tiles of one second: 27, 7 or 6 of them with a leeway of 15 %, in at most 35 % of the budget."""
    monkeypatch.setattr(validation_plan, "_tile_seconds", lambda trainer, device: 1.0)
    monkeypatch.setattr(validation_plan, "_seconds_after_network", lambda case, trainer: 0.0)
    monkeypatch.setattr(validation_plan, "labelled_cases", lambda context: ["a"])
    monkeypatch.setattr(validation_plan, "count_tiles", lambda shape, patch, step: {0.5: 27, 0.75: 7, 1.0: 6}[step])
    store = SimpleNamespace(read=lambda case: SimpleNamespace(shape=(32, 32, 32)))
    context = SimpleNamespace(store=store, configuration=SimpleNamespace(patch_size=(16, 16, 16)))
    plan = plan_validation(SimpleNamespace(context=context), torch.device("cpu"), budget)
    assert plan.step_size == step_size
    assert plan.seconds == pytest.approx(1.15 * tiles + 0.02)
    assert plan.cases == 1


def test_observing_is_bounded_by_its_share():
    assert ValidationPlan(seconds=100.0, cases=10).observable(25.0) == 2
    assert ValidationPlan(seconds=100.0, cases=10).observable(9.0) == 0
    assert ValidationPlan().observable(1.0) == 0


def test_the_spacing_of_tiles_is_recorded_and_used(scratch, monkeypatch):
    monkeypatch.setattr(validation_plan, "LARGEST_SHARE", 0.0)
    (folder,) = train(NAME, "3d_fullres", "0", plans_name="tiny", device="cpu", workers=1, workspace=scratch,
                      time_budget=8.0, settings={"stop_on_collapse": False})  # fmt: skip
    assert read_json(folder / "run.json")["validation_step_size"] == 1.0
    notes = [event["text"] for event in read_events(folder / "log.jsonl") if event["event"] == "note"]
    assert any("1 of a patch apart" in note for note in notes)
