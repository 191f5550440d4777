"""Which recipes a campaign compares: the authors' suited to its length, as published, and the common one."""

import csv
import tomllib

import pytest
from benchmarking_players import DATASET, DICE, STEP_SECONDS

from autoseg.benchmarking import Budget, Question
from autoseg.errors import UserError
from autoseg.plugins import load
from autoseg.training.recipe import recipe_for


@pytest.fixture(autouse=True)
def more_players(monkeypatch):
    for name in ("primus", "ms_dual_guided"):
        monkeypatch.setitem(STEP_SECONDS, name, 0.4)
        monkeypatch.setitem(DICE, name, 0.4)


def recipes_of(done):
    files = (file for file in done.folder.glob(f"recipes/{DATASET}/*.toml") if not file.stem.endswith(".probe"))
    return {file.stem: tomllib.loads(file.read_text(encoding="utf-8")) for file in files}


def question(**changes):
    return Question(datasets=("4",), architectures=("unet",), budget=Budget("steps", 5), **changes)


@pytest.mark.parametrize(
    ("asked", "kinds"),
    [
        ("both", ("own", "common")),
        ("published", ("published",)),
        (("common", "published"), ("published", "common")),
        (("published", "both", "own"), ("own", "published", "common")),
    ],
)
def test_one_or_more_recipes_may_be_asked_for(asked, kinds):
    assert question(recipes=asked).kinds == kinds


def test_an_unknown_recipe_among_others_is_told():
    with pytest.raises(UserError, match=r"--recipes 'mine' is unknown[\s\S]*own, published, common, both"):
        question(recipes=("common", "mine"))


@pytest.mark.parametrize("seeds", [0, 1001, 10**22])
def test_a_number_of_seeds_that_nobody_runs_is_told(seeds):
    with pytest.raises(UserError, match=rf"--seeds {seeds} is no number of runs within 1 and 1000\nTo mend it: use"):
        question(seeds=seeds)
    assert question(seeds=1000).seeds == 1000


def test_a_published_recipe_is_not_suited_to_a_short_campaign(campaign):
    done = campaign("primus", "hiformer", recipes=("own", "published"), seeds=1)
    found = recipes_of(done)
    primus, hiformer = (load("architecture", name).recipe for name in ("primus", "hiformer"))
    for network, recipe in (("primus", primus), ("hiformer", hiformer)):
        kept = found[f"{network}-supervised-published"]
        assert {name: kept[name] for name in recipe} == dict(recipe)
        assert kept["warmup_steps"] == 0  # else it would go before the authors' own warm-up
    assert primus["learning_rate"] == 3e-4
    assert found["primus-supervised-own"]["learning_rate"] == 3e-3
    assert found["hiformer-supervised-own"]["optimizer"] == "adamw"
    for recipe in found.values():  # the data's part is the same for all
        assert recipe["augmentation"] == recipe_for(100)["augmentation"]
        assert recipe["mirror"] is recipe_for(100)["mirror"]


def test_a_network_without_a_recipe_of_its_own_has_that_of_nnunet(campaign):
    done = campaign("plain_unet", recipes=("published", "common"), seeds=1)
    assert sorted(done.record["entries"]) == ["plain_unet-supervised-common", "plain_unet-supervised-published"]
    kept = recipes_of(done)["plain_unet-supervised-published"]
    assert (kept["optimizer"], kept["learning_rate"], kept["weight_decay"]) == ("sgd", 0.01, 3e-5)


def test_page_and_table_tell_which_recipe_was_used(campaign):
    done = campaign("primus", recipes=("own", "published", "common"), seeds=1)
    with (done.folder / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "run"]
    assert sorted(row["recipe"] for row in rows) == ["common", "own", "published"]
    assert {row["entry"] for row in rows} == {"primus", "primus (own recipe)", "primus (published recipe)"}
    assert {row["recipe"]: row["learning_rate"] for row in rows} == {
        "common": "0.006", "own": "0.003", "published": "0.0003"
    }  # fmt: skip
    page = (done.folder / "index.html").read_text(encoding="utf-8")
    assert "Own and published recipes" in page
    assert "primus (published recipe)" in page
    published = next(row for row in page.split("<tr") if "(published recipe)" in row and "beta2=0.98" in row)
    assert "learning_rate=0.0003" in published
    assert "warmup_steps=0" in published


def test_in_a_full_campaign_the_published_recipe_is_the_own_one_and_not_run_twice(campaign, players):
    done = campaign("primus", "plain_unet", recipes=("own", "published", "common"), budget="20000", seeds=1)
    assert sorted(players.asked("train")) == [
        f"{DATASET}/{network}/fold_0/seed_0"
        for network in ("plain_unet-supervised-common", "primus-supervised-common", "primus-supervised-own")
    ]
    assert done.record["skipped"] == {
        f"{DATASET}/primus-supervised-published": "at this length its published recipe is its own one",
        f"{DATASET}/plain_unet-supervised-published": "at this length its published recipe is the common one",
    }


def test_a_published_recipe_takes_the_trainer_of_the_authors(campaign):
    done = campaign("ms_dual_guided", recipes=("published", "common"), seeds=1)
    assert sorted(done.record["entries"]) == [
        "ms_dual_guided-guided_attention-published", "ms_dual_guided-supervised-common"
    ]  # fmt: skip


def test_a_trainer_that_does_nothing_for_a_network_is_no_competitor(campaign):
    done = campaign(
        "plain_unet", "ms_dual_guided", trainers=("guided_attention", "supervised"), recipes="common", seeds=1
    )
    run = {key.split("/")[1] for key in done.record["runs"]}
    assert run == {
        "plain_unet-supervised-common", "ms_dual_guided-supervised-common", "ms_dual_guided-guided_attention-common",
    }  # fmt: skip
    skipped = done.record["skipped"][f"{DATASET}/plain_unet-guided_attention-common"]
    assert skipped == "trainer guided_attention trains plain_unet as supervised does"


def test_a_trainer_that_concerns_other_networks_is_told(campaign, caplog):
    campaign("plain_unet", "ms_dual_guided", trainers=("guided_attention",), recipes="common", seeds=1)
    said = "trainer guided_attention concerns ms_dual_guided only; it trains plain_unet as supervised does"
    assert caplog.messages.count(said) == 1
