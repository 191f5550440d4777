"""`plan-and-preprocess --plans-from MODEL`, then a training that starts from that model."""

import json
import shutil

import pytest

from autoseg.interop import import_nnunet
from autoseg.plans import Plans

NAME = "Dataset004_Hippocampus"


@pytest.mark.parametrize("option", ["--planner", "--architecture", "--gpu-memory", "--time-budget", "--network-option"])
def test_what_plans_anew_is_refused_beside_it(autoseg, option):
    value = {"--gpu-memory": "8", "--time-budget": "5m", "--network-option": "size=L"}.get(option, "nnunet")
    outcome = autoseg("plan-and-preprocess", "D", "--plans-from", "model", option, value)
    assert outcome.code == 2
    assert f"{option} plans anew" in outcome.err


def test_fine_tuning_a_model_of_nnunet_by_commands(autoseg, tiny, nnunet_model, tmp_path):
    model = import_nnunet(nnunet_model / "model", tmp_path / "model")
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
