"""From run folders to a model folder that predicts: ensembles, ties, folds, cascades, atomic replacement."""

import json
import shutil

import numpy as np
import pytest

import autoseg.selection.writing as writing
from autoseg.errors import UserError
from autoseg.evaluation import evaluate_case
from autoseg.inference import Predictor, postprocess
from autoseg.model_folder import read_model
from autoseg.raw import read_image, read_label
from autoseg.selection import best, find_best
from autoseg.selection.runs import Run
from autoseg.storage import file_hash, read_json, write_json


def candidates(model):
    return {candidate["name"]: candidate for candidate in model.selection["candidates"]}


def mean_dice(lab, cases, label_of):
    """The card's foreground mean Dice, computed plainly."""
    table = []
    for case in (case for case in lab.dataset.cases if case.id in cases):
        reference, geometry = read_label(case.label)
        scores = evaluate_case(
            label_of(case), reference, labels=lab.dataset.labels, spacing=geometry.spacing, surface=False
        )
        table.append([scores[name].dice for name in lab.dataset.labels.names])
    return np.mean(table, axis=0).mean()


def validated(lab, configuration, steps=()):
    def label_of(case):
        fold = next(fold for fold, cases in lab.folds.items() if case.id in cases)
        file = lab.run_folder(configuration, fold) / "validation" / f"{case.id}.nii.gz"
        return postprocess(read_label(file)[0].astype(np.int16), steps)

    return label_of


def test_the_ensemble_of_opposite_errors_wins_and_predicts_as_scored(two_biased):
    lab = two_biased
    folder = find_best(lab.name, lab.workspace, device="cpu", workers=1)
    assert folder == lab.workspace.model_folder(lab.name)
    model = read_model(folder)  # checksums are verified
    assert model.selection["best"] == "2d + 3d_fullres"
    found = candidates(model)
    cases = [case.id for case in lab.dataset.cases]
    for name in ("2d", "3d_fullres"):
        assert found[name]["foreground_dice"] == pytest.approx(mean_dice(lab, cases, validated(lab, name)))
    assert found["2d + 3d_fullres"]["foreground_dice"] > max(found["2d"]["foreground_dice"], 0.9)
    assert [sorted(member.folds) for member in model.members] == [["0", "1"], ["0", "1"]]
    assert model.members[0].plugin_source == "members/2d/pointwise.py"

    # Both folds hold the same network, so the model folder predicts exactly what was scored.
    predictor = Predictor.load(folder, device="cpu", trust_plugins=True)

    def predicted(case):
        image = read_image(case.images, channels=1)
        return predictor.predict_array(image.data, image.geometry.spacing).label

    assert mean_dice(lab, cases, predicted) == pytest.approx(model.selection["foreground_dice_postprocessed"])


def test_post_processing_is_scored_as_it_will_be_applied(two_biased, monkeypatch):
    monkeypatch.setattr(best, "FEWEST_CASES", 4)
    lab = two_biased
    model = read_model(find_best(lab.name, lab.workspace, ensembles=False, workers=1))
    chosen = model.selection["best"]
    assert chosen in ("2d", "3d_fullres")
    assert model.postprocessing[0].values == (1, 2)  # the false island goes
    cases = [case.id for case in lab.dataset.cases]
    expected = mean_dice(lab, cases, validated(lab, chosen, model.postprocessing))
    assert model.selection["foreground_dice_postprocessed"] == pytest.approx(expected)
    assert expected > model.selection["foreground_dice"]


def test_few_cases_or_cases_that_were_trained_on_choose_no_post_processing(two_biased, lab):
    model = read_model(find_best(two_biased.name, two_biased.workspace, ensembles=False, workers=1))
    assert model.postprocessing == ()
    assert any("only 4 validation case(s)" in note for note in model.selection["notes"])
    assert not any(trial["accepted"] for trial in model.selection["postprocessing"])
    assert model.selection["foreground_dice_postprocessed"] == pytest.approx(model.selection["foreground_dice"])


def test_ties_go_to_the_earlier_candidate(lab):
    for fold, cases in lab.folds.items():
        lab.run("3d_fullres", fold, cases, 0.1)
        lab.run("2d", fold, cases, 0.1)
    model = read_model(find_best(lab.name, lab.workspace, device="cpu", workers=1))
    scores = [candidate["foreground_dice"] for candidate in model.selection["candidates"]]
    assert scores[0] == scores[1] == scores[2]
    assert model.selection["best"] == "2d"
    assert [member.name for member in model.members] == ["2d"]


def test_missing_folds_reduce_the_cases_not_the_function(lab):
    lab.run("2d", 0, lab.folds[0], 0.3)
    lab.run("3d_fullres", 0, lab.folds[0], 0.0)
    lab.run("3d_fullres", 1, lab.folds[1], 0.0)
    lab.run("2d", 1, lab.folds[1], 0.3, status="running")
    model = read_model(find_best(lab.name, lab.workspace, ensembles=False, workers=1))
    assert {candidate["cases"] for candidate in model.selection["candidates"]} == {2}
    assert model.selection["best"] == "3d_fullres"
    assert sorted(model.members[0].folds) == ["0", "1"]
    notes = " ".join(model.selection["notes"])
    assert "2 case(s) that all candidates validated" in notes
    assert "'running'" in notes


