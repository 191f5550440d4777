"""nnU-Net segments the same CT: its sliding window as a whole; the export on some classes, extrapolated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpu_parts import nnunet_own, nnunet_stated
from gpu_parts.autoseg_prediction import WARM_UP, made_image
from gpu_parts.bench import Bench
from gpu_parts.networks import nnunet_network
from gpu_parts.nnunet_stated import as_nnunet_sets_torch
from gpu_parts.sizes import RESAMPLED


def measure(bench: Bench) -> None:
    """Time the windows, and the resampling of some classes; deciding among them is left out, in nnU-Net's favour."""
    as_nnunet_sets_torch(bench.device)
    image = made_image(bench)
    windows = _windows(bench)
    windows(image[WARM_UP])
    bench.bind()
    seconds, logits = bench.timed(lambda: windows(image))
    bench.tell(window_seconds=seconds, peak_bytes=bench.peak_bytes)
    part = logits[:RESAMPLED].cpu().numpy()
    resample = nnunet_own.resample if bench.answer["own"] else nnunet_stated.resample
    export, _ = bench.timed(lambda: resample(part, bench.sizes.fine))
    export *= bench.sizes.classes / RESAMPLED
    bench.tell(export_seconds_extrapolated=export, seconds=seconds + export)


def _windows(bench: Bench) -> Callable[[Any], Any]:
    """Return the sliding window: nnunetv2's, or as stated here."""
    sizes = bench.sizes
    try:
        predictor = nnunet_own.make_predictor(bench)
    except nnunet_own.Absent as absent:
        bench.tell(own=False, whose=f"stated here; {absent}")
        network = nnunet_network(sizes, "plain", outputs=sizes.classes).to(bench.device).eval()
        network.decoder.deep_supervision = False
        return lambda image: nnunet_stated.sliding_window(network, image.to(bench.device), sizes.patch, sizes.classes)
    bench.tell(own=True, whose=nnunet_own.version())
    return predictor.predict_sliding_window_return_logits
