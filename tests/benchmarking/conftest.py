"""Campaigns whose child processes are played (benchmarking_players)."""

import shutil

import pytest
from benchmarking_players import DATASET, Players

from autoseg.benchmarking import Budget, Question, benchmark
from autoseg.storage import read_json
from autoseg.workspace import Workspace


@pytest.fixture
def place(tiny, tmp_path):
    """A workspace of its own with the tiny plans and stores."""
    target = Workspace.open(tmp_path / "place")
    shutil.copytree(tiny.raw, target.raw)
    (target.preprocessed / DATASET).mkdir(parents=True)
    for entry in (tiny.preprocessed / DATASET).iterdir():
        copy = shutil.copytree if entry.is_dir() else shutil.copy
        copy(entry, target.preprocessed / DATASET / entry.name)
    return target


@pytest.fixture
def players(place, monkeypatch):
    playing = Players(place)
    monkeypatch.setattr("autoseg.benchmarking.preparing.carry_out", playing.carry_out)
    return playing


@pytest.fixture
def campaign(place, players):
    """Call `campaign(architectures, **question)`; returns what `benchmark` does."""

    def call(*architectures, equal="steps", budget=None, name="c", restart=False, jobs=None, **question):
        asked = Question(
            architectures=architectures or ("plain_unet", "unet"),
            budget=Budget.parse(equal, budget or {"steps": "100", "time": "20s", "flops": "1e9"}[equal]),
            **{"datasets": (str(place.raw / DATASET),), "seeds": 2, **question},
        )
        return benchmark(asked, name=name, workspace=place, restart=restart, jobs=jobs)

    call.record = lambda name="c": read_json(place.root / "benchmarks" / name / "benchmark.json")
    return call
