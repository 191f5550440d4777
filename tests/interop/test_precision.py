"""In every precision the Dice of an imported model's predictions is that of nnunetv2's own, recorded ones."""

import shutil

import pytest
from comparing import dice_difference, read

from autoseg.inference import Predictor


@pytest.mark.parametrize("mode", ["folds_0_1", "fold_0_no_mirroring"])
def test_single_precision(hippocampus, hippocampus_images, reference, shared, tmp_path, mode):
    several = mode == "folds_0_1"
    predictor = Predictor.load(
        hippocampus, device="cpu", precision="fp32", folds=None if several else [0], mirroring=several
    )
    predictor.predict_folder(hippocampus_images, tmp_path / "out")
    for file in sorted((tmp_path / "out").glob("*.nii.gz")):
        truth = read(shared / "data" / "Dataset004_Hippocampus" / "labelsTs" / file.name)
        assert dice_difference(read(file), read(reference / f"predictions_{mode}" / file.name), truth) < 0.001


def test_half_precision_on_request(hippocampus, hippocampus_images, reference, shared, autoseg_run, tmp_path):
    """Of the smallest image alone: processors without the format take their time."""
    image = hippocampus_images / "hippocampus_003_0000.nii.gz"
    (tmp_path / "in").mkdir()
    shutil.copy(image, tmp_path / "in")
    common = ("predict", "-m", hippocampus, "-i", tmp_path / "in", "--folds", "0", "--no-mirroring", "--device", "cpu")
    shown = autoseg_run(*common, "-o", tmp_path / "out", "--precision", "bf16")
    assert shown.code == 0, shown.err
    name = "hippocampus_003.nii.gz"
    truth = read(shared / "data" / "Dataset004_Hippocampus" / "labelsTs" / name)
    ours, theirs = read(tmp_path / "out" / name), read(reference / "predictions_fold_0_no_mirroring" / name)
    assert dice_difference(ours, theirs, truth) < 0.002
    wrong = autoseg_run(*common, "-o", tmp_path / "other", "--precision", "fp8")
    assert wrong.code == 2
    assert "precision must be one of auto, fp32, bf16, fp16, got 'fp8'" in wrong.err
