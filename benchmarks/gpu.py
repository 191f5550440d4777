"""What a GPU is used for: training steps, waiting for data, augmentation, a whole CT with 104 classes. One command.

    python benchmarks/gpu.py [--minutes 9] [--json FILE] [--only PART ...] [--rehearse]

It runs from a checkout; autoseg need not be installed. Of other packages it needs torch with triton, numpy, scipy,
pydantic, lightning-fabric (which pytorch-lightning brings, too), dynamic-network-architectures, blosc2, safetensors,
nibabel, connected-components-3d, edt, tqdm and scikit-image; it names those that are missing. Nothing is downloaded.
nnunetv2 is optional: where it can be imported the other side is its own trainer, with its own augmenters, and its own
predictor; else its loss, step, sliding window and resampling are stated in `gpu_parts/nnunet_stated.py`, and this is
told. Either way its side is compiled as nnU-Net compiles, in fp16 with a gradient scaler, and cuDNN times its kernels.

Every part is a process of its own with a time of its own: what fails, hangs or does not fit is told, and the others
run. Code is compiled beforehand, on all cores, into a cache that all processes share; what is timed runs on 4 cores,
alone. Parts come in the order of their importance; FILE is written after each. Volumes are made of smoothed noise:
speed depends on their size alone. Without a GPU it says so and ends. `--rehearse` runs all of it, but what compiles, at
toy size on the CPU, uncompiled: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from gpu_parts.checkout import lay_out, missing_packages
from gpu_parts.course import Course
from gpu_parts.parts import NAMES, chosen
from gpu_parts.verdicts import conclude, lines

RESERVE = 10.0  # seconds for the end
NOTHING_MEASURED = 3  # exit status


def main() -> None:
    """Measure what is asked for and print the ratios."""
    began = time.monotonic()
    options = _options()
    if not options.rehearse and not _may_have_gpu():
        print("no GPU: nothing measured")
        if options.json:
            _write(options.json, {}, rehearsed=False)
        sys.exit(NOTHING_MEASURED)
    if missing := missing_packages(rehearse=options.rehearse):
        sys.exit("\n  ".join(["these packages cannot be imported:", *missing]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # parts are stopped on the way out
    parts = chosen(options.only, compiles=not options.rehearse)

    def told(name: str, results: dict[str, Any]) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {name}: {json.dumps(results[name])}", flush=True)
        if options.json:
            _write(options.json, results, rehearsed=options.rehearse)

    with tempfile.TemporaryDirectory(prefix="gpu_", ignore_cleanup_errors=True) as folder:
        work = Path(folder).resolve()
        end = began + 60 * options.minutes - RESERVE
        course = Course(work, lay_out(work / "site"), rehearse=options.rehearse, end=end, told=told)
        try:
            course.run(parts)
        finally:
            heading = "a rehearsal: these figures mean nothing" if options.rehearse else ""
            print("\n".join([heading, *lines(_verdicts(course.results, options.rehearse))]), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="all ends by then, finished or not")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where results and verdicts go")
    parser.add_argument("--only", nargs="+", default=[], choices=NAMES, metavar="PART", help=", ".join(NAMES))
    parser.add_argument("--rehearse", action="store_true", help="at toy size on the CPU")
    return parser.parse_args()


def _may_have_gpu() -> bool:
    """Return whether there is a GPU; without torch nobody knows."""
    try:
        import torch
    except ImportError:  # told among what is missing
        return True
    return torch.cuda.is_available()


def _verdicts(results: dict[str, Any], rehearsed: bool) -> dict[str, dict[str, Any]]:
    found = conclude(results)
    return {name: row | {"reached": None} for name, row in found.items()} if rehearsed else found


def _write(file: Path, results: dict[str, Any], *, rehearsed: bool) -> None:
    told = {"date": datetime.date.today().isoformat(), "rehearsal": rehearsed, "parts": results}
    text = json.dumps(told | {"verdicts": _verdicts(results, rehearsed)}, indent=1)
    file.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
