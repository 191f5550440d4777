"""What is concluded from the parts: the ratios that the project asks for, and whether they are reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu_parts.networks import NETWORKS
from gpu_parts.sizes import RESAMPLED

Row = tuple[float | None, str]


def conclude(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return a row per figure; value None: a part of it is missing, target None: it is told, not judged."""
    rows: dict[str, Row] = {}
    for name in NETWORKS:
        rows |= _training(results, name)
    rows |= _variant(results) | _prediction(results)
    return {
        name: {"value": value, "target": target or None, "reached": _reached(value, target)}
        for name, (value, target) in rows.items()
    }  # fmt: skip


def lines(verdicts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the rows as they are printed."""
    words = {None: "", True: "reached", False: "NOT reached"}
    values = {name: "not measured" if row["value"] is None else f"{row['value']:.3g}" for name, row in verdicts.items()}
    return [
        f"{name:80}{values[name]:>13}  {row['target'] or '':8}{words[row['reached']]}".rstrip()
        for name, row in verdicts.items()
    ]  # fmt: skip


def _training(results: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Row]:
    ours, theirs, card = (results.get(part, {}) for part in (f"autoseg step {name}", f"nnunet step {name}", "card"))
    augmenting = results.get("autoseg step plain", {}).get("augmentation_seconds")  # the batch is the same
    transfer = results.get("autoseg step plain", {}).get("transfer_seconds")
    speed, fed, alone = ours.get("samples_per_second"), ours.get("step_seconds"), ours.get("step_seconds_alone")
    rate, bandwidth = card.get("bf16_flops"), card.get("bytes_per_second")
    rows: dict[str, Row] = {
        "samples/s, autoseg fed / nnU-Net fed by its own augmenters":
            (_quotient(speed, theirs.get("fed_samples_per_second")), ">= 1.5"),
        "samples/s, autoseg fed / nnU-Net on one batch, which never waits":
            (_quotient(speed, theirs.get("samples_per_second")), ">= 1.5"),
        "(step fed - step on one batch) / step fed": (ours.get("waiting_share"), "< 0.02"),
        "share of a step in which the GPU waits between steps": (ours.get("idle_share"), ""),
        "augmentation on the GPU / step": (_quotient(augmenting, fed), "< 0.05"),
        "transfer of a batch / step": (_quotient(transfer, fed), ""),
        "share of the card's bf16 rate": (_quotient(_quotient(ours.get("step_flops"), alone), rate), ""),
        "bandwidth, were nothing fused: bytes of all operators / step":
            (_quotient(_quotient(ours.get("step_bytes"), alone), bandwidth), ""),
        "bandwidth, at the least: bytes of the convolutions / step":
            (_quotient(_quotient(ours.get("convolution_bytes"), alone), bandwidth), ""),
        "bandwidth of the uncompiled step":
            (_quotient(_quotient(ours.get("step_bytes"), ours.get("step_seconds_uncompiled")), bandwidth), ""),
        "uncompiled step / compiled step": (_quotient(ours.get("step_seconds_uncompiled"), alone), ""),
    }  # fmt: skip
    if name == "plain":
        rows["the same waiting where every patch is decompressed anew"] = (ours.get("uncached_waiting_share"), "")
    return {f"{name}: {words}": row for words, row in rows.items()}


def _variant(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Row]:
    plain, other = (results.get(f"autoseg step plain{more}", {}) for more in ("", " channels_last"))
    value = _quotient(plain.get("step_seconds_alone"), other.get("step_seconds_alone"))
    return {"variant, no verdict: plain with channels last, times as fast": (value, "")}


def _prediction(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Row]:
    ours, theirs, card = (results.get(part, {}) for part in ("autoseg prediction", "nnunet prediction", "card"))
    extrapolated = f"nnU-Net's extrapolated from {RESAMPLED} of the classes"
    rate = _quotient(ours.get("window_flops"), ours.get("window_seconds"))
    read = _quotient(ours.get("logits_bytes"), ours.get("export_seconds"))
    return {
        f"CT: whole, nnU-Net / autoseg (export: {extrapolated})":
            (_quotient(theirs.get("seconds"), ours.get("seconds")), ">= 4"),
        "CT: windows alone, nnU-Net / autoseg (both measured)":
            (_quotient(theirs.get("window_seconds"), ours.get("window_seconds")), ""),
        f"CT: export alone, nnU-Net / autoseg ({extrapolated})":
            (_quotient(theirs.get("export_seconds_extrapolated"), ours.get("export_seconds")), ""),
        "CT: windows, share of the card's bf16 rate": (_quotient(rate, card.get("bf16_flops")), ""),
        "CT: export, logits read once / bandwidth": (_quotient(read, card.get("bytes_per_second")), ""),
    }  # fmt: skip


def _quotient(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def _reached(value: float | None, target: str) -> bool | None:
    if value is None or not target:
        return None
    sign, limit = target.split()
    return value >= float(limit) if sign == ">=" else value < float(limit)