def test_only_the_fold_all(lab):
    lab.run("2d", "all", [case.id for case in lab.dataset.cases], 0.2)
    model = read_model(find_best(lab.name, lab.workspace, workers=1))
    assert list(model.members[0].folds) == ["all"]
    assert any("too good" in note for note in model.selection["notes"])


def test_scores_on_training_cases_do_not_compete(lab):
    lab.run("2d", "all", [case.id for case in lab.dataset.cases], 0.0)
    lab.run("3d_fullres", 0, lab.folds[0], 0.4)
    model = read_model(find_best(lab.name, lab.workspace, workers=1))
    assert model.selection["best"] == "3d_fullres"
    assert list(candidates(model)) == ["3d_fullres"]


def test_a_cascade_brings_its_previous_stage(lab):
    for fold, cases in lab.folds.items():
        lab.run("3d_lowres", fold, cases, 0.4)
    for fold, cases in lab.folds.items():
        lab.run("3d_cascade_fullres", fold, cases, 0.0, previous="t__p__3d_lowres", sharpness=30.0)
    both = read_model(find_best(lab.name, lab.workspace, device="cpu", workers=1))
    assert both.selection["best"] == "3d_lowres + 3d_cascade_fullres"
    model = read_model(find_best(lab.name, lab.workspace, ensembles=False, workers=1))
    assert model.selection["best"] == "3d_cascade_fullres"
    for found, in_ensemble in ((both, True), (model, False)):
        assert [(m.name, m.in_ensemble, m.previous_stage) for m in found.members] == [
            ("3d_lowres", in_ensemble, None), ("3d_cascade_fullres", True, "3d_lowres"),
        ]  # fmt: skip
    alone = find_best(lab.name, lab.workspace, configurations=["3d_cascade_fullres"], workers=1)
    assert [member.name for member in read_model(alone).members] == ["3d_lowres", "3d_cascade_fullres"]
    shutil.rmtree(lab.workspace.experiment_folder(lab.name, "t", "p", "3d_lowres"))
    with pytest.raises(UserError, match="3d_lowres as input, of which no run is finished"):
        find_best(lab.name, lab.workspace, workers=1)


def test_several_trainers_are_told_apart(lab):
    lab.run("2d", 0, lab.folds[0], 0.3)
    lab.run("2d", 0, lab.folds[0], 0.0, trainer="other")
    model = read_model(find_best(lab.name, lab.workspace, workers=1, ensembles=False))
    assert list(candidates(model)) == ["other__p__2d", "t__p__2d"]
    assert model.selection["best"] == "other__p__2d"
    model = read_model(find_best(lab.name, lab.workspace, workers=1, trainer="t"))
    assert model.members[0].trainer == "t"


def test_nothing_is_done_twice(lab):
    lab.run("2d", 0, lab.folds[0], 0.3)
    folder = find_best(lab.name, lab.workspace, workers=1)
    stamp = (folder / "model.json").stat().st_mtime_ns
    find_best(lab.name, lab.workspace, workers=1)
    assert (folder / "model.json").stat().st_mtime_ns == stamp
    find_best(lab.name, lab.workspace, workers=1, restart=True)
    assert (folder / "model.json").stat().st_mtime_ns != stamp
    lab.run("2d", 1, lab.folds[1], 0.3)
    assert sorted(read_model(find_best(lab.name, lab.workspace, workers=1)).members[0].folds) == ["0", "1"]


