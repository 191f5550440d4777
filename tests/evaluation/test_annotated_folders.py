"""`evaluate` on references that show only some classes."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

from autoseg.errors import UserError
from autoseg.evaluation import evaluate

DESCRIPTION = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "Anterior": 1, "Posterior": 2},
    "file_ending": ".nii.gz",
}


@pytest.fixture
def folders(tmp_path):
    label = np.zeros((6, 6, 6), np.uint8)
    label[1:3, 1:5, 1:5] = 1
    reference = label.copy()
    label[3:5, 1:5, 1:5] = 2  # right, but the reference of the case does not show it
    for name, values in (("predictions", label), ("references", reference)):
        (tmp_path / name).mkdir()
        for case in ("a", "b"):
            sitk.WriteImage(sitk.GetImageFromArray(values), tmp_path / name / f"{case}.nii.gz")
    return tmp_path


def score(folders, **fields):
    (folders / "dataset.json").write_text(json.dumps({**DESCRIPTION, **fields}))
    return evaluate(folders / "predictions", folders / "references", output=folders / "out", workers=1)


def test_what_a_reference_does_not_show_is_not_scored(folders):
    found = score(folders, annotated={"a": ["Anterior"]})
    assert found.cases["a"]["Anterior"]["dice"] == 1.0
    assert found.cases["a"].get("Posterior", {}).get("dice") is None
    assert found.cases["b"]["Posterior"]["dice"] == 0.0


def test_unknown_names_are_told(folders):
    with pytest.raises(UserError, match="'Middle', which is no label"):
        score(folders, annotated={"a": ["Middle"]})
