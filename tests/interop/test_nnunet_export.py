"""Export to nnU-Net: what it writes reads back as the same model, and nnunetv2 predicts the same from it."""

import json

import numpy as np
import pytest
import torch
from comparing import agreement, read
from nnunet_folders import build, configuration, description, network_fields, plans, read_checkpoint, write_results
from safetensors.torch import load_file, save_file

from autoseg.errors import UserError
from autoseg.inference import Predictor
from autoseg.interop import export_nnunet, import_nnunet
from autoseg.labels import Labels
from autoseg.model_folder import MODEL_FILE, PostprocessingStep, checksums, read_model
from autoseg.storage import write_json


def rewrite(folder, **changes):
    """Change fields of a model folder."""
    model = read_model(folder, verify=False).model_copy(update={**changes, "checksums": checksums(folder)})
    write_json(folder / MODEL_FILE, model.model_dump(mode="json"))


def small_model(tmp_path, *, labels, outputs, regions_class_order=None, **changes):
    content = description(labels, regions_class_order=regions_class_order)
    theirs = plans({"3d": configuration(**changes)})
    folder, _ = write_results(tmp_path / "theirs", theirs, content, "3d", outputs=outputs)
    return import_nnunet(folder, tmp_path / "model")


def test_there_and_back(hippocampus, reference, tmp_path):
    [folder] = export_nnunet(hippocampus, tmp_path / "results")
    assert folder.relative_to(tmp_path).as_posix() == (
        "results/Dataset004_Hippocampus/nnUNetTrainer__nnUNetSmallPlans__3d_fullres"
    )
    back = import_nnunet(folder, tmp_path / "back")
    assert read_model(back).members == read_model(hippocampus).members
    for fold in (0, 1):
        theirs = reference / "model" / f"fold_{fold}" / "checkpoint_final.pth"
        wanted = read_checkpoint(theirs)["network_weights"]
        found = torch.load(folder / f"fold_{fold}" / "checkpoint_final.pth", weights_only=True)  # no numpy, no classes
        assert list(found["network_weights"]) == list(wanted)
        assert all(torch.equal(found["network_weights"][name], wanted[name]) for name in wanted)
        assert (found["trainer_name"], found["inference_allowed_mirroring_axes"]) == ("nnUNetTrainer", (0, 1, 2))


def test_plans_are_nnunets(hippocampus, reference, tmp_path):
    [folder] = export_nnunet(hippocampus, tmp_path / "results")
    ours = json.loads((folder / "plans.json").read_text())
    theirs = json.loads((reference / "model" / "plans.json").read_text())
    theirs["configurations"] = {"3d_fullres": theirs["configurations"]["3d_fullres"]}
    assert ours == theirs


def test_residual_encoder(tmp_path):
    entry = network_fields(3, kind="ResidualEncoderUNet")
    model = small_model(tmp_path, labels={"background": 0, "a": 1}, outputs=2, architecture=entry)
    [folder] = export_nnunet(model, tmp_path / "results")
    written = json.loads((folder / "plans.json").read_text())["configurations"]["3d"]["architecture"]
    assert written == entry
    weights = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=True)["network_weights"]
    build(written, 1, 2).load_state_dict(weights)


def test_regions_painted_in_another_order(tmp_path):
    """nnU-Net paints in the order of the outputs, so the outputs change places."""
    model = small_model(
        tmp_path, labels={"background": 0, "whole": [1, 2], "core": [2]}, outputs=2, regions_class_order=[1, 2]
    )
    values = {"core": (2,), "whole": (1, 2)}
    rewrite(model, labels=Labels(values=values, regions=True, paint_order=("whole", "core"), paint_values=(1, 2)))
    [folder] = export_nnunet(model, tmp_path / "results")
    written = json.loads((folder / "dataset.json").read_text())
    assert list(written["labels"]) == ["background", "whole", "core"]
    assert written["regions_class_order"] == [1, 2]
    image = np.random.default_rng(0).normal(size=(1, 16, 16, 16)).astype(np.float32)
    back = import_nnunet(folder, tmp_path / "back")
    first, second = (
        Predictor.load(m, device="cpu", mirroring=False).predict_array(image, (1, 1, 1)) for m in (model, back)
    )
    assert len(np.unique(first.label)) > 1
    np.testing.assert_array_equal(first.label, second.label)


def test_other_label_values_are_told(tmp_path, caplog):
    model = small_model(tmp_path, labels={"background": 0, "a": 1, "b": 2, "ignore": 3}, outputs=3)
    rewrite(
        model,
        labels=Labels(values={"a": (5,), "b": (9,)}, ignore=(255,)),
        postprocessing=(PostprocessingStep(values=(1, 2)),),
    )
    [folder] = export_nnunet(model, tmp_path / "results")
    assert json.loads((folder / "dataset.json").read_text())["labels"] == {"background": 0, "a": 1, "b": 2, "ignore": 3}
    assert "5 -> 1, 9 -> 2" in caplog.text
    steps = json.loads((folder / "postprocessing.json").read_text())
    assert steps["postprocessing_kwargs"] == [{"labels_or_regions": [1, 2]}]


