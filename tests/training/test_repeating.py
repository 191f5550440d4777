"""The command that trains a run again, as messages name it."""

from pathlib import Path

import pytest

from autoseg.cli.durations import parse_duration
from autoseg.training import train
from autoseg.training.log import read_run
from autoseg.training.repeating import mend_by_training

PLACE = Path("results") / "Dataset001_Liver" / "supervised__auto__2d" / "fold_1"
RECORD = {"method": "supervised", "architecture": "unet", "settings": {}, "seed": 0, "time_budget": None}


def named(kept_as="supervised", plans="auto", **fields):
    folder = PLACE.parent.with_name(f"{kept_as}__{plans}__2d") / PLACE.name
    start = "run: autoseg train Dataset001_Liver 2d 1"
    mend = mend_by_training(folder, {**RECORD, **fields}, restart=False)
    assert mend.startswith(start)
    return mend.removeprefix(start).strip()


def test_what_has_a_default_is_not_named():
    assert named() == ""
    assert mend_by_training(PLACE, RECORD, restart=True).endswith(" 2d 1 --restart")


def test_method_network_and_name_are_named():
    assert named("mean_teacher", method="mean_teacher") == "--trainer mean_teacher"
    assert named("mine", method="/my files/mine.py:mine") == "--trainer '/my files/mine.py:mine'"
    assert named("supervised-swin", architecture="swin") == "--architecture swin"
    assert named("second", "small") == "--name second --architecture unet --plans small"


def test_settings_that_were_given_and_what_else_makes_the_run_are_named():
    settings = {
        "steps": {"value": 5, "origin": "command line"},
        "mirror": {"value": False, "origin": "recipe"},
        "batch_size": {"value": None, "origin": "command line"},
        "optimizer": {"value": "sgd", "origin": "plan"},
    }
    assert named(settings=settings) == "--set steps=5 --set mirror=false --set batch_size=none"
    found = named(seed=3, labelled=10, pretrained="/a/b", deterministic=True)
    assert found == "--labelled 10 --pretrained /a/b --seed 3 --deterministic"
    assert named(time_budget=89.2) == "--time-budget 90s"
    assert parse_duration("90s") == 90


def test_without_a_record_the_place_tells_what_it_can():
    others = ", with the other options of its first start"
    start = "run: autoseg train Dataset001_Liver 2d 1"
    assert mend_by_training(PLACE, restart=True) == f"{start} --restart{others}"
    folder = PLACE.parent.with_name("mean_teacher__auto__2d") / "fold_1"
    assert mend_by_training(folder, restart=False) == f"{start} --trainer mean_teacher{others}"
    folder = PLACE.parent.with_name("my__own__small__2d") / "fold_1"
    assert mend_by_training(folder, restart=False) == f"{start} --name my__own --plans small{others}"


@pytest.mark.parametrize("folder", [Path("elsewhere"), Path("a__b__c") / "copy"])
def test_a_run_that_was_moved_has_no_command(folder):
    assert mend_by_training(folder, RECORD, restart=True) == "repeat the train command of this run with --restart"


def test_the_named_command_is_that_of_the_run(scratch):
    """What it names gives the run that is there, which is finished: nothing is trained."""
    options = {"plans_name": "tiny", "device": "cpu", "workers": 1, "workspace": scratch}
    (folder,) = train(
        scratch.raw / "Dataset004_Hippocampus", "2d", "0", settings={"steps": "1", "batch_size": "none"}, seed=2,
        name="other", architecture="unet", **options,
    )  # fmt: skip
    before = (folder / "weights.safetensors").stat().st_mtime_ns
    record = read_run(folder)
    assert mend_by_training(folder, record, restart=False) == (
        "run: autoseg train Dataset004_Hippocampus 2d 0 --name other --architecture unet --plans tiny "
        "--set batch_size=none --set steps=1 --seed 2"
    )
    train(
        "Dataset004_Hippocampus", "2d", "0", name="other", architecture=record["architecture"],
        settings={"steps": "1", "batch_size": "none"}, seed=2, **options,
    )  # fmt: skip
    assert (folder / "weights.safetensors").stat().st_mtime_ns == before
