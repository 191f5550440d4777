"""Plans are typed, frozen, validated, and readable JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autoseg.errors import UserError
from autoseg.plans import ChannelIntensities, Configuration, NetworkSpec, Plans


def spec(dims=3, stages=3, patch=16):
    return NetworkSpec(
        dims=dims,
        in_channels=1,
        num_outputs=3,
        patch_size=(patch,) * dims,
        strides=((1,) * dims, *[(2,) * dims] * (stages - 1)),
        kernel_sizes=((3,) * dims,) * stages,
        features=tuple(8 * 2**stage for stage in range(stages)),
        blocks_encoder=(2,) * stages,
        blocks_decoder=(2,) * (stages - 1),
    )


def configuration(dims=3, name="3d_fullres", **changes):
    fields = {
        "name": name,
        "dims": dims,
        "spacing": (1.0,) * dims,
        "median_shape": (30.0,) * dims,
        "patch_size": (16,) * dims,
        "batch_size": 2,
        "batch_dice": False,
        "normalization": ("zscore",),
        "use_mask": (False,),
        "data_identifier": f"auto_{name}",
        "architecture": "plain_unet",
        "network": spec(dims),
    }
    return Configuration(**{**fields, **changes})


def plans():
    channel = ChannelIntensities(mean=1, median=1, std=0.5, min=0, max=3, percentile_00_5=0.1, percentile_99_5=2.9)
    return Plans(
        dataset_name="Dataset004_Hippocampus",
        plans_name="auto",
        planner="auto",
        transpose_forward=(0, 1, 2),
        transpose_backward=(0, 1, 2),
        original_median_spacing=(1, 1, 1),
        original_median_shape=(36, 50, 35),
        intensities=(channel,),
        channel_names=("MRI",),
        configurations={"2d": configuration(2, "2d"), "3d_fullres": configuration()},
    )


def test_written_plans_are_read_back_equal(tmp_path):
    path = tmp_path / "plans" / "auto.json"
    plans().write(path)
    assert Plans.read(path) == plans()
    assert json.loads(path.read_text())["configurations"]["2d"]["patch_size"] == [16, 16]


def test_plans_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        plans().planner = "other"
    with pytest.raises(ValidationError, match="frozen"):
        configuration().batch_size = 3


def test_unknown_configuration_lists_the_known():
    assert plans().configuration("2d").dims == 2
    with pytest.raises(UserError, match=r"no configuration '3d'\n.*2d, 3d_fullres"):
        plans().configuration("3d")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_size", 0, r"configurations\.2d\.batch_size: .*greater than or equal to 1.*'0'"),
        ("patch_size", [16, 16, 16], r"configurations\.2d: .*patch_size must have dims=2 entries"),
        ("patch_size", [16, 32], r"network\.patch_size differs from patch_size"),
        ("spacing", ["wide", 1], r"configurations\.2d\.spacing\.0: .*'wide'"),
        ("momentum", 0.9, r"configurations\.2d\.momentum: Extra inputs are not permitted"),
        ("normalization", ["z-score"], r"configurations\.2d\.normalization\.0"),
    ],
)
def test_a_fault_is_told_with_file_field_and_value(tmp_path, field, value, message):
    content = plans().model_dump(mode="json")
    content["configurations"]["2d"][field] = value
    path = tmp_path / "auto.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        Plans.read(path)
    assert str(caught.value).startswith(f"{path}: field ")
    assert "To mend it" in str(caught.value)


def test_plans_of_another_format_are_refused(tmp_path):
    content = plans().model_dump(mode="json") | {"format": 2}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="field format"):
        Plans.read(tmp_path / "a.json")


@given(dims=st.sampled_from([2, 3]), stages=st.integers(1, 6))
def test_total_stride_is_the_product(dims, stages):
    assert spec(dims, stages).total_stride == (2 ** (stages - 1),) * dims


def test_anisotropic_total_stride():
    anisotropic = spec().model_copy(update={"strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2))})
    assert anisotropic.total_stride == (2, 4, 4)


@pytest.mark.parametrize("field", ["strides", "kernel_sizes", "features", "blocks_encoder", "blocks_decoder"])
def test_network_lists_must_fit_the_stages(field):
    content = spec().model_dump()
    content[field] = content[field][:-1]
    with pytest.raises(ValidationError, match="stages of features"):
        NetworkSpec(**content)


@pytest.mark.parametrize("transposes", [((1, 2, 0), (1, 2, 0)), ((0, 0, 0), (0, 1, 2)), ((0, 1, 3), (0, 1, 2))])
def test_axes_that_do_not_come_back_are_refused(transposes):
    there, back = transposes
    with pytest.raises(ValueError, match="does not undo"):
        Plans.model_validate({**plans().model_dump(), "transpose_forward": there, "transpose_backward": back})
    turned = {**plans().model_dump(), "transpose_forward": (1, 2, 0), "transpose_backward": (2, 0, 1)}
    assert Plans.model_validate(turned).transpose_forward == (1, 2, 0)