def test_other_architectures_are_refused(tmp_path):
    model = small_model(tmp_path, labels={"background": 0, "a": 1}, outputs=2)
    [member] = read_model(model).members
    rewrite(model, members=(member.model_copy(update={"architecture": "segmamba"}),))
    with pytest.raises(UserError, match="nnU-Net can build plain_unet, residual_encoder_unet"):
        export_nnunet(model, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_weights_trained_here(tmp_path, hippocampus):
    """Weights that were changed after the import, as by training, are those that are exported."""
    model = small_model(tmp_path, labels={"background": 0, "a": 1}, outputs=2)
    file = model / "members" / "3d" / "fold_0.safetensors"
    weights = {name: value + 0.5 for name, value in load_file(file).items()}
    save_file(weights, file)
    rewrite(model)
    [folder] = export_nnunet(model, tmp_path / "results")
    found = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=True)["network_weights"]
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    alias = "decoder.encoder.stages.0.0.convs.0.all_modules.0.weight"
    assert torch.equal(found[alias], weights["encoder.stages.0.0.convs.0.conv.weight"])


def test_nnunetv2_predicts_from_it(nnunetv2, hippocampus, hippocampus_images, reference, tmp_path):
    export_nnunet(hippocampus, tmp_path / "exported")
    [folder] = (tmp_path / "exported").glob("*/*")
    task = {
        "model": folder.relative_to(tmp_path), "folds": [0, 1], "mirroring": True, "float32": False,
        "images": hippocampus_images, "output": "predicted",
    }  # fmt: skip
    nnunetv2({"work": tmp_path, "predict": [task]})
    Predictor.load(hippocampus, device="cpu").predict_folder(hippocampus_images, tmp_path / "ours")
    for image in hippocampus_images.iterdir():
        name = image.name.replace("_0000", "")
        theirs = read(tmp_path / "predicted" / name)
        np.testing.assert_array_equal(theirs, read(reference / "predictions_folds_0_1" / name))
        assert agreement(read(tmp_path / "ours" / name), theirs) >= 0.999


def test_command_line(autoseg_run, hippocampus, tmp_path):
    shown = autoseg_run("export-nnunet", hippocampus, "-o", tmp_path / "results")
    assert shown.code == 0
    assert "nnUNetv2_predict_from_modelfolder -m " in shown.out


def test_other_results_in_the_output_are_left_alone(tmp_path):
    model = small_model(tmp_path, labels={"background": 0, "a": 1}, outputs=2)
    rewrite(model, postprocessing=(PostprocessingStep(values=(1,)),))
    results = tmp_path / "nnUNet_results"
    mine = results / "Dataset007_Small" / "nnUNetTrainer__nnUNetPlans__2d" / "plans.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    (results / "notes.txt").write_text("mine too")
    [folder] = export_nnunet(model, results)
    assert folder == mine.parent.parent / "nnUNetTrainer__nnUNetPlans__3d"
    before = sorted(results.rglob("*"))
    assert {path.name for path in results.iterdir()} == {"Dataset007_Small", "notes.txt"}
    assert mine.read_text() == "mine"
    (folder / "plans.json").write_text("trained by nnU-Net")
    with pytest.raises(UserError, match="there is something already") as caught:
        export_nnunet(model, results)
    assert caught.value.where == str(folder)
    assert (folder / "plans.json").read_text() == "trained by nnU-Net"
    assert sorted(results.rglob("*")) == before


@pytest.mark.parametrize(
    ("ending", "dims", "reader"),
    [
        (".tif", 3, "Tiff3DIO"),
        (".tiff", 3, "Tiff3DIO"),
        (".TIF", 3, "Tiff3DIO"),
        (".tif", 2, "NaturalImage2DIO"),
        (".png", 2, "NaturalImage2DIO"),
        (".bmp", 2, "NaturalImage2DIO"),
        (".nii.gz", 2, "SimpleITKIO"),
        (".nrrd", 3, "SimpleITKIO"),
        (".mha", 3, "SimpleITKIO"),
    ],
)
def test_reader(tmp_path, ending, dims, reader):
    model = small_model(tmp_path, labels={"background": 0, "a": 1}, outputs=2)
    rewrite(model, file_ending=ending, dims_of_data=dims)
    [folder] = export_nnunet(model, tmp_path / "results")
    assert json.loads((folder / "plans.json").read_text())["image_reader_writer"] == reader
