"""Models that were trained here, with and without mirroring, as nnU-Net's: nnunetv2 predicts the same from them."""

import shutil

import numpy as np
import pytest
import torch
from comparing import agreement, read

from autoseg.inference import Predictor
from autoseg.interop import export_nnunet, import_nnunet
from autoseg.model_folder import read_model
from autoseg.selection import find_best
from autoseg.training import train

NAME = "Dataset004_Hippocampus"


@pytest.fixture(params=[True, False], ids=["mirroring", "no mirroring"])
def mirrored_model(request, scratch):
    train(
        NAME, "3d_fullres", "0", plans_name="tiny", settings={"steps": 12, "mirror": request.param},
        device="cpu", workers=1, workspace=scratch,
    )  # fmt: skip
    return request.param, find_best(NAME, scratch, configurations=["3d_fullres"], plans_name="tiny", workers=1)


def test_mirroring_is_told_as_nnunetv2_takes_it(mirrored_model, tmp_path):
    """None is "no mirroring" there; it fails on an empty tuple."""
    mirroring, model = mirrored_model
    assert read_model(model).members[0].mirror_axes == ((0, 1, 2) if mirroring else ())
    [folder] = export_nnunet(model, tmp_path / "results")
    content = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert content["inference_allowed_mirroring_axes"] == ((0, 1, 2) if mirroring else None)
    back = read_model(import_nnunet(folder, tmp_path / "back"))
    assert back.members[0].mirror_axes == read_model(model).members[0].mirror_axes


def test_nnunetv2_predicts_from_them(mirrored_model, nnunetv2, scratch, tmp_path):
    _, model = mirrored_model
    [folder] = export_nnunet(model, tmp_path / "exported")
    (tmp_path / "images").mkdir()
    image = sorted((scratch.raw / NAME / "imagesTr").iterdir())[0]
    shutil.copy(image, tmp_path / "images")
    task = {
        "model": folder.relative_to(tmp_path), "folds": [0], "mirroring": True, "float32": True,
        "images": "images", "output": "theirs",
    }  # fmt: skip
    nnunetv2({"work": tmp_path, "predict": [task]})
    predictor = Predictor.load(model, device="cpu", precision="fp32")
    predictor.model = predictor.model.model_copy(update={"postprocessing": ()})  # nnunetv2_predict does none
    predictor.predict_folder(tmp_path / "images", tmp_path / "ours")
    name = image.name.replace("_0000", "")
    ours, theirs = read(tmp_path / "ours" / name), read(tmp_path / "theirs" / name)
    assert len(np.unique(theirs)) > 1
    assert agreement(ours, theirs) >= 0.999
