"""nnU-Net's planners: the card's examples, and equality with recorded answers of nnunetv2."""

import json
from pathlib import Path

import pytest
from planning_factory import make_dataset, make_fingerprint

from autoseg import plugins
from autoseg.errors import UserError
from autoseg.planning import Resources

RECORDED = json.loads((Path(__file__).parent / "nnunet_plans.json").read_text())
SCHEMES = {
    "CTNormalization": "ct",
    "NoNormalization": "none",
    "ZScoreNormalization": "zscore",
    "RescaleTo01Normalization": "rescale_to_0_1",
    "RGBTo01Normalization": "rgb_to_0_1",
}


def make_plans(planner, fingerprint, *, memory=None, dataset=None, **settings):
    resources = Resources() if memory is None else Resources(memory_gib=memory, memory_given=True)
    dataset = dataset or make_dataset(fingerprint.num_labels)
    return plugins.load("planner", planner)(**settings).plan(fingerprint, resources, dataset)


def lists(value):
    return [lists(entry) for entry in value] if isinstance(value, (tuple, list)) else value


@pytest.mark.parametrize("entry", RECORDED, ids=range(len(RECORDED)))
def test_equal_to_nnunetv2(entry):
    case, wanted = entry["case"], entry["plans"]
    fingerprint = make_fingerprint(
        case["spacings"] * case["repeats"],
        case["shapes"] * case["repeats"],
        channels=case["channels"],
        labels=len(case["labels"]),
        relative_size=case["median_relative_size"],
    )
    plans = make_plans(case["planner"], fingerprint, memory=case["memory"], dataset=make_dataset(case["labels"]))
    assert list(plans.transpose_forward) == wanted["transpose_forward"]
    assert list(plans.transpose_backward) == wanted["transpose_backward"]
    assert list(plans.original_median_spacing) == wanted["original_median_spacing_after_transp"]
    assert [round(n) for n in plans.original_median_shape] == wanted["original_median_shape_after_transp"]
    assert plans.configurations.keys() == wanted["configurations"].keys()
    for name, theirs in wanted["configurations"].items():
        theirs = {**wanted["configurations"].get(theirs.get("inherits_from"), {}), **theirs}
        ours = plans.configuration(name)
        assert lists(ours.patch_size) == theirs["patch_size"], name
        assert ours.batch_size == theirs["batch_size"], name
        assert lists(ours.spacing) == theirs["spacing"], name
        assert lists(ours.median_shape) == theirs["median_image_size_in_voxels"], name
        assert lists(ours.network.strides) == theirs["strides"], name
        assert lists(ours.network.kernel_sizes) == theirs["kernel_sizes"], name
        assert lists(ours.network.features) == theirs["features_per_stage"], name
        blocks = theirs.get("n_conv_per_stage") or theirs["n_blocks_per_stage"]
        assert lists(ours.network.blocks_encoder) == blocks, name
        assert lists(ours.network.blocks_decoder) == theirs["n_conv_per_stage_decoder"], name
        assert list(ours.normalization) == [SCHEMES[scheme] for scheme in theirs["normalization_schemes"]]
        assert list(ours.use_mask) == theirs["use_mask_for_norm"]
        assert ours.batch_dice == theirs["batch_dice"], name
        assert ours.previous_stage == theirs.get("previous_stage")
        assert ours.next_stage == theirs.get("next_stage")


def test_hippocampus():
    plans = make_plans("nnunet", make_fingerprint((1, 1, 1), (36, 50, 35), cases=260))
    assert set(plans.configurations) == {"2d", "3d_fullres"}
    full, flat = plans.configuration("3d_fullres"), plans.configuration("2d")
    assert (full.patch_size, full.batch_size, len(full.network.features)) == ((40, 56, 40), 9, 4)
    assert (flat.patch_size, flat.batch_size) == ((56, 40), 366)
    assert (full.batch_dice, flat.batch_dice) == (False, True)
    assert full.training.model_dump() == {
        "steps": 250_000,
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "weight_decay": 3e-5,
        "warmup_steps": 0,
        "precision": "auto",
        "augmentation": "full",
        "mirror": True,
        "time_budget": None,
    }
    assert (full.architecture, full.data_identifier) == ("plain_unet", "nnunet_3d_fullres")


def test_few_cases_cap_the_batch():
    plans = make_plans("nnunet", make_fingerprint((1, 1, 1), (36, 50, 35), cases=30))
    assert plans.configuration("3d_fullres").batch_size == 2
    assert plans.configuration("2d").batch_size == 42


def test_brain_tumour_like():
    fingerprint = make_fingerprint((1, 1, 1), (140, 171, 137), cases=484, channels=("T1", "T2", "T1c", "F"), labels=4)
    plans = make_plans("nnunet", fingerprint)
    full, flat = plans.configuration("3d_fullres"), plans.configuration("2d")
    assert (full.patch_size, full.batch_size, len(full.network.features)) == ((128, 128, 128), 2, 6)
    assert (flat.patch_size, flat.batch_size) == ((192, 160), 105)
    assert full.network.in_channels == 4


