"""ONNX and OpenVINO: the exported model and its runner give torch's label maps, without torch."""

import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from comparing import agreement, read
from model_factory import write_model
from nnunet_folders import configuration, description, plans, write_results

from autoseg.errors import UserError
from autoseg.inference import Predictor
from autoseg.interop import export, import_nnunet, portable, runner
from autoseg.model_folder import MODEL_FILE, PostprocessingStep, read_model
from autoseg.storage import write_json

NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}


def need(format):
    for name in NEEDED[format]:
        pytest.importorskip(name)


@pytest.fixture(scope="module")
def exported(hippocampus, tmp_path_factory):
    """Return a function that exports one fold, once per format."""
    folders = {}

    def of(format):
        if format not in folders:
            need(format)
            folders[format] = export(hippocampus, tmp_path_factory.mktemp(format) / "e", format=format, folds=[0])
        return folders[format]

    return of


@pytest.mark.parametrize("format", NEEDED)
def test_runner_equals_torch(format, exported, hippocampus, hippocampus_images, reference, tmp_path):
    folder = exported(format)
    Predictor.load(hippocampus, device="cpu", folds=[0], mirroring=False, precision="fp32").predict_folder(
        hippocampus_images, tmp_path / "torch"
    )
    code = (
        f"import sys; sys.modules['torch'] = sys.modules['autoseg'] = None; sys.argv[0] = {str(folder / 'run.py')!r};"
    )
    code += "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    subprocess.run(
        [sys.executable, "-c", code, hippocampus_images, tmp_path / "out", "--no-mirroring"], check=True, text=True
    )
    for file in (tmp_path / "torch").glob("*.nii.gz"):
        label = read(tmp_path / "out" / file.name)
        assert agreement(label, read(file)) >= 0.9999
        assert agreement(label, read(reference / "predictions_fold_0_no_mirroring" / file.name)) >= 0.999


def test_what_is_written(hippocampus, exported):
    folder = exported("onnx")
    content = json.loads((folder / "pipeline.json").read_text())
    assert sorted(content["checksums"]) == ["3d_fullres_fold_0.onnx", "run.py"]
    [member] = content["members"]
    assert (member["patch_size"], member["mirror_axes"]) == ([40, 56, 40], [0, 1, 2])
    assert member["normalization"][0]["scheme"] == "zscore"
    assert content["labels"]["outputs"] == ["background", "Anterior", "Posterior"]
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "3d_fullres_fold_0.onnx", providers=["CPUExecutionProvider"])
    batch = np.random.default_rng(0).normal(size=(3, 1, 40, 56, 40)).astype(np.float32)
    [logits] = session.run(["logits"], {"image": batch})  # any batch size
    network = Predictor.load(hippocampus, device="cpu", folds=[0]).members[0].networks[0]
    import torch

    with torch.no_grad():
        np.testing.assert_allclose(logits, network(torch.from_numpy(batch)).numpy(), atol=1e-3)


def networks_in_torch(model):
    """Stand in for the exported networks, so that the runner's own steps are compared without exporting."""
    import torch

    predictor = Predictor.load(model, device="cpu", precision="fp32")
    described, networks = [], {}
    for loaded in predictor.members:
        files = [f"{loaded.member.name}_{fold}" for fold in loaded.folds]
        for file, network in zip(files, loaded.networks, strict=True):
            networks[file] = lambda patch, network=network: network(torch.from_numpy(patch)).detach().numpy()
        described.append(portable.describe_member(loaded, files))
    pipeline = {**portable.describe_pipeline(predictor.model, "onnx"), "members": described}
    return predictor, json.loads(json.dumps(pipeline, default=str)), networks


def compare(model, image, spacing):
    predictor, pipeline, networks = networks_in_torch(model)
    ours = predictor.predict_array(image, spacing, save_probabilities=True)
    label, probabilities = runner.predict(pipeline, networks, image, list(spacing))
    np.testing.assert_allclose(probabilities, ours.probabilities, atol=2e-4)
    assert agreement(label, ours.label) >= 0.999
    assert len(np.unique(ours.label)) > 1


def noise(shape, seed=0):
    image = np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 50 + 10
    image[:, :2] = 0
    image[:, :, -3:] = 0
    return image


def test_every_step_of_the_runner_in_a_cascade_of_regions(tmp_path):
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    content = description(labels, regions_class_order=[1, 2], channels=("CT", "MRI"))
    full = configuration(channels=2, normalization_schemes=["CTNormalization", "ZScoreNormalization"])
    full |= {"use_mask_for_norm": [False, True], "spacing": [3.0, 0.9, 0.8]}
    low = {"inherits_from": "full", "next_stage": "cascade", "spacing": [3.0, 1.6, 1.6]}
    theirs = plans(
        {"full": full, "low": low, "cascade": {"inherits_from": "full", "previous_stage": "low"}},
        channels=2, transpose_forward=[1, 0, 2], transpose_backward=[1, 0, 2],
    )  # fmt: skip
    intensities = theirs["foreground_intensity_properties_per_channel"]["0"]
    intensities |= {"mean": 10.0, "std": 40.0, "percentile_00_5": -70.0, "percentile_99_5": 80.0}
    write_results(tmp_path, theirs, content, "low", inputs=2, outputs=2, entry=full["architecture"])
    folder, _ = write_results(tmp_path, theirs, content, "cascade", inputs=4, outputs=2, entry=full["architecture"])
    model = import_nnunet(folder, tmp_path / "model")
    compare(model, noise((2, 22, 12, 30)), (1.0, 3.5, 1.0))


