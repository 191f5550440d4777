"""Import of nnU-Net's models: equality with its own predictions, every kind of model, and what is refused."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from comparing import agreement, dice_difference, read
from nnunet_folders import (
    build,
    changed,
    configuration,
    description,
    network_fields,
    plans,
    read_checkpoint,
    write_results,
)
from safetensors.torch import load_file

from autoseg.errors import UserError
from autoseg.inference import Predictor
from autoseg.inference.members import load_members
from autoseg.interop import import_nnunet
from autoseg.model_folder import PostprocessingStep, read_member_plans, read_model

LABELS = {"background": 0, "a": 1, "b": 2}


def networks_of(folder, model=None):
    members = load_members(folder, model or read_model(folder), device=torch.device("cpu"))
    return {member.member.name: member for member in members}


def patch(inputs, dims=3, size=16):
    return torch.randn(1, inputs, *[size] * dims, generator=torch.Generator().manual_seed(3))


def same_output(member, theirs, inputs, dims=3):
    x = patch(inputs, dims)
    theirs.eval()
    theirs.decoder.deep_supervision = False
    with torch.no_grad():
        torch.testing.assert_close(member.networks[-1](x), theirs(x))


@pytest.mark.parametrize("mode", ["folds_0_1", "fold_0_no_mirroring"])
def test_predictions_equal_nnunetv2s_own(hippocampus, hippocampus_images, reference, tmp_path, mode):
    several = mode == "folds_0_1"
    predictor = Predictor.load(
        hippocampus, device="cpu", precision="fp32", folds=None if several else [0], mirroring=several
    )
    results = predictor.predict_folder(hippocampus_images, tmp_path, save_probabilities=several)
    for result in results:
        assert result.error is None
        theirs = reference / f"predictions_{mode}" / result.output.name
        assert agreement(read(result.output), read(theirs)) >= 0.999
        np.testing.assert_allclose(nib.load(result.output).affine, nib.load(theirs).affine, atol=1e-5)
        if several:
            saved = nib.load(tmp_path / f"{result.case}_probabilities.nii.gz").get_fdata().T
            with np.load(reference / "probabilities_folds_0_1" / f"{result.case}.npz") as file:
                assert np.abs(saved - file["probabilities"]).max() < 2e-3


def test_default_precision(hippocampus, hippocampus_images, reference, shared, tmp_path):
    for result in Predictor.load(hippocampus).predict_folder(hippocampus_images, tmp_path):
        theirs = read(reference / "predictions_folds_0_1" / result.output.name)
        truth = read(shared / "data" / "Dataset004_Hippocampus" / "labelsTs" / result.output.name)
        assert dice_difference(read(result.output), theirs, truth) < 0.002


def test_what_the_model_folder_says(hippocampus, reference):
    model = read_model(hippocampus)
    [member] = model.members
    assert (model.dataset_name, model.channel_names, model.file_ending) == (
        "Dataset004_Hippocampus",
        ("MRI",),
        ".nii.gz",
    )
    assert model.labels.values == {"Anterior": (1,), "Posterior": (2,)}
    assert (member.trainer, member.architecture, member.mirror_axes) == ("nnUNetTrainer", "plain_unet", (0, 1, 2))
    assert sorted(member.folds) == ["0", "1"]
    assert (model.orientation, model.postprocessing) == ("as_stored", ())
    ours = read_member_plans(hippocampus, member).configuration("3d_fullres")
    theirs = json.loads((reference / "model" / "plans.json").read_text())["configurations"]["3d_fullres"]
    assert list(ours.patch_size) == theirs["patch_size"]
    assert ours.network.features == (8, 16, 32, 64)
    assert ours.batch_size == theirs["batch_size"]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_both_networks_in_2d_and_3d(tmp_path, kind, dims):
    fields = configuration(dims, channels=2, architecture=network_fields(dims, kind=kind, features=(4, 8, 12)))
    theirs = plans({"mine": fields}, channels=2)
    axes = tuple(range(dims))[1:]
    folder, network = write_results(
        tmp_path, theirs, description(LABELS, channels=("CT", "x")), "mine", inputs=2, trainer="MyTrainer", axes=axes
    )
    model = import_nnunet(folder, tmp_path / "model")
    member = networks_of(model)["mine"]
    same_output(member, network, 2, dims)
    assert (member.member.trainer, member.member.mirror_axes) == ("MyTrainer", axes)


@pytest.mark.parametrize(("folds", "taken"), [((0, 3, "all"), ["0", "3"]), (("all",), ["all"])])
def test_folds(tmp_path, folds, taken):
    folder, _ = write_results(tmp_path, plans({"3d": configuration()}), description(LABELS), "3d", folds=folds)
    [member] = read_model(import_nnunet(folder, tmp_path / "model")).members
    assert sorted(member.folds) == taken
    [member] = read_model(import_nnunet(folder, tmp_path / "one", folds=[folds[-1]])).members
    assert list(member.folds) == ["all"]
    with pytest.raises(UserError, match="fold\\(s\\) 4 have no such checkpoint"):
        import_nnunet(folder, tmp_path / "none", folds=[4])


def test_others_may_read_the_weights_as_they_may_read_the_plans(tmp_path):
    folder, _ = write_results(tmp_path, plans({"3d": configuration()}), description(LABELS), "3d")
    model = import_nnunet(folder, tmp_path / "model")
    assert len({file.stat().st_mode for file in model.rglob("*") if file.is_file()}) == 1


def test_another_checkpoint(tmp_path):
    folder, _ = write_results(
        tmp_path, plans({"3d": configuration()}), description(LABELS), "3d", checkpoint="checkpoint_best.pth"
    )
    with pytest.raises(UserError, match=r"choose another checkpoint: checkpoint_best\.pth"):
        import_nnunet(folder, tmp_path / "model")
    assert import_nnunet(folder, tmp_path / "model", checkpoint="checkpoint_best.pth").is_dir()


def test_no_mirroring(tmp_path):
    folder, _ = write_results(tmp_path, plans({"3d": configuration()}), description(LABELS), "3d", axes=None)
    assert read_model(import_nnunet(folder, tmp_path / "model")).members[0].mirror_axes == ()


def test_cascade_with_regions_and_ignore_label(tmp_path):
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "ignore": 4}
    content = description(labels, regions_class_order=[1, 2])
    low = configuration(next_stage="3d_cascade_fullres", spacing=[2.0] * 3)
    high = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    theirs = plans({"3d_fullres": configuration(), "3d_lowres": low, "3d_cascade_fullres": high})
    _, below = write_results(tmp_path, theirs, content, "3d_lowres", inputs=1, outputs=2)
    folder, above = write_results(
        tmp_path, theirs, content, "3d_cascade_fullres", inputs=4, outputs=2, entry=low["architecture"]
    )
    model = import_nnunet(folder, tmp_path / "model")
    described = read_model(model)
    assert [(m.name, m.previous_stage, m.in_ensemble) for m in described.members] == [
        ("3d_lowres", None, False),
        ("3d_cascade_fullres", "3d_lowres", True),
    ]
    assert described.labels.regions
    assert described.labels.num_outputs == 2
    members = networks_of(model)
    same_output(members["3d_lowres"], below, 1)
    same_output(members["3d_cascade_fullres"], above, 4)
    image = np.random.default_rng(0).normal(size=(1, 18, 18, 18)).astype(np.float32)
    label = Predictor.load(model, device="cpu").predict_array(image, (1, 1, 1)).label
    assert set(np.unique(label)) <= {0, 1, 2}
    shutil.rmtree(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_lowres")
    with pytest.raises(UserError, match="needs its previous stage '3d_lowres'"):
        import_nnunet(folder, tmp_path / "alone")


def test_several_configurations_are_averaged(tmp_path):
    theirs = plans({"2d": configuration(2), "3d_fullres": configuration()})
    write_results(tmp_path / "r", theirs, description(LABELS), "2d", axes=(0, 1))
    write_results(tmp_path / "r", theirs, description(LABELS), "3d_fullres")
    with pytest.raises(UserError, match="there are several models"):
        import_nnunet(tmp_path / "r", tmp_path / "model")
    with pytest.raises(UserError, match="no models of configuration '3d_lowres'"):
        import_nnunet(tmp_path / "r", tmp_path / "model", configurations=["3d_lowres"])
    model = read_model(import_nnunet(tmp_path / "r", tmp_path / "model", configurations=["2d", "3d_fullres"]))
    assert [(member.name, member.in_ensemble) for member in model.members] == [("2d", True), ("3d_fullres", True)]


def test_plans_from_before_version_2_4(tmp_path):
    fields = configuration()
    entry = fields.pop("architecture")
    fields |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 6,
        "n_conv_per_stage_encoder": [2, 2],
        "n_conv_per_stage_decoder": [1],
        "conv_kernel_sizes": [[3, 3, 3]] * 2,
        "pool_op_kernel_sizes": [[1, 1, 1], [2, 2, 2]],
        "num_pool_per_axis": [1, 1, 1],
    }
    entry["arch_kwargs"]["features_per_stage"] = [4, 6]
    folder, network = write_results(tmp_path, plans({"3d": fields}), description(LABELS), "3d", entry=entry)
    same_output(networks_of(import_nnunet(folder, tmp_path / "model"))["3d"], network, 1)


def test_weights_of_compiled_and_distributed_networks(tmp_path):
    def wrapped(weights):
        return {f"module._orig_mod.{name}": value for name, value in weights.items()}

    theirs = plans({"3d": configuration()})
    folder, network = write_results(tmp_path, theirs, description(LABELS), "3d", edit=wrapped)
    same_output(networks_of(import_nnunet(folder, tmp_path / "model"))["3d"], network, 1)


def test_every_tensor_is_stored_once(hippocampus):
    weights = load_file(hippocampus / "members" / "3d_fullres" / "fold_0.safetensors")
    assert not any("all_modules" in name or name.startswith("decoder.encoder") for name in weights)


def test_postprocessing_is_taken_over_on_request(tmp_path):
    folder, _ = write_results(tmp_path, plans({"3d": configuration()}), description(LABELS), "3d")
    with pytest.raises(UserError, match="no post-processing files"):
        import_nnunet(folder, tmp_path / "model", postprocessing=True)
    chosen = {
        "postprocessing_fns": ["remove_all_but_largest_component_from_segmentation"] * 2,
        "postprocessing_kwargs": [{"labels_or_regions": [1, 2]}, {"labels_or_regions": 2}],
    }
    (folder / "crossval_results_folds_0").mkdir()
    (folder / "crossval_results_folds_0" / "postprocessing.json").write_text(json.dumps(chosen))
    assert read_model(import_nnunet(folder, tmp_path / "without")).postprocessing == ()
    model = read_model(import_nnunet(folder, tmp_path / "with", postprocessing=True))
    assert model.postprocessing == (PostprocessingStep(values=(1, 2)), PostprocessingStep(values=(2,)))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("architecture.network_class_name", "my.SwinUNETR", "network_class_name is 'SwinUNETR'"),
        ("architecture.arch_kwargs.norm_op", "torch.nn.BatchNorm3d", "norm_op is 'BatchNorm3d'"),
        ("architecture.arch_kwargs.nonlin", "torch.nn.ReLU", "nonlin is 'ReLU'"),
        ("architecture.arch_kwargs.nonlin_kwargs", {"negative_slope": 0.2}, r"nonlin_kwargs\.negative_slope is 0\.2"),
        ("architecture.arch_kwargs.conv_bias", False, "conv_bias is False"),
        ("architecture.arch_kwargs.surprise", 1, r"architecture\.surprise = 1 is not known"),
        ("architecture.arch_kwargs.strides", ..., "a field is missing"),
        ("preprocessor_name", "MyPreprocessor", "preprocessor_name is 'MyPreprocessor'"),
        ("normalization_schemes", ["MyNormalization"], "normalization_schemes is 'MyNormalization'"),
        ("resampling_fn_data", "resample_torch_fornnunet", "resampling_fn_data is 'resample_torch_fornnunet'"),
        ("resampling_fn_data_kwargs.order", 1, r"resampling_fn_data_kwargs\.order is 1"),
        ("inherits_from", "3d", "inherit from one another"),
        ("patch_size", [16, 16], "Conv3d"),
        ("batch_size", 0, "batch_size"),
        ("spacing", ..., "a field is missing"),
    ],
)
def test_what_would_not_predict_the_same_is_refused(tmp_path, path, value, message):
    theirs = plans({"3d": configuration()})
    folder, _ = write_results(tmp_path / "r", theirs, description(LABELS), "3d")
    (folder / "plans.json").write_text(json.dumps(changed(theirs, f"configurations.3d.{path}", value)))
    with pytest.raises(UserError, match=message) as caught:
        import_nnunet(folder, tmp_path / "model")
    assert "plans.json" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: {**w, "extra.running_mean": torch.ones(3)}, "has besides .*'extra.running_mean'"),
        (lambda w: {k: v for k, v in w.items() if "seg_layers" not in k}, "lacks 2 tensor"),
        (lambda w: {k: v[:1] if "seg_layers" in k else v for k, v in w.items()}, "in another size 2 tensor"),
        (lambda w: {**w, "encoder.stages.0.0.convs.0.conv.weight": "text"}, "something else than tensors"),
    ],
)  # fmt: skip
def test_weights_of_another_network_are_refused(tmp_path, edit, message):
    folder, _ = write_results(tmp_path, plans({"3d": configuration()}), description(LABELS), "3d", edit=edit)
    with pytest.raises(UserError, match=message):
        import_nnunet(folder, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_labels_must_be_consecutive(tmp_path):
    content = description({"background": 0, "a": 1, "b": 5})
    folder, _ = write_results(tmp_path, plans({"3d": configuration()}), content, "3d")
    with pytest.raises(UserError, match="not consecutive"):
        import_nnunet(folder, tmp_path / "model")


@pytest.mark.parametrize("axes", ["ASL", "RPI", "SLP", "LAS"])
def test_images_are_turned_as_nnunets_reorienting_readers_do(tmp_path, axes):
    """The prediction of an image stored with other axes is the prediction of the same image in RAS."""
    theirs = plans({"3d": configuration()}, image_reader_writer="NibabelIOWithReorient")
    folder, _ = write_results(tmp_path, theirs, description(LABELS), "3d")
    predictor = Predictor.load(import_nnunet(folder, tmp_path / "model"), device="cpu", mirroring=False)
    array = np.random.default_rng(1).normal(size=(14, 16, 18)).astype(np.float32)
    image = nib.Nifti1Image(array, np.diag([1.0, 1.5, 2.0, 1.0]))
    turned = image.as_reoriented(nib.orientations.axcodes2ornt(axes))
    for name, stored in (("ras", image), ("turned", turned)):
        (tmp_path / name).mkdir()
        nib.save(stored, tmp_path / name / "case_0000.nii.gz")
        predictor.predict_folder(tmp_path / name, tmp_path / f"{name}_out", save_probabilities=True)
    straight, back = (nib.load(tmp_path / f"{name}_out" / "case.nii.gz") for name in ("ras", "turned"))
    assert back.shape == turned.shape
    np.testing.assert_allclose(back.affine, turned.affine, atol=1e-5)
    assert len(np.unique(straight.get_fdata())) > 1
    np.testing.assert_array_equal(nib.as_closest_canonical(back).get_fdata(), straight.get_fdata())


def test_command_line(autoseg_run, reference, tmp_path):
    shown = autoseg_run("import-nnunet", reference / "model", "-o", tmp_path / "model", "--folds", "1")
    assert shown.code == 0
    assert "nnUNetTrainer" in shown.out
    assert list(read_model(tmp_path / "model").members[0].folds) == ["1"]
    again = autoseg_run("import-nnunet", reference / "model", "-o", tmp_path / "model")
    assert again.code == 2
    assert "there is something already" in again.err


def test_the_test_network_is_nnunets(reference):
    """The networks of these tests have the tensors of a real checkpoint."""
    theirs = json.loads((reference / "model" / "plans.json").read_text())
    network = build(theirs["configurations"]["3d_fullres"]["architecture"], 1, 3)
    content = read_checkpoint(reference / "model" / "fold_0" / "checkpoint_final.pth")
    network.load_state_dict(content["network_weights"])