def test_liver_like_has_a_cascade():
    fingerprint = make_fingerprint((1, 0.767578, 0.767578), (432, 512, 512), cases=131, channels=("CT",))
    plans = make_plans("nnunet", fingerprint)
    full, low = plans.configuration("3d_fullres"), plans.configuration("3d_lowres")
    assert (full.patch_size, full.batch_size, full.batch_dice) == ((128, 128, 128), 2, True)
    assert low.spacing == pytest.approx((2.42726, 1.86311, 1.86311), rel=1e-5)
    assert (low.median_shape, low.patch_size, low.batch_size) == ((178, 211, 211), (128, 128, 128), 2)
    assert (low.batch_dice, low.next_stage) == (False, "3d_cascade_fullres")
    cascade = plans.configuration("3d_cascade_fullres")
    assert (cascade.previous_stage, cascade.network.in_channels) == ("3d_lowres", 3)  # CT and two labels
    assert (cascade.data_identifier, cascade.batch_dice) == ("nnunet_3d_fullres", True)
    flat = plans.configuration("2d")
    assert (flat.patch_size, flat.batch_size, len(flat.network.features)) == ((512, 512), 12, 8)
    assert full.normalization == ("ct",)


@pytest.mark.parametrize(("size", "patch", "batch"), [("m", 128, 2), ("l", None, 3), ("xl", None, 5)])
def test_residual_encoder_presets(size, patch, batch):
    fingerprint = make_fingerprint((1, 1, 1), (140, 171, 137), cases=484, channels=("T1", "T2", "T1c", "F"), labels=4)
    full = make_plans(f"residual_encoder_{size}", fingerprint).configuration("3d_fullres")
    assert full.patch_size == ((patch,) * 3 if patch else (160, 192, 160))
    assert full.batch_size == batch
    assert full.architecture == "residual_encoder_unet"
    assert full.data_identifier == "nnunet_3d_fullres"


def test_residual_encoder_has_no_cap_by_the_data():
    fingerprint = make_fingerprint((1, 1, 1), (36, 50, 35), cases=260)
    full = make_plans("residual_encoder_m", fingerprint).configuration("3d_fullres")
    assert (full.patch_size, full.batch_size) == ((40, 56, 40), 58)


def test_wanted_configurations_only():
    fingerprint = make_fingerprint((1, 0.767578, 0.767578), (432, 512, 512), cases=131)
    assert set(make_plans("nnunet", fingerprint, wanted=["2d"]).configurations) == {"2d"}
    cascade = make_plans("nnunet", fingerprint, wanted=["3d_cascade_fullres"])
    assert set(cascade.configurations) == {"3d_lowres", "3d_cascade_fullres"}
    full = make_plans("nnunet", fingerprint, wanted=["3d_fullres"]).configuration("3d_fullres")
    assert full.batch_dice is True  # as in the whole plan
    with pytest.raises(UserError, match="no configuration '3d_lowres'; it gets: 2d, 3d_fullres"):
        make_plans("nnunet", make_fingerprint((1, 1, 1), (36, 50, 35), cases=9), wanted=["2d", "3d_lowres"])


def test_flat_images_get_2d_only():
    plans = make_plans("nnunet", make_fingerprint((999, 1, 1), (1, 512, 600), cases=20, channels=("R", "G", "B")))
    assert set(plans.configurations) == {"2d"}
    assert any("2D" in note for note in plans.notes)


def test_another_architecture_in_nnunets_plans():
    fingerprint = make_fingerprint((1, 1, 1), (36, 50, 35), cases=260)
    plans = make_plans("nnunet", fingerprint, architecture="residual_encoder_unet")
    full = plans.configuration("3d_fullres")
    assert full.architecture == "residual_encoder_unet"
    assert full.network.blocks_encoder == (1, 3, 4, 6)


def test_notes_name_every_configuration():
    plans = make_plans("nnunet", make_fingerprint((1, 1, 1), (36, 50, 35), cases=260))
    text = " ".join(plans.notes)
    assert "260 training cases" in text
    assert "3d_fullres: plain_unet with 4 stages of 32, 64, 128, 256 channels, patches of 40 x 56 x 40 voxels" in text


@pytest.mark.parametrize(("architecture", "planned"), [("meddinov3", {"2d"}), ("pct_net", {"2d", "3d_fullres"})])
def test_only_forms_that_the_architecture_has_are_planned(architecture, planned):
    fingerprint = make_fingerprint((1, 1, 1), (36, 50, 35), cases=30)
    plans = make_plans("nnunet", fingerprint, memory=8.0, architecture=architecture)
    assert plans.configurations.keys() == planned
    assert ("meddinov3 has no 3D form, so there are no 3D configurations." in plans.notes) == (planned == {"2d"})


def test_a_form_that_the_architecture_does_not_have_is_told():
    fingerprint = make_fingerprint((1, 1, 1), (36, 50, 35), cases=30)
    with pytest.raises(UserError, match="'meddinov3' has no 3D form"):
        make_plans("nnunet", fingerprint, memory=8.0, architecture="meddinov3", wanted=["3d_fullres"])
