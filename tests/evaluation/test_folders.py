"""`evaluate` on folders: real hippocampus labels, missing predictions, other grids, undeclared values, 2D images."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from autoseg.errors import CasesFailed, UserError
from autoseg.evaluation import EvaluationFailed, evaluate
from autoseg.raw import read_label, write_label

DESCRIPTION = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "Anterior": 1, "Posterior": 2},
    "file_ending": ".nii.gz",
}


@pytest.fixture
def folders(shared, tmp_path):
    """Three real references; the predictions are the same label maps, moved by one voxel along x."""
    source = sorted((shared / "data" / "Dataset004_Hippocampus" / "labelsTr").iterdir())[:3]
    for name in ("references", "predictions"):
        (tmp_path / name).mkdir()
    for path in source:
        shutil.copy(path, tmp_path / "references" / path.name)
        label, geometry = read_label(path)
        assert not label[..., -1].any()
        write_label(tmp_path / "predictions" / path.name, np.roll(label, 1, axis=2), geometry)
    (tmp_path / "dataset.json").write_text(json.dumps(DESCRIPTION))
    return tmp_path


def test_a_shift_by_one_voxel_of_real_labels_is_one_millimetre(folders):
    evaluation = evaluate(folders / "predictions", folders / "references", output=folders / "scores", workers=1)
    assert evaluation.output == folders / "scores" / "summary.json"
    assert len(evaluation.cases) == 3
    for named in evaluation.cases.values():
        for scores in named.values():
            assert scores["hd95"] == pytest.approx(1.0)  # the data are 1 mm isotropic
            assert scores["nsd"] == 1.0
            assert 0.5 < scores["dice"] < 0.95
            assert scores["volume_prediction_ml"] == pytest.approx(scores["volume_reference_ml"])
    stored = json.loads(evaluation.output.read_text())
    assert stored["foreground_mean"] == evaluation.foreground_mean
    rows = list(csv.DictReader((folders / "scores" / "summary.csv").read_text().splitlines()))
    assert len(rows) == 6
    case, label = rows[0]["case"], rows[0]["label"]
    assert float(rows[0]["dice"]) == evaluation.cases[case][label]["dice"]


def test_perfect_predictions(folders):
    evaluation = evaluate(folders / "references", folders / "references", output=folders / "x.json", workers=1)
    assert evaluation.foreground_mean == {"dice": 1.0, "iou": 1.0, "hd95": 0.0, "nsd": 1.0}
    assert (folders / "x.csv").is_file()


def test_processes_give_the_same(folders):
    alone = evaluate(folders / "predictions", folders / "references", output=folders / "a.json", workers=1)
    evaluate(folders / "predictions", folders / "references", output=folders / "b.json", workers=2)
    assert (folders / "b.json").read_text() == (folders / "a.json").read_text()
    assert alone.failures == ()


def test_a_missing_prediction_is_listed_after_the_others_are_done(folders):
    gone = sorted((folders / "predictions").iterdir())[1]
    gone.unlink()
    with pytest.raises(CasesFailed, match="no prediction") as caught:
        evaluate(folders / "predictions", folders / "references", workers=1)
    assert isinstance(caught.value, EvaluationFailed)
    case = gone.name.removesuffix(".nii.gz")
    assert [failure.case for failure in caught.value.failures] == [case]
    assert len(caught.value.evaluation.cases) == 2
    stored = json.loads((folders / "predictions" / "summary.json").read_text())
    assert list(stored["failed"]) == [case]
    assert len(stored["cases"]) == 2


def test_other_grids_and_undeclared_values_fail_for_their_case_only(folders):
    first, second, third = sorted((folders / "predictions").iterdir())
    label, geometry = read_label(first)
    image = sitk.GetImageFromArray(label)
    image.SetSpacing((1.0, 1.0, 2.0))
    sitk.WriteImage(image, str(first))
    label, geometry = read_label(second)
    label = label.copy()
    label[0, 0, 0] = 7
    write_label(second, label, geometry)
    with pytest.raises(EvaluationFailed) as caught:
        evaluate(folders / "predictions", folders / "references", workers=1)
    reasons = [failure.reason for failure in caught.value.failures]
    assert "another grid" in reasons[0]
    assert str(first) in reasons[0]
    assert "7" in reasons[1]
    assert "not declared" in reasons[1]
    assert list(caught.value.evaluation.cases) == [third.name.removesuffix(".nii.gz")]


def test_extra_predictions_are_told(folders, caplog):
    shutil.copy(next((folders / "predictions").iterdir()), folders / "predictions" / "other.nii.gz")
    evaluate(folders / "predictions", folders / "references", workers=1)
    assert "other" in caplog.text


def test_what_cannot_work_is_told_before_anything_is_read(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="does not exist"):
        evaluate(folders / "nowhere", folders / "references")
    with pytest.raises(UserError, match=r"no label map ending in '\.nii\.gz'"):
        evaluate(folders / "predictions", tmp_path / "empty")
    (folders / "dataset.json").unlink()
    with pytest.raises(UserError, match="names of the labels"):
        evaluate(folders / "predictions", folders / "references")
    with pytest.raises(UserError, match="tolerance"):
        evaluate(folders / "predictions", folders / "references", tolerance=-1)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], r"must hold one JSON object"),
        (DESCRIPTION | {"file_ending": 5}, r"field file_ending must be a supported ending, got 5"),
        (DESCRIPTION | {"file_ending": ["x" * 5000]}, r"file_ending must be a supported ending, got \['x+\.\.\.x+'\]"),
        (DESCRIPTION | {"annotated": {"x": [["q"]]}}, r"annotated of case x names \['q'\], which is no label"),
        (DESCRIPTION | {"annotated": {"x": "Anterior"}}, r"annotated of case x names 'Anterior', which is no label"),
        (DESCRIPTION | {"annotated": {"x": [None, 3]}}, r"annotated of case x names "),
    ],
)
def test_wrong_fields_of_the_description_are_told(folders, content, says):
    (folders / "d.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"d\.json: .*{says}") as caught:
        evaluate(folders / "predictions", folders / "references", dataset_json=folders / "d.json", workers=1)
    assert caught.value.mend
    assert len(caught.value.what) < 300


def test_a_description_without_ending_means_nifti(folders):
    (folders / "d.json").write_text(json.dumps(DESCRIPTION | {"file_ending": None}))
    done = evaluate(folders / "predictions", folders / "references", dataset_json=folders / "d.json", workers=1)
    assert len(done.cases) == 3


@pytest.mark.parametrize("side", ["predictions", "references"])
def test_a_folder_with_the_name_of_a_label_map_is_told(folders, side):
    path = sorted((folders / side).iterdir())[1]
    path.unlink()
    path.mkdir()
    with pytest.raises(EvaluationFailed) as caught:
        evaluate(folders / "predictions", folders / "references", workers=1)
    (failure,) = caught.value.failures
    assert failure.case == path.name.removesuffix(".nii.gz")
    assert f"{path}: this is a folder" in failure.reason


def test_without_surface_only_hd95_and_nsd_are_missing(folders):
    whole = evaluate(folders / "predictions", folders / "references", workers=1)
    quick = evaluate(folders / "predictions", folders / "references", surface=False, workers=1)
    for case, named in quick.cases.items():
        for name, scores in named.items():
            assert scores["dice"] is not None
            assert scores == whole.cases[case][name] | {"hd95": None, "nsd": None}
    assert quick.foreground_mean["dice"] == whole.foreground_mean["dice"]
    assert quick.foreground_mean["hd95"] is quick.foreground_mean["nsd"] is None


def test_decathlon_description(folders):
    reverse = {"labels": {"0": "background", "1": "front", "2": "back"}}
    (folders / "task.json").write_text(json.dumps(reverse))
    evaluation = evaluate(
        folders / "predictions", folders / "references", dataset_json=folders / "task.json", workers=1
    )
    assert list(evaluation.mean) == ["front", "back"]


def test_png_label_maps(tmp_path):
    square = np.zeros((1, 16, 16), np.uint8)
    square[0, 4:9, 4:9] = 1
    for folder, array in (("references", square), ("predictions", np.roll(square, 2, axis=1))):
        (tmp_path / folder).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(array[0]), str(tmp_path / folder / "polyp.png"))
    description = DESCRIPTION | {"labels": {"background": 0, "polyp": 1}, "file_ending": ".png"}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    scores = evaluate(tmp_path / "predictions", tmp_path / "references", workers=1).cases["polyp"]["polyp"]
    assert scores["hd95"] == pytest.approx(2.0)  # pixels
    assert scores["volume_reference_ml"] is None
    assert (scores["tp"], scores["fp"], scores["fn"]) == (15, 10, 10)


def test_overlap_alone_needs_no_scipy():
    """Half a second of the start of a command that scores some small cases."""
    code = (
        "import sys, numpy\n"
        "from autoseg.evaluation import evaluate_case, summarize\n"
        "from autoseg.labels import labels_from_description\n"
        "labels = labels_from_description({'labels': {'background': 0, 'a': 1}}, where='here')\n"
        "one = numpy.ones((2, 3, 4), numpy.int16)\n"
        "scores = evaluate_case(one, one, labels=labels, spacing=(1, 1, 1), surface=False)\n"
        "assert summarize({'case': scores})['foreground_mean']['dice'] == 1\n"
        "print(sorted({'scipy', 'edt', 'torch'} & set(sys.modules)))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
