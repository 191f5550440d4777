"""The GPU benchmark as a command, at toy size on the CPU: every kind of part ends and tells what is asked of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"
PARTS = ("card", "autoseg step plain", "nnunet step plain", "autoseg prediction", "nnunet prediction")
POSITIVE = {  # of each part
    "card": ("bf16_flops", "bytes_per_second"),
    "autoseg step plain": (
        "samples_per_second", "step_seconds", "step_seconds_alone", "step_flops", "step_bytes", "convolution_bytes",
        "step_seconds_uncompiled", "cut_seconds", "augmentation_seconds", "uncached_samples_per_second",
    ),
    "nnunet step plain": ("samples_per_second", "step_seconds"),
    "autoseg prediction": ("window_seconds", "export_seconds", "seconds", "window_flops", "logits_bytes"),
    "nnunet prediction": ("window_seconds", "export_seconds_extrapolated", "seconds"),
}  # fmt: skip


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """Return what a rehearsal wrote and what it printed."""
    folder = tmp_path_factory.mktemp("gpu")
    done = subprocess.run(
        [sys.executable, COMMAND, "--rehearse", "--json", folder / "gpu.json", "--only", *PARTS],
        capture_output=True, text=True, check=False, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "gpu.json").read_text()), done.stdout


def test_every_part_is_complete(rehearsed):
    content, printed = rehearsed
    assert list(content["parts"]) == ["workspace", *PARTS]
    assert {name: part.get("complete") for name, part in content["parts"].items()} == dict.fromkeys(
        ("workspace", *PARTS), True
    ), printed


def test_parts_tell_what_is_asked_of_them(rehearsed):
    parts = rehearsed[0]["parts"]
    for name, keys in POSITIVE.items():
        assert all(parts[name][key] > 0 for key in keys), name
    training = parts["autoseg step plain"]
    assert training["compiled"] is False  # as nothing is on a CPU
    assert training["waiting_share"] == pytest.approx(
        1 - training["step_seconds_alone"] / training["step_seconds"], abs=1e-6
    )
    assert training["convolution_bytes"] < training["step_bytes"]
    assert parts["autoseg prediction"]["shape"] == [40, 40, 50]


def test_verdicts_are_printed_and_written(rehearsed):
    content, printed = rehearsed
    verdicts = content["verdicts"]
    assert content["rehearsal"] is True
    assert {row["reached"] for row in verdicts.values()} == {None}
    assert all(row["value"] is None for name, row in verdicts.items() if name.startswith("resenc_l"))
    for name in ("CT: windows alone, nnU-Net / autoseg (both measured)",
                 "plain: samples/s, autoseg fed / nnU-Net on one batch, which never waits"):  # fmt: skip
        assert verdicts[name]["value"] > 0
        assert name in printed
