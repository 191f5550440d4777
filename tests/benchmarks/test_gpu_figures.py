"""What the GPU benchmark concludes from its parts, by hand."""

import pytest
from gpu_parts.training import Steps
from gpu_parts.verdicts import conclude, lines

PARTS = {
    "card": {"bf16_flops": 800.0, "bytes_per_second": 100.0},
    "autoseg step plain": {
        "samples_per_second": 30.0, "waiting_share": 0.03, "idle_share": 0.01, "augmentation_seconds": 0.004,
        "transfer_seconds": 0.001, "step_flops": 40.0, "step_bytes": 12.0, "convolution_bytes": 2.0,
        "step_seconds": 0.2, "step_seconds_alone": 0.1, "step_seconds_uncompiled": 0.4, "uncached_waiting_share": 0.1,
    },
    "nnunet step plain": {"samples_per_second": 20.0, "fed_samples_per_second": 10.0},
    "autoseg prediction": {
        "seconds": 10.0, "window_seconds": 8.0, "window_flops": 640.0, "export_seconds": 4.0, "logits_bytes": 100.0,
    },
    "nnunet prediction": {
        "seconds": 412.0, "window_seconds": 12.0, "export_seconds_extrapolated": 400.0,
    },
    "autoseg step resenc_l": {"failed": "out of memory"},
    "autoseg step plain channels_last": {"step_seconds_alone": 0.05},
}  # fmt: skip
VALUES = {
    "plain: samples/s, autoseg fed / nnU-Net fed by its own augmenters": (3.0, True),
    "plain: samples/s, autoseg fed / nnU-Net on one batch, which never waits": (1.5, True),
    "plain: (step fed - step on one batch) / step fed": (0.03, False),
    "plain: share of a step in which the GPU waits between steps": (0.01, None),
    "plain: augmentation on the GPU / step": (0.02, True),
    "plain: transfer of a batch / step": (0.005, None),
    "plain: share of the card's bf16 rate": (0.5, None),
    "plain: bandwidth, were nothing fused: bytes of all operators / step": (1.2, None),
    "plain: bandwidth, at the least: bytes of the convolutions / step": (0.2, None),
    "plain: bandwidth of the uncompiled step": (0.3, None),
    "plain: uncompiled step / compiled step": (4.0, None),
    "plain: the same waiting where every patch is decompressed anew": (0.1, None),
    "variant, no verdict: plain with channels last, times as fast": (2.0, None),
    "CT: whole, nnU-Net / autoseg (export: nnU-Net's extrapolated from 1 of the classes)": (41.2, True),
    "CT: windows alone, nnU-Net / autoseg (both measured)": (1.5, None),
    "CT: export alone, nnU-Net / autoseg (nnU-Net's extrapolated from 1 of the classes)": (100.0, None),
    "CT: windows, share of the card's bf16 rate": (0.1, None),
    "CT: export, logits read once / bandwidth": (0.25, None),
}


def test_ratios():
    found = conclude(PARTS)
    told = {name: row for name, row in found.items() if not name.startswith("resenc_l")}
    assert {name: row["reached"] for name, row in told.items()} == {name: each[1] for name, each in VALUES.items()}
    assert [row["value"] for row in told.values()] == pytest.approx([VALUES[name][0] for name in told])


def test_what_is_missing_is_no_verdict():
    found = conclude({})
    assert {row["value"] for row in found.values()} == {row["reached"] for row in found.values()} == {None}
    assert any("not measured" in line and ">= 1.5" in line for line in lines(found))


def test_lines_tell_targets_and_verdicts():
    found = {line.split("  ")[0]: line for line in lines(conclude(PARTS))}
    assert found["plain: (step fed - step on one batch) / step fed"].endswith("0.03  < 0.02  NOT reached")
    assert found["plain: augmentation on the GPU / step"].endswith("0.02  < 0.05  reached")
    assert found["plain: transfer of a batch / step"].endswith("0.005")


def test_batches_made_ahead_that_are_used_up_do_not_count():
    assert Steps(100, 0.1, 0.0, None).sustained_seconds == 0.1
    assert Steps(100, 0.1, 0.0, 99).sustained_seconds == 0.1  # one more or less is chance
    assert Steps(100, 0.1, 0.0, 78).sustained_seconds == pytest.approx(0.125)  # 80 of the 100 would have been there
