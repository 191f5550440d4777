"""What must not pass for a result: training cases, changed code and data, damaged scores, methods that failed."""

import json
import os

import numpy as np
import pytest
from benchmarking_players import DATASET, DICE, STEP_SECONDS

from autoseg.benchmarking import Budget, Question, dry_run
from autoseg.benchmarking.judging import conclude
from autoseg.benchmarking.verdict import judge
from autoseg.benchmarking.words import verdict_sentences
from autoseg.errors import UserError
from autoseg.storage import content_hash, write_json

MINE = """from torch import nn
from autoseg import Architecture, register


@register.architecture("mine")
class Mine(Architecture):
    \"\"\"{about}\"\"\"
"""
BEST = "plain_unet-supervised-common"


def page_of(done):
    return (done.folder / "index.html").read_text(encoding="utf-8")


def summary_of(done, key):
    return done.folder / done.record["runs"][key]["folder"] / "validation" / "summary.json"


# Training cases


def test_fold_all_compares_nothing(campaign, players):
    with pytest.raises(UserError, match="scored on the cases that it was trained on") as error:
        campaign(folds="all")
    assert "cv" in error.value.mend
    assert players.told == []


def test_a_dry_run_refuses_fold_all_too(place):
    question = Question(
        (str(place.raw / DATASET),), ("plain_unet",), Budget.parse("steps", "10"), folds="all", recipes="common"
    )
    with pytest.raises(UserError, match="fold all is scored"):
        dry_run(question, workspace=place)


def test_cases_that_two_folds_score_count_once(campaign):
    """The players score the same twenty cases in every fold."""
    (verdict,) = campaign("plain_unet", "unet", folds="0,1").verdicts
    assert (verdict.cases, verdict.units) == (40, 20)
    assert verdict.comparisons[0].units == 20
    assert any("40 cases are of 20 groups" in note for note in verdict.notes)


# Patients


def equal_methods(rng, patients, images, *, seeds=3):
    """Two methods that are equally good, but each better on some patients, on all of whose images alike."""
    field = {}
    for name in "ab":
        of_patient = np.repeat(rng.normal(0, 0.03, patients), images)
        values = 0.8 + of_patient + rng.normal(0, 0.003, (seeds, patients * images))
        field[name] = {"0": values[:, :, None]}
    return field


def test_images_of_a_patient_are_no_independent_evidence():
    rng, units = np.random.default_rng(8), [f"patient {number // 10}" for number in range(80)]
    alone = grouped = 0
    for _ in range(40):
        field = equal_methods(rng, 8, 10)
        alone += judge({"x": field}, resamples=200)[0][0].winner is not None
        grouped += judge({"x": field}, units={"x": units}, resamples=200)[0][0].winner is not None
    assert alone > 10  # as if there were 80 patients
    assert grouped <= 4


def test_groups_of_the_data_set_reach_the_verdict(campaign):
    done = campaign("plain_unet", "unet")
    done.record["datasets"][DATASET]["groups"] = {f"case_{case}": f"patient {case // 2}" for case in range(20)}
    (verdict,), _ = conclude(done.record)
    assert (verdict.cases, verdict.units) == (20, 10)
    assert "20 cases are of 10 groups" in page_of(done)


# Chance


def test_equal_methods_are_rarely_told_apart():
    """Noise that all cases of a run share: ten methods, 45 pairs, none of which differ."""
    rng, wrong = np.random.default_rng(11), 0
    for _ in range(30):
        difficulty = rng.normal(0, 0.05, 40)
        field = {
            str(method): {
                "0": (0.8 + difficulty + rng.normal(0, 0.01, (3, 1)) + rng.normal(0, 0.01, (3, 40)))[:, :, None]
            }
            for method in range(10)
        }
        (verdict,), _ = judge({"x": field}, resamples=200)
        wrong += any(comparison.decided for comparison in verdict.comparisons)
    assert wrong <= 3  # of 30; the corrected level is 5 %


