"""A second start with other settings, seed or data must not pass for the first one."""

import json

import pytest

from autoseg.cli import main
from autoseg.errors import UserError
from autoseg.plans import Plans
from autoseg.storage import read_json, write_json
from autoseg.training import train

NAME = "Dataset004_Hippocampus"


def run(workspace, **options):
    (folder,) = train(NAME, "3d_fullres", "0", plans_name="tiny", device="cpu", workers=1, workspace=workspace,
                      **{"settings": {"steps": 2}, **options})  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 1}, "seed 0, not 1"),
        ({"settings": {"steps": 2, "learning_rate": 0.5}}, "settings learning_rate 0.003, not 0.5"),
        ({"settings": {"steps": 3}}, "settings steps 2, not 3"),
        ({"labelled": 2}, "training cases, not 2"),
    ],
)
def test_another_run_in_the_same_place_is_told_and_a_name_or_restart_helps(scratch, change, told):
    first = run(scratch)
    with pytest.raises(UserError, match=told) as error:
        run(scratch, **change)
    assert "--name" in str(error.value)
    assert "--restart" in str(error.value)
    named = run(scratch, name="second", **change)
    assert named.parent.name == "second__tiny__3d_fullres"
    assert read_json(first / "run.json")["seed"] == 0
    assert run(scratch, restart=True, **change) == first


def test_how_a_run_is_watched_may_change(scratch):
    folder = run(scratch)
    before = (folder / "weights.safetensors").stat().st_mtime_ns
    run(scratch, settings={"steps": 2, "observed_cases": 1, "stop_on_collapse": False})
    assert (folder / "weights.safetensors").stat().st_mtime_ns == before


def test_other_plans_of_the_same_name_and_other_pretrained_weights_are_told(scratch):
    folder = run(scratch)
    with pytest.raises(UserError, match="no pretrained weights"):
        run(scratch, pretrained=folder)
    used = Plans.read(folder / "plans.json")
    other = used.configurations["3d_fullres"].model_copy(update={"batch_size": 3})
    kept = scratch.plans_file(NAME, "tiny").read_bytes()
    try:
        used.model_copy(update={"configurations": {**used.configurations, "3d_fullres": other}}).write(
            scratch.plans_file(NAME, "tiny")
        )
        with pytest.raises(UserError, match="plan batch_size 2, not 3"):
            run(scratch)
    finally:
        scratch.plans_file(NAME, "tiny").write_bytes(kept)


def test_nothing_is_removed_before_all_folds_are_looked_at(scratch):
    run(scratch)
    with pytest.raises(UserError, match="fold_0"):
        train(NAME, "3d_fullres", "1,0", plans_name="tiny", device="cpu", workers=1, workspace=scratch, seed=3,
              settings={"steps": 2})  # fmt: skip
    assert not (scratch.run_folder(NAME, "supervised", "tiny", "3d_fullres", 1)).exists()


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".hidden"])
def test_names_are_names_of_folders(scratch, name):
    with pytest.raises(UserError, match="--name"):
        run(scratch, name=name)


def test_a_name_by_command(scratch, tmp_path, capsys, monkeypatch):
    for variable, folder in (
        ("RAW", scratch.raw),
        ("PREPROCESSED", scratch.preprocessed),
        ("RESULTS", scratch.results),
    ):
        monkeypatch.setenv(f"nnUNet_{variable.lower()}", str(folder))
    monkeypatch.delenv("AUTOSEG_WORKSPACE", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["train", NAME, "3d_fullres", "0", "--plans", "tiny", "--name", "mine", "--set", "steps=2", "--json"])
    assert ended.value.code == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["folder"].endswith("mine__tiny__3d_fullres/fold_0")
    assert record["trainer"] == "mine"
    assert record["method"].endswith("supervised")


def test_a_start_that_failed_before_it_learnt_anything_makes_room(scratch, tmp_path):
    plugin = tmp_path / "failing.py"
    plugin.write_text(
        "from autoseg import Trainer, register\n"
        '@register.trainer("broken")\n'
        "class Broken(Trainer):\n"
        "    def training_step(self, batches, progress):\n"
        "        raise ValueError('broken')\n"
    )
    with pytest.raises(ValueError, match="broken"):
        run(scratch, trainer=str(plugin), name="shared", settings={"steps": 4})
    assert read_json(run(scratch, name="shared") / "run.json")["status"] == "finished"
    with pytest.raises(UserError, match="settings steps 2, not 3"):
        run(scratch, name="shared", settings={"steps": 3})


@pytest.mark.parametrize(
    "setting", ["learning_rate=-1", "batch_size=0", "steps=0", "momentum=1.5", "weight_decay=-1", "accumulate=0"]
)
def test_numbers_out_of_range_are_told_before_anything_is_written(scratch, setting):
    name, _, value = setting.partition("=")
    with pytest.raises(UserError, match=f"setting {name} cannot be '{value}': Input should be"):
        run(scratch, settings={name: value}, name="range")
    assert not list(scratch.results.glob("*/range__*"))


def test_a_run_of_an_earlier_version_without_a_setting_is_the_run_that_it_was(scratch):
    folder = run(scratch)
    record = read_json(folder / "run.json")
    assert record["identity"]["settings"].pop("own_decay") is False
    write_json(folder / "run.json", record)
    assert run(scratch) == folder
    with pytest.raises(UserError, match="a run with settings own_decay False, not True"):
        run(scratch, settings={"steps": 2, "own_decay": True})


def test_an_edited_trainer_is_no_finished_run_but_a_stopped_run_goes_on_with_it(scratch, tmp_path, caplog):
    source = (
        "from autoseg import Trainer, register\n"
        "@register.trainer('edited')\n"
        "class Edited(Trainer):\n"
        "    def loss(self, logits, target):\n"
        "        return FACTOR * super().loss(logits, target)\n"
    )
    file = tmp_path / "edited.py"
    file.write_text(source.replace("FACTOR", "2"))
    folder = run(scratch, trainer=str(file))
    assert run(scratch, trainer=str(file)) == folder
    assert (folder / "trainer.py").read_text() == file.read_text(), "the run keeps a copy"
    assert not (folder / "architecture.py").exists(), "installed files are not copied"
    file.write_text(source.replace("FACTOR", "3"))
    with pytest.raises(UserError, match="a run with another trainer file, or an earlier version of it"):
        run(scratch, trainer=str(file))
    assert run(scratch, trainer=str(file), name="second").parent.name.startswith("second__")
    record = read_json(folder / "run.json")
    write_json(folder / "run.json", {**record, "status": "interrupted"})
    with caplog.at_level("WARNING", "autoseg.training"):
        run(scratch, trainer=str(file))
    assert "the trainer file changed" in caplog.text
    assert read_json(folder / "run.json")["identity"]["trainer file"] != record["identity"]["trainer file"]
