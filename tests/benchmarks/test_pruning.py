"""UNet++'s pruning experiment, on random weights: what a pruned network needs, and a row for every way to predict."""

import json

import numpy as np
import pruning
import pytest
import SimpleITK
from model_factory import write_model

from autoseg.plans import NetworkSpec
from autoseg.plugins import build_network


def nested(levels, **options):
    """Return a UNet++ of so many levels; alone, without deep supervision, it has one head."""
    spec = NetworkSpec(
        dims=2, in_channels=1, num_outputs=2, patch_size=(32, 32), strides=((1, 1), *[(2, 2)] * (levels - 1)),
        kernel_sizes=((3, 3),) * levels, features=(2, 4, 6, 8)[:levels], blocks_encoder=(1,) * levels,
        blocks_decoder=(1,) * (levels - 1), deep_supervision=bool(options), options=options,
    )  # fmt: skip
    return build_network("unet_plus_plus", spec)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_pruned_network_needs_the_parameters_of_a_smaller_one(depth):
    smaller = sum(parameter.numel() for parameter in nested(depth + 1).parameters())
    assert pruning.needed(nested(4, inference=f"prune:{depth}")) == smaller


def test_a_row_for_every_head_and_for_their_average(tmp_path, monkeypatch, capsys):
    model = write_model(tmp_path / "model", {"architecture": "unet_plus_plus"}, labels={"background": 0, "organ": 1})
    draw = np.random.default_rng(0)
    arrays = {"images/a_0000": draw.normal(size=(8, 16, 16)).astype("f4"), "labels/a": draw.integers(0, 2, (8, 16, 16))}
    for name, array in arrays.items():
        (tmp_path / name).parent.mkdir()
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(tmp_path / f"{name}.nii.gz"))
    description = {"labels": {"background": 0, "organ": 1}, "channel_names": {"0": "grey"}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps({**description, "numTraining": 1}))
    monkeypatch.setattr("sys.argv", ["pruning.py", str(model), str(tmp_path / "images"), str(tmp_path / "labels")])
    pruning.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [row["inference"] for row in rows] == ["prune:1", "average"]
    assert rows[0]["dice"] == rows[1]["dice"]  # the mean over one head
    assert 0 < rows[0]["dice"] < 1
    assert rows[0]["CPU seconds per case"] > 0