def test_what_was_not_checked_is_not_claimed():
    rng = np.random.default_rng(12)
    difficulty = rng.normal(0, 0.05, 20)

    def field(folds):
        return {
            name: {str(fold): (mean + difficulty + rng.normal(0, 0.002, (2, 20)))[:, :, None] for fold in range(folds)}
            for name, mean in (("a", 0.8), ("b", 0.6))
        }

    said = {}
    for folds in (1, 5):
        (verdict,), _ = judge({"x": field(folds)}, resamples=200)
        assert verdict.winner == "a"
        said[folds] = (verdict_sentences(verdict, {"a": "A", "b": "B"})[0], " ".join(verdict.notes))
    assert "on this split" in said[1][0]
    assert "--folds cv" in said[1][1]
    assert said[1][0].endswith("more than seeds may make.")
    assert said[5][0].endswith("more than seeds or folds may make.")
    assert "split" not in said[5][1]


# Changed code, data and splits


def test_a_changed_network_is_planned_measured_and_trained_anew(campaign, players, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(STEP_SECONDS, "mine", 0.1)
    monkeypatch.setitem(DICE, "mine", 0.5)
    file = tmp_path / "mine.py"
    file.write_text(MINE.format(about="First."))
    campaign("plain_unet", str(file), seeds=1)
    players.told.clear()
    file.write_text(MINE.format(about="Second, and another network."))
    campaign("plain_unet", str(file), seeds=2)
    runs = [f"{DATASET}/mine-supervised-common/fold_0/seed_{seed}" for seed in (0, 1)]
    assert players.asked("plan") == [f"{DATASET}/mine"]
    assert players.asked("measure") == [f"{DATASET}/mine-supervised-common"]
    assert [key for key in players.asked("train") if "mine" in key] == runs
    assert [key for key in players.asked("train") if "plain" in key] == [f"{DATASET}/{BEST}/fold_0/seed_1"]
    assert "is made anew" in caplog.text


def test_another_split_makes_all_runs_anew(campaign, players, place):
    campaign("plain_unet", seeds=1)
    players.told.clear()
    names = sorted(file.name.removesuffix(".nii.gz") for file in (place.raw / DATASET / "labelsTr").glob("*.nii.gz"))
    split = [{"train": names[1:], "val": names[:1]}]
    (place.raw / DATASET / "splits_final.json").write_text(json.dumps(split))
    campaign("plain_unet", seeds=1)
    assert players.asked("train") == [f"{DATASET}/{BEST}/fold_0/seed_0"]


def test_a_changed_label_map_makes_all_runs_anew(campaign, players, place):
    import SimpleITK as sitk

    campaign("plain_unet", seeds=1)
    players.told.clear()
    file = sorted((place.raw / DATASET / "labelsTr").glob("*.nii.gz"))[0]
    label = sitk.ReadImage(str(file))
    changed = sitk.GetArrayFromImage(label)
    changed[changed == 2] = 1
    made = sitk.GetImageFromArray(changed)
    made.CopyInformation(label)
    sitk.WriteImage(made, str(file))
    campaign("plain_unet", seeds=1)
    assert players.asked("train") == [f"{DATASET}/{BEST}/fold_0/seed_0"]


def test_a_changed_recipe_is_measured_and_trained_anew(campaign, players, monkeypatch):
    from autoseg import plugins

    monkeypatch.setitem(STEP_SECONDS, "primus", 0.1)
    monkeypatch.setitem(DICE, "primus", 0.5)
    campaign("plain_unet", "primus", recipes="own", seeds=1)
    players.told.clear()
    network = plugins.load("architecture", "primus")
    monkeypatch.setattr(network, "recipe", {**network.recipe, "weight_decay": 0.123})
    campaign("plain_unet", "primus", recipes="own", seeds=1)
    assert players.asked("measure") == [f"{DATASET}/primus-supervised-own"]
    assert players.asked("train") == [f"{DATASET}/primus-supervised-own/fold_0/seed_0"]


def test_files_that_were_copied_since_make_no_run_anew(campaign, players, place):
    campaign("plain_unet", seeds=1)
    players.told.clear()
    for file in (place.raw / DATASET).rglob("*.nii.gz"):
        os.utime(file, ns=(1, 1))
    campaign("plain_unet", seeds=1)
    assert players.told == []


def test_runs_of_a_version_that_did_not_look_at_code_and_cases_are_kept(campaign, players):
    done = campaign("plain_unet")
    content, record = campaign.record(), done.record
    for run in content["runs"].values():
        run["content"] = earlier(record, run)
    for costs in content["costs"].values():
        del costs["code"], costs["recipe"]
    write_json(done.folder / "benchmark.json", {k: v for k, v in content.items() if k != "autoseg_checksum"})
    players.told.clear()
    campaign("plain_unet")
    assert players.told == []
    assert all({"code", "recipe"} <= costs.keys() for costs in campaign.record()["costs"].values())


def earlier(record, run):
    """Return the checksum that earlier versions gave a run of equal steps."""
    recipe = record.folder / "recipes" / run["dataset"] / f"{run['entry']}.toml"
    settings = {"observed_cases": 0, "stop_on_collapse": False, "steps": run["steps"]}
    digest = record["plans"][f"{run['dataset']}/plain_unet"]["digest"]
    return content_hash(digest, recipe.read_text(), settings, run["fold"], run["seed"], run["entry"])


def test_a_mistyped_configuration_leaves_nothing_behind(campaign, place):
    with pytest.raises(UserError, match="no configuration '3d_fulres'"):
        campaign("plain_unet", configuration="3d_fulres")
    assert not (place.root / "benchmarks" / "c").exists()
    assert campaign("plain_unet").failures == {}


# Methods that failed


def test_a_run_that_fails_in_one_of_three_folds_ends_with_a_verdict(campaign, players):
    """Folds then have unequal numbers of seeds."""
    players.fails["/unet-supervised-common/fold_1/seed_1"] = "no memory"
    (verdict,) = campaign("plain_unet", "unet", folds="0-2").verdicts
    assert verdict.winner == BEST
    assert verdict.folds == 3


def test_a_label_that_one_fold_has_alone_makes_no_winner():
    """Equal methods; the label of one fold is unsteady, and weighs in the mean as much as that of all folds."""
    rng, wrong = np.random.default_rng(13), 0
    for _ in range(60):
        field = {}
        for name in "ab":
            field[name] = {}
            for fold in range(5):
                usual = 0.8 + rng.normal(0, 0.003, (3, 1)) + rng.normal(0, 0.003, (3, 12))
                rare = 0.6 + rng.normal(0, 0.1, (3, 1)) + rng.normal(0, 0.01, (3, 12))
                field[name][str(fold)] = np.stack([usual, rare if fold == 0 else np.full((3, 12), np.nan)], 2)
        wrong += judge({"x": field}, resamples=200)[0][0].winner is not None
    assert wrong <= 3


def test_cases_that_could_not_be_scored_are_tried_again(campaign, players):
    players.unscored["/plain_unet-supervised-common/fold_0/seed_1"] = {"case_0": "no memory"}
    assert campaign("plain_unet", "unet").verdicts[0].winner is None
    players.unscored.clear()
    players.told.clear()
    again = campaign("plain_unet", "unet")
    assert players.asked("train") == [f"{DATASET}/{BEST}/fold_0/seed_1"]
    assert again.failures == {}
    assert again.verdicts[0].winner == BEST


def test_who_cannot_predict_some_cases_does_not_win(campaign, players):
    players.unscored["/plain_unet-"] = {f"case_{case}": "no memory" for case in range(5)}
    done = campaign("plain_unet", "unet")
    (verdict,) = done.verdicts
    assert verdict.standings[0].entry == BEST
    assert verdict.winner is None
    assert "no memory" in verdict_sentences(verdict, {BEST: "A", "unet-supervised-common": "B"})[0]
    assert sorted(done.failures) == [f"{DATASET}/{BEST}/fold_0/seed_{seed}" for seed in (0, 1)]
    text = page_of(done)
    assert "could not score 5 case(s): case_0 (no memory), case_1 (no memory), case_2 (no memory) and 2 more" in text
    assert "since not every run scored them (plain_unet did not)" in text
    assert "no memory" in (done.folder / "results.csv").read_text(encoding="utf-8")


def test_who_failed_with_some_seeds_does_not_win(campaign, players):
    players.fails["/plain_unet-supervised-common/fold_0/seed_2"] = "the loss is not finite"
    done = campaign("plain_unet", "unet", seeds=3)
    (verdict,) = done.verdicts
    assert verdict.winner is None
    assert "1 run(s) failed: fold 0, seed 2 (the loss is not finite)" in page_of(done)
    players.fails.clear()
    assert campaign("plain_unet", "unet", seeds=3).verdicts[0].winner == BEST


def test_failures_of_others_do_not_take_a_win(campaign, players):
    players.fails["/unet-supervised-common/fold_0/seed_1"] = "the loss is not finite"
    assert campaign("plain_unet", "unet", seeds=2).verdicts[0].winner == BEST


# Damaged files


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"cases": []}', '{"cases": {"c": null}}', '{"cases": {"c": {"Anterior": 3}}}',
     '{"cases": {"c": {"Anterior": {"dice": "x"}}}}', '{"cases": {"c": {"Anterior": {"dice": 7.0}}}}'],
)  # fmt: skip
def test_scores_that_cannot_be_read_are_made_anew(campaign, players, content, caplog):
    first = campaign("plain_unet", "unet")
    key = f"{DATASET}/{BEST}/fold_0/seed_1"
    summary_of(first, key).write_text(content)
    players.told.clear()
    again = campaign("plain_unet", "unet")
    assert players.asked("train") == [key]
    assert "the run is made anew" in caplog.text
    assert again.verdicts == first.verdicts


