"""Options of the networks of a campaign: whose they are, what is refused, where they are told."""

import csv

import pytest
from benchmarking_players import DATASET, DICE, STEP_SECONDS

from autoseg.benchmarking import Budget, Question
from autoseg.benchmarking.options import options_of_each
from autoseg.errors import UserError
from autoseg.plugins import load

NETWORKS = ("plain_unet", "hiformer", "attention_unet", "primus")


@pytest.fixture
def kinds():
    return {name: load("architecture", name) for name in NETWORKS}


@pytest.fixture
def planned(players, monkeypatch):
    """Network -> options, as the child that plans gets them."""
    told = {}
    played = players.plan
    for name in ("primus", "attention_unet"):
        monkeypatch.setitem(STEP_SECONDS, name, 0.1)
        monkeypatch.setitem(DICE, name, 0.5)

    def plan(request, key):
        told[key.partition("/")[2]] = request["network_options"]
        return played(request, key)

    monkeypatch.setattr(players, "plan", plan)
    return told


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"primus.size": "M"}, {"primus": {"size": "M"}}),
        ({"norm": "instance"}, {"hiformer": {"norm": "instance"}, "attention_unet": {"norm": "instance"}}),
        (
            {"hiformer.norm": "batch", "norm": "instance"},  # in either order the named network has its own
            {"hiformer": {"norm": "batch"}, "attention_unet": {"norm": "instance"}},
        ),
    ],
)
def test_whose_options_they_are(kinds, given, expected):
    takers = [name for name in NETWORKS if "norm" in kinds[name].defaults]
    assert takers == ["hiformer", "attention_unet"]
    assert options_of_each(given, kinds) == {**{name: {} for name in NETWORKS}, **expected}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"primus.siz": "M"}, r"--network-option primus.siz: Primus has no option 'siz'[\s\S]*its options: .*size"),
        ({"siz": "M"}, r"none of the networks compared has an option 'siz'[\s\S]*did you mean size\?"),
        ({"segmamba.size": "M"}, r"no network 'segmamba' is compared[\s\S]*plain_unet, hiformer"),
        ({"primus.size": "XXL"}, r"Primus cannot take size='XXL'[\s\S]*one of: "),
        ({"plain_unet.norm": "batch"}, r"--network-option plain_unet.norm: PlainUNet has no option"),
    ],
)
def test_what_is_refused(kinds, given, message):
    with pytest.raises(UserError, match=message):
        options_of_each(given, kinds)


def test_options_of_a_network_that_cannot_be_loaded_are_not_called_unknown(kinds):
    assert options_of_each({"mine.depth": 3, "width": 8}, {"plain_unet": kinds["plain_unet"]}, ["mine"]) == {
        "plain_unet": {}
    }


def test_a_wrong_option_is_told_before_anything_runs(campaign, players):
    with pytest.raises(UserError, match="Primus has no option"):
        campaign("primus", network_options={"primus.sise": "M"})
    assert players.told == []


def test_options_are_planned_and_told(campaign, planned):
    done = campaign("plain_unet", "primus", network_options={"primus.size": "M"}, recipes="common", seeds=1)
    assert planned == {"plain_unet": {}, "primus": {"size": "M"}}
    with (done.folder / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["architecture"]: row["network_options"] for row in csv.DictReader(file) if row["kind"] == "run"}
    assert rows == {"plain_unet": "", "primus": "size=M"}
    assert ">size=M</td>" in (done.folder / "index.html").read_text(encoding="utf-8")


def test_a_network_keeps_its_options_within_a_campaign(campaign, planned):
    asked = {"recipes": "common", "seeds": 1}
    campaign("primus", network_options={"primus.size": "M"}, **asked)
    planned.clear()
    campaign("primus", "attention_unet", network_options={"size": "M", "norm": "instance"}, **asked)
    assert planned == {"attention_unet": {"norm": "instance"}}
    for other in ({}, {"size": "L"}):
        with pytest.raises(UserError, match=rf"{DATASET}/primus has the options .*size.*[\s\S]*another --name"):
            campaign("primus", network_options=other, **asked)


def test_existing_plans_take_no_options():
    with pytest.raises(UserError, match=r"part of a plan[\s\S]*leave --plans out"):
        Question(("4",), ("primus",), Budget("steps", 5), plans="auto", network_options={"size": "M"})