DAMAGES = {
    "missing weights": ("members/2d/fold_0.safetensors", None),
    "flipped weights": ("members/2d/fold_0.safetensors", lambda content: content[:-2] + bytes([content[-2] ^ 4, 0])),
    "cut plans": ("members/2d/plans.json", lambda content: content[:99]),
    "missing training record": ("members/2d/fold_1.json", None),
    "cut description": ("model.json", lambda content: content[:99]),
    "changed description": ("model.json", lambda content: content.replace(b'"dims_of_data": 3', b'"dims_of_data": 2')),
    "another form of description": ("model.json", lambda _: b"[]"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_model_is_written_anew_with_one_warning(lab, kind, caplog):
    for fold, cases in lab.folds.items():
        lab.run("2d", fold, cases, 0.3)
    folder = find_best(lab.name, lab.workspace, workers=1)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    name, change = DAMAGES[kind]
    damaged = folder / name
    if change is None:
        damaged.unlink()
    else:
        damaged.write_bytes(change(files[damaged]))
        assert damaged.read_bytes() != files[damaged]
    caplog.clear()
    find_best(lab.name, lab.workspace, workers=1)
    (told,) = [record.getMessage() for record in caplog.records if "anew" in record.getMessage()]
    assert told.startswith(f"the model is written anew: {damaged}: ")
    assert "\n" not in told
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files
    read_model(folder)
    caplog.clear()
    find_best(lab.name, lab.workspace, workers=1)
    assert "anew" not in caplog.text
    assert damaged.read_bytes() == files[damaged]


@pytest.mark.parametrize("name", ["run.json", "plans.json", "validation/summary.json"])
def test_a_damaged_run_without_a_checkpoint_is_told_with_the_command(lab, name):
    folder = lab.run("2d", 0, lab.folds[0], 0.3)
    file = folder / name
    file.write_bytes(file.read_bytes()[:99])
    with pytest.raises(UserError, match=f"{file}: ") as told:
        find_best(lab.name, lab.workspace, workers=1)
    # Only run.json knows by which method a run was trained that is kept under the name "t".
    assert told.value.mend.startswith(f"run: autoseg train {lab.name} 2d 0 --name t --plans p --restart")


def test_a_failure_while_writing_leaves_the_old_model(lab, monkeypatch):
    lab.run("2d", 0, lab.folds[0], 0.3)
    folder = find_best(lab.name, lab.workspace, workers=1)
    before = (folder / "model.json").read_text()

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(writing, "checksums", broken)
    with pytest.raises(OSError, match="disk full"):
        find_best(lab.name, lab.workspace, workers=1, restart=True)
    assert (folder / "model.json").read_text() == before
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_a_flipped_bit_of_weights_does_not_get_into_a_model(lab, monkeypatch):
    for fold, cases in lab.folds.items():
        folder = lab.run("3d_fullres", fold, cases, 0.0)
        record = {**read_json(folder / "run.json"), "weights_sha256": file_hash(folder / "weights.safetensors")}
        write_json(folder / "run.json", record, sealed=True)
    model = find_best(lab.name, lab.workspace, workers=1)
    weights = folder / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 4
    weights.write_bytes(content)
    told = rf"{weights}: the weights do not match the weights_sha256 of run\.json(.|\n)*--restart"
    with pytest.raises(UserError, match=told):
        find_best(lab.name, lab.workspace, workers=1)
    monkeypatch.setattr(Run, "check_weights", _only_copies(Run.check_weights))
    with pytest.raises(UserError, match=told):  # what was damaged since, too, or by the copying
        find_best(lab.name, lab.workspace, workers=1)
    assert read_model(model)


def test_a_model_folder_says_how_each_fold_was_trained(lab):
    settings = {"steps": {"value": 7, "origin": "--set"}, "optimizer": {"value": "adamw", "origin": "plan"}}
    for fold, cases in lab.folds.items():
        folder = lab.run("3d_fullres", fold, cases, 0.0)
        given = {"settings": settings, "seed": int(fold), "versions": {"autoseg": "0.1.0"}, "steps_done": 7}
        write_json(folder / "run.json", {**read_json(folder / "run.json"), **given}, sealed=True)
    model = find_best(lab.name, lab.workspace, workers=1)
    for fold in lab.folds:
        kept = read_json(model / "members" / "3d_fullres" / f"fold_{fold}.json")
        assert (kept["settings"], kept["seed"], kept["steps_done"]) == (settings, int(fold), 7)
        assert kept["versions"] == {"autoseg": "0.1.0"}
        assert not any(case.id in json.dumps(kept) for case in lab.dataset.cases)  # names of patients stay at home
    (model / "members" / "3d_fullres" / "fold_0.json").write_text("{}")
    with pytest.raises(UserError, match=r"fold_0\.json"):
        read_model(model)


def _only_copies(check):
    return lambda run, copy=None: None if copy is None else check(run, copy)


def test_an_untrained_run_is_left_out(lab):
    folder = lab.run("3d_fullres", 0, lab.folds[0], 0.0)
    write_json(folder / "run.json", {**read_json(folder / "run.json"), "steps_done": 0})
    with pytest.raises(UserError, match="its time was over before the first step"):
        find_best(lab.name, lab.workspace, workers=1)


def test_without_a_finished_run(lab):
    with pytest.raises(UserError, match="no finished run"):
        find_best(lab.name, lab.workspace)
    lab.run("2d", 0, lab.folds[0], 0.3, status="interrupted")
    with pytest.raises(UserError, match="interrupted"):
        find_best(lab.name, lab.workspace)


def test_folds_with_different_networks_are_refused(lab):
    lab.run("2d", 0, lab.folds[0], 0.3)
    folder = lab.run("2d", 1, lab.folds[1], 0.3)
    plans = read_json(folder / "plans.json")
    plans["configurations"]["2d"]["architecture"] = "plain_unet"
    write_json(folder / "plans.json", plans)
    with pytest.raises(UserError, match="fold 1 has another network"):
        find_best(lab.name, lab.workspace, workers=1)