def test_a_dry_run_counts_no_run_whose_scores_cannot_be_read(campaign, place):
    first = campaign("plain_unet", "unet")
    summary_of(first, f"{DATASET}/{BEST}/fold_0/seed_1").write_text('{"cases": ')
    asked = Question(
        datasets=(str(place.raw / DATASET),), architectures=("plain_unet", "unet"), budget=Budget.parse("steps", "100"),
        seeds=2,
    )  # fmt: skip
    (told,) = dry_run(asked, name="c", workspace=place)
    assert (told.runs, told.finished) == (4, 3)


def test_scores_that_were_deleted_are_made_anew_from_the_first_step(campaign, players, monkeypatch):
    """Weights are not kept, so there is nothing left to score again."""
    first = campaign("plain_unet", "unet")
    key = f"{DATASET}/{BEST}/fold_0/seed_1"
    summary_of(first, key).unlink()
    requests = []
    real = players.train
    monkeypatch.setattr(players, "train", lambda request, key: requests.append(request) or real(request, key))
    campaign("plain_unet", "unet")
    assert [request["restart"] for request in requests] == [True]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda content: content.pop("question"), "question is not there"),
        (lambda content: content.update(runs=[]), "runs is not there, or no mapping"),
        (lambda content: next(iter(content["runs"].values())).pop("parameters"), "has no parameters"),
        (lambda content: content["plans"].update(x=3), "plans.x is no mapping"),
    ],
)
def test_a_damaged_record_is_told(campaign, change, fault):
    done = campaign("plain_unet")
    file = done.folder / "benchmark.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    content.pop("autoseg_checksum", None)  # as if it were written by hand
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=fault):
        campaign("plain_unet")


def test_no_case_in_common_is_said(campaign, players):
    players.unscored["/unet-"] = {f"case_{case}": "no memory" for case in range(20)}
    done = campaign("plain_unet", "unet")
    assert done.verdicts == ()
    text = page_of(done)
    assert "The finished runs have no scored case in common." in text
    assert "(unet did not)" in text
    assert "No run is finished yet" not in text
