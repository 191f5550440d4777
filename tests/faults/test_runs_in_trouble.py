"""Runs that lack cases, fail at some, share their folder with another command, or whose weights were damaged."""

import pytest

from autoseg.cli.running import run
from autoseg.errors import UserError
from autoseg.selection.runs import find_experiments
from autoseg.storage import read_json
from autoseg.store import CaseStore
from autoseg.training import validation
from autoseg.training.pretrained import read_weights
from autoseg.training.run_lock import alone_in
from autoseg.workspace import Workspace

NAME = "Dataset004_Hippocampus"


def command(place, *more):
    return ["train", NAME, "3d_fullres", "0", "--plans", "tiny", "--device", "cpu", "--workers", "1", "--set",
            "steps=1", "--workspace", str(place), *more]  # fmt: skip


def folder_of(place):
    return place / "results" / NAME / "supervised__tiny__3d_fullres" / "fold_0"


def test_cases_that_are_left_out_or_fail_are_named_and_damaged_weights_too(place, monkeypatch, capsys):
    stored = CaseStore.cases.fget
    everything = stored(next(iter(_stores(place))))
    validated = _validation_cases(place)
    lost = next(case for case in everything if case not in validated)

    def fails(case, *rest):
        raise UserError("the file is truncated", where=f"{case}.nii.gz")

    with monkeypatch.context() as patch:
        patch.setattr(CaseStore, "cases", property(lambda store: tuple(c for c in stored(store) if c != lost)))
        patch.setattr(validation, "_validate_case", fails)
        code = run(command(place))
    said = capsys.readouterr()
    assert code == 1
    assert said.err.count(f"warning: 1 of {len(everything)} case(s) are left out") == 1
    assert f"since they are not preprocessed: {lost}\n" in said.err
    for case in validated:
        assert f"case {case}, validation of fold 0: {case}.nii.gz: the file is truncated" in said.err
    record = read_json(folder_of(place) / "run.json")
    assert record["left_out_cases"] == [lost]
    assert record["validation"]["failed"] == sorted(validated)

    weights = folder_of(place) / "weights.safetensors"
    assert read_weights(weights)
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.safetensors: the weights do not match the weights_sha256") as told:
        read_weights(weights)
    assert "--restart" in told.value.mend


def test_a_damaged_label_map_of_validation_is_named_and_made_anew(place, capsys):
    assert run(command(place)) == 0
    folder = folder_of(place)
    noted = read_json(folder / "validation" / "summary.json")["label_maps"]
    assert sorted(noted) == sorted(path.name for path in (folder / "validation").glob("*.nii.gz")) != []
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    damaged = folder / "validation" / min(noted)
    damaged.write_bytes(bytes([before[damaged][0] ^ 1]) + before[damaged][1:])

    (found,) = finished_runs(place)
    with pytest.raises(UserError, match=f"{damaged.name}: missing, or not as validation wrote it") as told:
        found.label_map(min(noted).removesuffix(".nii.gz"), ".nii.gz")
    assert "call the same train command again" in told.value.mend
    capsys.readouterr()
    assert run(command(place)) == 0
    assert f"the fold is validated again: {damaged} is missing or damaged" in capsys.readouterr().err
    assert damaged.read_bytes() == before[damaged]
    weights = folder / "weights.safetensors"
    assert weights.read_bytes() == before[weights]
    assert run(command(place)) == 0
    assert "finished already" in capsys.readouterr().err


def finished_runs(place):
    workspace = Workspace.open(place)
    experiments, _ = find_experiments(NAME, workspace)
    return [one for experiment in experiments for one in experiment.runs.values()]


def _stores(place):
    return [CaseStore(file.parent) for file in (place / "preprocessed" / NAME).glob("*3d_fullres/index.json")]


def _validation_cases(place):
    from autoseg.raw import make_splits, open_dataset

    workspace = Workspace.open(place)
    return make_splits(open_dataset(NAME, workspace), workspace=workspace)[0]["val"]


def test_two_commands_in_one_run_folder_exclude_each_other(place, capsys):
    folder = folder_of(place)
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("of the first command\n")
    with alone_in([folder]):
        assert run(command(place, "--restart")) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: another command is at work in {folder}\nTo mend it: wait until it has ended")
    assert (folder / "log.jsonl").read_text() == "of the first command\n"
    assert [path.name for path in folder.parent.iterdir()] == ["fold_0"]


FULL = """
import torch
from autoseg import Trainer, register

@register.trainer("full")
class Full(Trainer):
    def loss(self, logits, segmentation):
        if self.step == 1:
            raise {error}
        return super().loss(logits, segmentation)
"""


@pytest.mark.parametrize("error", ["torch.OutOfMemoryError('x')", "RuntimeError('CUBLAS_STATUS_ALLOC_FAILED')"])
def test_a_full_device_in_training_is_told_with_the_mend(place, tmp_path, capsys, error):
    plugin = tmp_path / "full.py"
    plugin.write_text(FULL.format(error=error))
    arguments = [word.replace("steps=1", "steps=3") for word in command(place, "--trainer", str(plugin))]
    assert run(arguments) == 2
    said = capsys.readouterr().err
    assert "the device's memory was full at step 1, with batches of 2 patches of " in said
    assert (
        f"To mend it: close other programs that use the device, or plan for less: autoseg plan-and-preprocess {NAME}"
        in said
    )
    assert "defect" not in said
    record = read_json(place / "results" / NAME / "full__tiny__3d_fullres" / "fold_0" / "run.json")
    assert (record["status"], record["steps_done"]) == ("failed", 1)
