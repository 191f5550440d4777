"""The exported runner names what would give wrong answers: changed files of its folder, and images it cannot trust."""

import json
import os
import random
import runpy
import shutil
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from model_factory import write_model

from autoseg.interop import export
from autoseg.storage import SEAL

NETWORK = "member0_fold_0.onnx"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An exported model with a tiny network."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("small")
    return export(write_model(folder / "model"), folder / "exported")


@pytest.fixture
def exported(small, tmp_path):
    """A copy of it, which may be spoilt."""
    return shutil.copytree(small, tmp_path / "exported")


@pytest.fixture
def images(tmp_path):
    """Two images, `a` and `b`."""
    folder = tmp_path / "images"
    folder.mkdir()
    for seed, case in enumerate("ab"):
        write_image(folder / f"{case}_0000.nii.gz", np.random.default_rng(seed).normal(size=(16, 16, 8)))
    return folder


def write_image(path, values):
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), np.eye(4)), path)


def segment(exported, images):
    """Run the runner; returns its exit code, what it said on stderr, and the names of the label maps."""
    output = exported.parent / "out"
    command = [sys.executable, exported / "run.py", images, output, "--no-mirroring"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
    return done.returncode, done.stderr, sorted(path.name for path in output.glob("*")) if output.exists() else []


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_images_that_are_sound(exported, images):
    assert segment(exported, images) == (0, "", ["a.nii.gz", "b.nii.gz"])


@pytest.mark.parametrize(
    ("name", "before"), [(NETWORK, b"weight"), ("run.py", b"Segments images"), ("pipeline.json", b"zscore")]
)
def test_a_flipped_bit_is_named_before_anything_is_loaded(exported, images, name, before):
    flip(exported / name, (exported / name).read_bytes().index(before))
    code, said, written = segment(exported, images)
    assert (code, written) == (2, [])
    assert said.startswith(f"error: {exported / name}: the content does not match its checksum\nTo mend it: ")
    assert "export the model anew" in said


def test_a_missing_file_is_named(exported, images):
    (exported / NETWORK).unlink()
    code, said, written = segment(exported, images)
    assert (code, written) == (2, [])
    assert said.startswith(f"error: {exported / NETWORK}: the file is missing\nTo mend it: copy the whole folder again")


def test_a_network_without_a_checksum_is_named(exported, images):
    pipeline = json.loads((exported / "pipeline.json").read_text())
    del pipeline[SEAL], pipeline["checksums"][NETWORK]
    (exported / "pipeline.json").write_text(json.dumps(pipeline))
    code, said, written = segment(exported, images)
    assert (code, written) == (2, [])
    assert said.startswith(f"error: {exported / NETWORK}: the file has no checksum in pipeline.json")


def test_a_pipeline_that_cannot_be_read_is_named(exported, images):
    (exported / "pipeline.json").write_text("{")
    code, said, written = segment(exported, images)
    assert (code, written) == (2, [])
    assert said.startswith(f"error: {exported / 'pipeline.json'}: the file cannot be read")


def test_any_flipped_bit_of_the_pipeline_is_refused_or_changes_nothing(exported):
    runner = runpy.run_path(str(exported / "run.py"))
    path = exported / "pipeline.json"
    content, wanted = path.read_bytes(), runner["read_pipeline"](exported)
    refused = 0
    for position in random.Random(0).sample(range(len(content)), 300):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        try:
            assert runner["read_pipeline"](exported) == wanted, position
        except runner["Refused"]:
            refused += 1
    assert refused > 100


def test_a_pipeline_may_be_changed_on_purpose(exported, images):
    """As the message says: without the line of the checksum."""
    pipeline = json.loads((exported / "pipeline.json").read_text())
    del pipeline[SEAL]
    (exported / "pipeline.json").write_text(json.dumps(pipeline | {"dataset": "another name"}))
    assert segment(exported, images) == (0, "", ["a.nii.gz", "b.nii.gz"])


@pytest.mark.parametrize(("value", "counts"), [(np.nan, "1 NaN and 0 infinite"), (-np.inf, "0 NaN and 1 infinite")])
def test_a_case_with_voxels_that_are_not_finite_is_listed(exported, images, value, counts):
    bad = images / "a_0000.nii.gz"
    values = np.ones((16, 16, 8))
    values[3, 4, 5] = value
    write_image(bad, values)
    code, said, written = segment(exported, images)
    assert (code, written) == (1, ["b.nii.gz"])
    assert said == (
        "error: 1 case(s) failed; the others are complete:\n"
        f"  case a: {bad}: channel 0 has {counts} voxel(s)\n"
        "To mend it: replace them, for example by the value of the background\n"
    )


def test_no_case_that_can_be_segmented(exported, images):
    write_image(images / "a_0000.nii.gz", np.full((16, 16, 8), np.nan))
    (images / "b_0000.nii.gz").write_bytes(b"no image")
    code, said, written = segment(exported, images)
    assert (code, written) == (2, [])
    assert said.startswith("error: 2 case(s) failed; there is no other case:\n  case a: ")
    assert "\n  case b: " in said
    assert "Traceback" not in said


def test_no_image_is_no_success(exported, images):
    for image in images.iterdir():
        image.rename(image.with_name(image.name.replace("_0000", "")))
    code, said, written = segment(exported, images)
    assert (code, written) == (2, [])
    assert said.startswith(f"error: {images / '*_0000.nii.gz'}: there is no image")


def test_output_of_the_network_that_is_not_finite(exported, images):
    """Finite voxels, far beyond what the network can take."""
    runner = runpy.run_path(str(exported / "run.py"))
    pipeline = runner["read_pipeline"](exported)

    def network(patch):
        return np.full((1, 3, *patch.shape[2:]), np.nan, np.float32)

    with pytest.raises(runner["Refused"], match="the network's output is not finite"):
        runner["predict"](pipeline, {NETWORK: network}, np.ones((1, 8, 16, 16), np.float32), [1.0, 1.0, 1.0])


def test_other_channels_than_those_of_the_model(exported, images):
    """A file of each is missing."""
    runner = runpy.run_path(str(exported / "run.py"))
    pipeline = runner["read_pipeline"](exported) | {"channels": ["CT", "MRI"]}
    with pytest.raises(runner["Refused"], match=r"a_0000\.nii\.gz: there are 1 channel\(s\), not 2"):
        runner["read_case"](pipeline, images, "a")


def test_a_label_map_has_its_name_only_when_it_is_whole(exported, tmp_path):
    """Written beside its place: what an earlier run left there stays until the new one is complete."""
    write_whole = runpy.run_path(str(exported / "run.py"))["write_whole"]
    path = tmp_path / "case.png"
    path.write_bytes(b"earlier")

    def half(part, label):
        part.write_bytes(label[:2])
        assert path.read_bytes() == b"earlier"
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_whole(half, path, b"label")
    assert path.read_bytes() == b"earlier"
    write_whole(lambda part, label: part.write_bytes(label), path, b"label")
    assert path.read_bytes() == b"label"
    assert [found.name for found in tmp_path.glob("*case*")] == ["case.png"]
