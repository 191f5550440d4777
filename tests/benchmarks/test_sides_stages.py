"""What is prepared and asked of the two sides, as far as nothing has to be run."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from compare import measure, tell
from sides.answers import compare_batches, compare_losses
from sides.figures import Target
from sides.material import moved, plain_plans, split
from sides.place import Place, Work
from sides.stages import STAGES, network


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "work", tmp_path / "shared", "/ours/bin/python", "/theirs/bin/python", 2)


def test_losses_agree_within_a_hundredth():
    assert compare_losses({"losses": [1.0, 0.5]}, {"losses": [1.005, 0.5]})["agree"]
    assert not compare_losses({"losses": [1.0, 0.5]}, {"losses": [1.0, 0.52]})["agree"]
    assert not compare_losses({"losses": []}, {"losses": []})["agree"]


def test_batches_agree_in_shape_and_are_alike_in_foreground():
    ours = {"shapes": [[2, 1, 8, 8], [2, 1, 8, 8]], "statistics": [0.1, 1.0, 0.04]}
    assert compare_batches(ours, {**ours, "statistics": [0.0, 1.1, 0.03]})["agree"]
    assert not compare_batches(ours, {**ours, "statistics": [0.1, 1.0, 0.4]})["agree"]
    assert not compare_batches(ours, {**ours, "shapes": [[2, 1, 8, 8], [2, 8, 8]]})["agree"]


def test_network_of_a_patch():
    found = network((96, 160, 160), 8)
    assert found["strides"] == [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]  # to 6x5x5
    assert found["features_per_stage"] == [8, 16, 32, 64, 80, 80]
    assert network((512, 512), 8)["n_stages"] == 8


def test_organs_are_cut_into_all_pieces():
    organs = np.zeros((4, 30, 20), dtype=np.int16)
    organs[:, :10] = 3
    organs[:, 15:, 10:] = 7
    pieces = split(organs, 5)
    assert ((pieces > 0) == (organs > 0)).all()
    assert set(np.unique(pieces)) == {0, 1, 2, 3, 4, 5}
    assert {len(np.unique(pieces[organs == value])) for value in (3, 7)} == {2, 3}
    assert (moved(pieces, 1)[:, 1:] == pieces[:, :-1]).all()


def test_plans_of_the_many_classes_are_taken(tmp_path):
    from autoseg.interop.nnunet_plans import read_plans
    from autoseg.labels import labels_from_description

    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    theirs = plain_plans((3.0, 3.0, 3.0))
    plans = read_plans(theirs, description, labels_from_description(description), "3d_fullres", tmp_path)
    assert plans.configuration("3d_fullres").spacing == (3, 3, 3)


def test_a_side_is_given_its_job_and_nothing_of_the_users_environment(place, monkeypatch):
    monkeypatch.setenv("nnUNet_compile", "t")
    job = place.side("nnunet", "step", steps=3)
    assert job.command[0] == "/theirs/bin/python"
    assert json.loads(Path(job.command[2]).read_text()) == {
        "do": "step", "threads": 2, "work": str(place.work), "steps": 3
    }  # fmt: skip
    assert job.environment["OMP_NUM_THREADS"] == "2"
    assert "nnUNet_compile" not in job.environment
    assert "GLIBC_TUNABLES" not in job.environment
    assert "tcache_count=0" in place.side("autoseg", "step").environment["GLIBC_TUNABLES"]  # as its commands have it


def test_commands_lie_beside_the_interpreters(place):
    assert place.command("autoseg", "autoseg", "--help", threads=1).command == ("/ours/bin/autoseg", "--help")
    with pytest.raises(SystemExit, match="--nnunet-python"):
        Place(place.work, place.shared, "/ours/bin/python", None, 2).side("nnunet", "step")


@pytest.mark.parametrize("bf16", [False, True])
def test_every_stage_names_its_data_without_preparing_anything(place, monkeypatch, bf16):
    monkeypatch.setattr("sides.stages.has_bf16", lambda: bf16)
    names = {stage: [data for data, _ in make(place)] for stage, make in STAGES.items()}
    for stage in ("predict", "step"):
        assert len(names[stage]) == (6 if bf16 else 3)
    assert [data for data in names["predict"] if not data.endswith(" bf16")] == ["hippocampus", "cardiac", "ct"]
    assert names["evaluate"] == ["hippocampus", "hippocampus surface", "ct104", "ct104 surface"]
    assert names["batches"][:2] == ["hippocampus", "hippocampus loaders"]
    assert not place.work.exists()


def test_a_part_of_a_data_set_is_a_data_set(place):
    source = place.shared / "data" / "Dataset001_Small"
    for folder in ("imagesTr", "labelsTr"):
        (source / folder).mkdir(parents=True)
    for case in "abc":
        (source / "labelsTr" / f"{case}.png").write_text("")
        (source / "imagesTr" / f"{case}_0000.png").write_text("")
    (source / "dataset.json").write_text(json.dumps({"file_ending": ".png", "numTraining": 3}))
    few = place.raw("Dataset001_Small", cases=2)
    assert sorted(path.name for path in few.rglob("*.png")) == ["a.png", "a_0000.png", "b.png", "b_0000.png"]
    assert json.loads((few / "dataset.json").read_text())["numTraining"] == 2


def test_work_that_nnunet_has_nothing_like_is_measured_and_told_alone(capsys):
    job = SimpleNamespace(run=lambda: (SimpleNamespace(seconds=2.0, cpu_seconds=3.0, tree_bytes=2**20,
                                                       largest_bytes=2**20), {}))  # fmt: skip
    work = Work("evaluate", "surface", job, None, Target(), differs="nnU-Net has no surface scores")
    summary = measure(work, pairs=2)
    assert len(summary["autoseg_samples"]) == 2
    assert "nnunet" not in summary
    tell(work, summary)
    told = capsys.readouterr().out
    assert "2 / -" in told
    assert "no other side" in told
    assert "DO NOT AGREE" not in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--data", "hippocampi"],
            "--data 'hippocampi': these stages have '--help', 'predict --help', 'one case scored'",
        ),
        (["--pairs", "0"], "--pairs must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_told_at_once(arguments, told):
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "compare.py"
    command = [sys.executable, script, "--nnunet-python", sys.executable, "--stage", "start", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert told in done.stderr
