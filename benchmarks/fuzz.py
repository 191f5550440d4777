"""Coverage-guided fuzzing (atheris) of the readers of images and the schemas of JSON files, bounded in time and memory.

    python benchmarks/fuzz.py [--only nifti description ...] [--seconds 60] [--seed 1]

Every input must give a result or a UserError. Anything else, more than 2 GiB, or 20 s for one input is a finding: its
input is kept in the folder that the line names, and the exit code is 1. Needs `pip install atheris` (Linux, macOS).
The suite does the same with hypothesis, in tests/faults/test_fuzz.py, which needs no instrumentation.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

Target = Callable[[bytes], None]
PICTURES = ("mha", "nrrd", "png", "bmp", "tif", "jpg")


def readers(folder: Path) -> dict[str, tuple[Target, list[bytes]]]:
    """Return for every format of images what is called with the bytes of a file, and files to begin with."""
    import nibabel
    import numpy as np
    import SimpleITK as sitk

    from autoseg.errors import UserError
    from autoseg.raw import read_image, read_label

    def reading(ending: str) -> Target:
        path = folder / f"a.{ending}"

        def read(content: bytes) -> None:
            path.write_bytes(content)
            for reader in (lambda: read_image([path], channels=1), lambda: read_label(path)):
                with suppress(UserError):
                    reader()

        return read

    volume = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / "seed.nii")
    for ending in PICTURES:
        flat = volume.astype(np.uint8).reshape(6, 10)
        sitk.WriteImage(
            sitk.GetImageFromArray(volume if ending in PICTURES[:2] else flat), str(folder / f"seed.{ending}")
        )
    found = {ending: (reading(ending), [(folder / f"seed.{ending}").read_bytes()]) for ending in ("nii", *PICTURES)}
    whole = found["nii"][1][0]
    return {**found, "nii.gz": (lambda content: found["nii"][0](gzip.compress(content)), [whole])}


def schemas(folder: Path) -> dict[str, tuple[Target, list[bytes]]]:
    """Return for every schema what is called with the bytes of a JSON file, and files to begin with."""
    from autoseg.errors import UserError
    from autoseg.model_folder import MODEL_FILE, read_model
    from autoseg.plans import Plans
    from autoseg.raw.description import read_description

    def reading(path: Path, read: Callable[[Path], object]) -> Target:
        def target(content: bytes) -> None:
            path.write_bytes(content)
            with suppress(UserError):
                read(path)

        return target

    description = {
        "channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": [1, 2], "ignore": 3}, "file_ending": ".nii.gz",
        "numTraining": 2, "regions_class_order": [1],
    }  # fmt: skip
    plans = {"dataset_name": "D", "plans_name": "p", "configurations": {"2d": {"dims": 2, "spacing": [1.0, 1.0]}}}
    model = {"format": 1, "members": [{}]}
    return {
        "description": (reading(folder / "dataset.json", read_description), [json.dumps(description).encode()]),
        "plans": (reading(folder / "plans.json", Plans.read), [json.dumps(plans).encode()]),
        "model": (
            reading(folder / MODEL_FILE, lambda path: read_model(path.parent, verify=False)),
            [json.dumps(model).encode()],
        ),
    }


def fuzz(name: str, folder: Path, seconds: int, seed: int) -> None:
    """Fuzz one target in this process; libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["autoseg"]):
        import autoseg.model_folder
        import autoseg.plans
        import autoseg.raw  # noqa: F401 - imported here to be instrumented

    target, seeds = (readers(folder) | schemas(folder))[name]
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, content in enumerate(seeds):
        (corpus / str(number)).write_bytes(content)
    bounds = [f"-max_total_time={seconds}", f"-seed={seed}", "-rss_limit_mb=2048", "-timeout=20", "-max_len=4096"]
    atheris.Setup([name, *bounds, f"-artifact_prefix={folder}/", str(corpus)], target)
    atheris.Fuzz()


def main() -> int:
    """Fuzz every target in a process of its own; print a table."""
    names = ["nii", "nii.gz", *PICTURES, "description", "plans", "model"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=names, default=names)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        fuzz(options.one[0], Path(options.one[1]), options.seconds, options.seed)
    found = 0
    print("| target | inputs | found |\n| --- | --- | --- |")
    for name in options.only:
        folder = Path(tempfile.mkdtemp(prefix=f"fuzz_{name}_"))
        given = ["--seconds", str(options.seconds), "--seed", str(options.seed), "--one", name, str(folder)]
        done = subprocess.run([sys.executable, __file__, *given], capture_output=True, text=True, check=False)
        runs = re.search(r"Done (\d+) runs", done.stderr)
        ended = "nothing" if done.returncode == 0 and runs else f"see {folder}"
        if ended != "nothing":
            found += 1
            (folder / "output.txt").write_text(done.stdout + done.stderr)
        print(f"| {name} | {int(runs.group(1)):,} | {ended} |" if runs else f"| {name} | - | {ended} |", flush=True)
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
