"""`plan-and-preprocess --plans-from MODEL`, then a training that starts from that model."""

import json
import shutil

from autoseg.interop import import_nnunet
from autoseg.plans import Plans

NAME = "Dataset004_Hippocampus"


def test_fine_tuning_a_model_of_nnunet_by_commands(autoseg, tiny, shared, tmp_path):
    source = next(path for path in sorted((shared / "models").rglob("*")) if (path / "plans.json").is_file())
    model = import_nnunet(source, tmp_path / "model")
    root = tmp_path / "workspace"
    shutil.copytree(tiny.raw / NAME, root / "raw" / NAME)
    moved = autoseg("plan-and-preprocess", NAME, "--plans-from", model, "--workspace", root, "-c", "3d_fullres")
    assert moved.code == 0, moved.err
    plans = Plans.read(root / "preprocessed" / NAME / "plans" / "moved.json")
    line = ("train", NAME, "3d_fullres", "0", "--plans", "moved", "--pretrained", model, "--workspace", root)
    trained = autoseg(*line, "--set", "steps=1", "batch_size=1", "--device", "cpu", "--json")
    assert trained.code == 0, trained.err
    (record,) = json.loads(trained.out)
    assert record["identity"]["plan"]["patch_size"] == list(plans.configuration("3d_fullres").patch_size)
    log = (root / "results" / NAME / "supervised__moved__3d_fullres" / "fold_0" / "log.jsonl").read_text()
    assert "tensors loaded" in log
    assert "0 tensors fresh" in log  # the labels are the same, so that the heads move as well
