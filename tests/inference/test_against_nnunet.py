"""The whole way from image to label map against nnunetv2 2.8.1's own predictions with its own weights."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from autoseg.inference import Predictor, label_map, predict_preprocessed, probabilities
from autoseg.inference.resampling import Resampled
from autoseg.labels import labels_from_description
from autoseg.model_folder import MODEL_FILE, Member, Model, checksums
from autoseg.plans import ChannelIntensities, Configuration, NetworkSpec, Plans
from autoseg.plugins import build_network
from autoseg.preprocessing import preprocess_case
from autoseg.storage import write_json

# What nnU-Net's checkpoints hold beside tensors: the logged numpy numbers.
HARMLESS = [
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
]
CASES = ("003", "193", "326", "338")  # of ten, which all agree; the last two need several tiles


@pytest.fixture(scope="module")
def reference(nnunet_model):
    return nnunet_model


def spec_of(arguments: dict, patch: list[int]) -> NetworkSpec:
    return NetworkSpec(
        dims=3,
        in_channels=1,
        num_outputs=3,
        patch_size=patch,
        strides=arguments["strides"],
        kernel_sizes=arguments["kernel_sizes"],
        features=arguments["features_per_stage"],
        blocks_encoder=arguments["n_conv_per_stage"],
        blocks_decoder=arguments["n_conv_per_stage_decoder"],
    )


@pytest.fixture(scope="module")
def plans(reference):
    theirs = json.loads((reference / "model" / "plans.json").read_text())
    fields = theirs["configurations"]["3d_fullres"]
    configuration = Configuration(
        name="3d_fullres",
        dims=3,
        spacing=fields["spacing"],
        median_shape=fields["median_image_size_in_voxels"],
        patch_size=fields["patch_size"],
        batch_size=fields["batch_size"],
        batch_dice=fields["batch_dice"],
        normalization=("zscore",),
        use_mask=fields["use_mask_for_norm"],
        data_identifier=fields["data_identifier"],
        architecture="plain_unet",
        network=spec_of(fields["architecture"]["arch_kwargs"], fields["patch_size"]),
    )
    intensities = theirs["foreground_intensity_properties_per_channel"]["0"]
    return Plans(
        dataset_name=theirs["dataset_name"],
        plans_name="nnunet",
        planner="nnunet",
        transpose_forward=theirs["transpose_forward"],
        transpose_backward=theirs["transpose_backward"],
        original_median_spacing=theirs["original_median_spacing_after_transp"],
        original_median_shape=theirs["original_median_shape_after_transp"],
        intensities=(ChannelIntensities(**intensities),),
        channel_names=("MRI",),
        configurations={"3d_fullres": configuration},
    )


@pytest.fixture(scope="module")
def labels(reference):
    return labels_from_description(json.loads((reference / "model" / "dataset.json").read_text()))


@pytest.fixture(scope="module")
def networks(reference, plans):
    loaded = []
    for fold in (0, 1):
        file = reference / "model" / f"fold_{fold}" / "checkpoint_final.pth"
        with torch.serialization.safe_globals(HARMLESS):
            weights = torch.load(file, weights_only=True, map_location="cpu")["network_weights"]
        configuration = plans.configuration("3d_fullres")
        network = build_network(configuration.architecture, configuration.network)
        network.load_state_dict(weights)
        loaded.append(network)
    return loaded


def predict(case, shared, plans, networks, mirror_axes) -> Resampled:
    file = nib.load(shared / "data" / "Dataset004_Hippocampus" / "imagesTs" / f"hippocampus_{case}_0000.nii.gz")
    image = np.asarray(file.dataobj, dtype=np.float32).T[np.newaxis]
    configuration = plans.configuration("3d_fullres")
    spacing = tuple(float(value) for value in file.header.get_zooms()[::-1])
    prepared = preprocess_case(image, None, spacing, plans=plans, configuration=configuration)
    logits = predict_preprocessed(
        networks, torch.from_numpy(prepared.data), configuration, mirror_axes=mirror_axes, precision="fp32"
    )
    return Resampled(logits, prepared.properties, plans, configuration)


def agreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Share of the voxels that are foreground in either map and have the same label in both."""
    foreground = (ours > 0) | (theirs > 0)
    return float((ours == theirs)[foreground].mean())


@pytest.mark.parametrize("case", CASES)
def test_folds_and_mirrors(case, reference, shared, plans, labels, networks):
    ours = predict(case, shared, plans, networks, (0, 1, 2))
    theirs = np.asarray(nib.load(reference / "predictions_folds_0_1" / f"hippocampus_{case}.nii.gz").dataobj).T
    assert agreement(label_map([ours], labels), theirs) >= 0.999
    with np.load(reference / "probabilities_folds_0_1" / f"hippocampus_{case}.npz") as file:
        their_probabilities = file["probabilities"].astype(np.float32)
    assert np.abs(probabilities([ours], labels) - their_probabilities).max() < 2e-3


@pytest.mark.parametrize("case", CASES[:3])
def test_one_fold_without_mirrors(case, reference, shared, plans, labels, networks):
    ours = predict(case, shared, plans, networks[:1], ())
    folder = reference / "predictions_fold_0_no_mirroring"
    theirs = np.asarray(nib.load(folder / f"hippocampus_{case}.nii.gz").dataobj).T
    assert agreement(label_map([ours], labels), theirs) >= 0.999


def test_from_files_to_files(reference, shared, plans, labels, networks, tmp_path):
    """A model folder of their weights, their images in, label maps and probabilities out."""
    model = tmp_path / "model"
    plans.write(model / "plans.json")
    for fold, network in enumerate(networks):
        save_file(network.state_dict(), model / f"fold_{fold}.safetensors")
    member = Member(
        name="3d_fullres", plans_file="plans.json", configuration="3d_fullres", architecture="plain_unet",
        trainer="nnunet", folds={str(fold): f"fold_{fold}.safetensors" for fold in (0, 1)}, mirror_axes=(0, 1, 2),
    )  # fmt: skip
    described = Model(
        dataset_name=plans.dataset_name, channel_names=("MRI",), labels=labels, file_ending=".nii.gz",
        members=(member,), checksums=checksums(model),
    )  # fmt: skip
    write_json(model / MODEL_FILE, described.model_dump(mode="json"))
    (tmp_path / "in").mkdir()
    for case in CASES[:2]:
        name = f"hippocampus_{case}_0000.nii.gz"
        shutil.copy(shared / "data" / "Dataset004_Hippocampus" / "imagesTs" / name, tmp_path / "in")
    predictor = Predictor.load(model, device="cpu", precision="fp32")
    for result in predictor.predict_folder(tmp_path / "in", tmp_path / "out", save_probabilities=True):
        assert result.error is None
        ours, theirs = nib.load(result.output), nib.load(reference / "predictions_folds_0_1" / result.output.name)
        np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-5)
        assert agreement(np.asarray(ours.dataobj), np.asarray(theirs.dataobj)) >= 0.999
        saved = nib.load(tmp_path / "out" / f"{result.case}_probabilities.nii.gz").get_fdata().T
        with np.load(reference / "probabilities_folds_0_1" / f"{result.case}.npz") as file:
            assert np.abs(saved - file["probabilities"]).max() < 2e-3
