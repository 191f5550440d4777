"""At equal time runs end by the clock; only where bits must not change, by steps that were timed before."""

import pytest
from benchmarking_players import DATASET

from autoseg.benchmarking import Budget, Question, benchmark


@pytest.fixture
def requests(players, monkeypatch):
    """The requests of the runs of a campaign, as its children would get them."""
    told = []
    played = players.train
    monkeypatch.setattr(players, "train", lambda request, key: told.append(request) or played(request, key))
    return told


def run(place, equal, budget, **options):
    asked = Question(datasets=(str(place.raw / DATASET),), architectures=("plain_unet", "unet"), seeds=1,
                     budget=Budget.parse(equal, budget))  # fmt: skip
    return benchmark(asked, name="c", workspace=place, **options)


@pytest.mark.parametrize(("equal", "budget", "seconds"), [("time", "20s", 20.0), ("steps", "9", None)])
def test_every_run_gets_the_same_seconds(place, requests, equal, budget, seconds):
    run(place, equal, budget)
    assert [request["training_seconds"] for request in requests] == [seconds, seconds]


def test_deterministic_runs_of_equal_time_have_fixed_steps_and_are_others(place, requests):
    run(place, "time", "20s", deterministic=True)
    assert [(request["training_seconds"], request["settings"]["steps"]) for request in requests] == [
        (None, 200), (None, 100)
    ]  # fmt: skip
    requests.clear()
    run(place, "time", "20s")  # what was run by steps does not pass for runs by the clock
    assert [(request["training_seconds"], request["restart"]) for request in requests] == [(20.0, True)] * 2
    requests.clear()
    run(place, "time", "20s")
    assert requests == []


def test_a_restart_that_failed_is_asked_for_again(place, players, requests):
    run(place, "time", "20s", deterministic=True)
    players.fails[f"train {DATASET}/unet"] = "out of memory"
    run(place, "time", "20s")
    players.fails.clear()
    requests.clear()
    run(place, "time", "20s")  # the run by steps is still there: the failed one has put it back
    assert [request["restart"] for request in requests] == [True]


def test_a_restart_that_was_killed_goes_on(place, players, requests):
    run(place, "time", "20s", deterministic=True)
    players.dies["/unet-"] = 1
    run(place, "time", "20s")
    requests.clear()
    run(place, "time", "20s")
    assert [request["restart"] for request in requests] == [False]


def test_runs_of_other_numbers_of_steps_are_told_by_their_mean(campaign, players, monkeypatch):
    played = players.train
    monkeypatch.setattr(players, "train", lambda request, key: {**played(request, key), "steps": 100 + request["seed"]})
    done = campaign("plain_unet", "unet", equal="time", seeds=3)
    assert (done.folder / "index.html").read_text(encoding="utf-8").count(">101</td>") == 2
