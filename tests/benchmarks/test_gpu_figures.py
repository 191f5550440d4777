"""What the GPU benchmark concludes from its parts, by hand."""

import sys

import gpu
import pytest
import torch

PARTS = {
    "card": {"bf16_flops": 800.0, "bytes_per_second": 100.0},
    "autoseg step plain": {
        "samples_per_second": 30.0, "waiting_share": 0.03, "augmentation_share": 0.04, "step_flops": 40.0,
        "step_seconds": 0.1,
    },
    "nnunet step plain": {"samples_per_second": 20.0},
    "autoseg prediction": {"seconds": 10.0, "export_bytes_per_second": 25.0},
    "nnunet prediction": {"left_out": "nnunetv2 is not installed here"},
    "autoseg step resenc_l": {"failed": "out of memory"},
}  # fmt: skip


def test_ratios_and_what_is_missing():
    found = gpu.conclude(PARTS)
    assert found["plain: samples/s, autoseg / nnU-Net"] == {"value": 1.5, "target": ">= 1.5", "reached": True}
    assert found["plain: share of a step waiting for data"]["reached"] is False
    assert found["plain: augmentation / step"]["reached"] is True
    assert found["plain: share of the card's bf16 rate"] == {"value": 0.5, "target": None, "reached": None}
    assert found["export: logits read once / bandwidth"]["value"] == 0.25
    assert found["CT with 104 classes: seconds, nnU-Net / autoseg"]["value"] is None
    assert found["resenc_l: samples/s, autoseg / nnU-Net"]["reached"] is None


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    gpu.main()
    assert capsys.readouterr().out == "no GPU\n"


def test_parts_that_fail_or_do_not_fit_are_told(capsys):
    bench = gpu.Bench(1, rehearse=True)
    bench.part("bad", 0, lambda: {"x": 1 / 0})
    assert bench.results["bad"] == {"failed": "ZeroDivisionError: division by zero"}
    bench.toy = False
    bench.part("long", 600, lambda: pytest.fail("it does not fit"))
    assert "left_out" in bench.results["long"]