def test_every_step_of_the_runner_in_an_ensemble_of_2d_and_3d(tmp_path):
    content = description({"background": 0, "a": 1, "b": 2})
    schemes = {"normalization_schemes": ["RescaleTo01Normalization"]}
    theirs = plans({"2d": configuration(2, **schemes), "3d": configuration(spacing=[1.2] * 3)})
    write_results(tmp_path / "r", theirs, content, "2d", axes=(0, 1))
    write_results(tmp_path / "r", theirs, content, "3d", folds=(0, 1), axes=(1,))
    model = import_nnunet(tmp_path / "r", tmp_path / "model", configurations=["2d", "3d"])
    described = read_model(model).model_copy(update={"postprocessing": (PostprocessingStep(values=(1, 2)),)})
    write_json(model / MODEL_FILE, described.model_dump(mode="json"))
    compare(model, noise((1, 12, 20, 26)), (1.5, 1.0, 1.3))


def test_a_picture(tmp_path):
    from skimage.io import imread, imsave

    theirs = plans({"2d": configuration(2, channels=3, normalization_schemes=["RGBTo01Normalization"] * 3)}, channels=3)
    content = description({"background": 0, "a": 1, "b": 2}, channels=("R", "G", "B"), ending=".png")
    folder, _ = write_results(tmp_path / "r", theirs, content, "2d", inputs=3, axes=(0, 1))
    predictor, pipeline, networks = networks_in_torch(import_nnunet(folder, tmp_path / "model"))
    (tmp_path / "in").mkdir()
    picture = np.random.default_rng(0).integers(1, 255, (40, 30, 3), dtype=np.uint8)
    imsave(tmp_path / "in" / "case_0000.png", picture, check_contrast=False)
    predictor.predict_folder(tmp_path / "in", tmp_path / "out")
    image, spacing, write = runner.read([tmp_path / "in" / "case_0000.png"], "as_stored")
    assert (image.shape, spacing) == ((3, 1, 40, 30), [999.0, 1.0, 1.0])
    label, _ = runner.predict(pipeline, networks, image, spacing)
    write(tmp_path / "label.png", label)
    assert agreement(imread(tmp_path / "label.png"), imread(tmp_path / "out" / "case.png")) >= 0.999


def test_missing_packages_are_named(hippocampus, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(UserError, match=r"needs .*onnxscript(.|\n)*autoseg-engine\[export\]"):
        export(hippocampus, tmp_path / "exported")
    with pytest.raises(UserError, match="format must be one of onnx, openvino"):
        export(hippocampus, tmp_path / "exported", format="coreml")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(
    ("ending", "dims", "readable"),
    [
        (".tif", 3, False),
        (".tiff", 3, False),
        (".nrrd", 3, False),
        (".mha", 3, False),
        (".mha", 2, False),
        (".nii.gz", 3, True),
        (".nii", 2, True),
        (".tif", 2, True),
        (".png", 2, True),
    ],
)
def test_images_that_the_runner_cannot_read_are_refused(hippocampus, tmp_path, monkeypatch, ending, dims, readable):
    source = hippocampus if dims == 3 else write_model(tmp_path / "flat", {"plans": {"spacing": (1.0, 1.0)}})
    shutil.copytree(source, tmp_path / "model")
    changed = read_model(source).model_copy(update={"file_ending": ending, "dims_of_data": dims})
    write_json(tmp_path / "model" / MODEL_FILE, changed.model_dump(mode="json"))
    monkeypatch.setattr(portable, "_write_member", lambda *_: {})
    monkeypatch.setitem(portable.FORMATS, "onnx", ())
    if readable:
        assert (export(tmp_path / "model", tmp_path / "out") / "run.py").is_file()
        return
    with pytest.raises(UserError, match=rf"does not read {dims}D images as '\{ending}'"):
        export(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_that_are_paths_are_refused(hippocampus, tmp_path, monkeypatch):
    shutil.copytree(hippocampus, tmp_path / "model")
    model = read_model(hippocampus)
    member = model.members[0].model_copy(update={"name": "../../escaped"})
    changed = model.model_copy(update={"members": (member,)})
    write_json(tmp_path / "model" / MODEL_FILE, changed.model_dump(mode="json"))
    monkeypatch.setitem(portable.FORMATS, "onnx", ())
    with pytest.raises(UserError, match=r"field members is '\.\./\.\./escaped'"):
        export(tmp_path / "model", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
