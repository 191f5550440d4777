"""Plans are typed, frozen, validated, and readable JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autoseg.errors import UserError
from autoseg.plans import ChannelIntensities, Configuration, NetworkSpec, Plans, faults_told


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


def test_faults_of_what_is_made_in_python_are_told_in_the_same_way():
    with pytest.raises(UserError) as caught, faults_told("here", within="network", mend="do this"):
        spec(patch=0)
    fault = "Input should be greater than or equal to 1, got '0'"
    assert caught.value.what.startswith(f"field network.patch_size.0: {fault}; field network.patch_size.1: {fault}; ")
    assert (caught.value.where, caught.value.mend) == ("here", "do this")
    with faults_told("here"):
        assert spec().dims == 3


@pytest.mark.parametrize(
    ("field", "least", "most"),
    [
        ("in_channels", 1, 65536),
        ("num_outputs", 1, 65536),
        ("patch_size", 1, 65536),
        ("strides", 1, 64),
        ("kernel_sizes", 1, 127),
        ("features", 1, 65536),
        ("blocks_encoder", 1, 256),
        ("blocks_decoder", 1, 256),
    ],
)
def test_numbers_of_a_network_have_bounds(field, least, most):
    def spec_with(value):
        content = spec(dims=2, stages=2).model_dump()
        old = content[field]
        if isinstance(old, int):
            content[field] = value
        elif isinstance(old[0], int):
            content[field] = (value, *old[1:])
        else:
            content[field] = ((value, *old[0][1:]), *old[1:])
        return NetworkSpec(**content)

    for value in (least, 2, 32, most if field != "features" else 4096):  # the widest alone have too many weights
        spec_with(value)
    for value in (least - 1, most + 1, 10**30):
        with pytest.raises(ValidationError, match=f"{field}(.|\n)*should be (less|greater) than or equal to"):
            spec_with(value)


def test_a_network_has_one_to_sixteen_stages():
    for stages in (1, 16):
        one = spec(dims=2, stages=1).model_dump()
        lists = {
            name: [*one[name]] * stages for name in ("strides", "kernel_sizes", "features", "blocks_encoder")
        }  # fmt: skip
        NetworkSpec(**{**one, **lists, "blocks_decoder": [1] * (stages - 1)})
    with pytest.raises(ValidationError, match="at most 16 items"):
        NetworkSpec(**{**one, **{name: [*entries, entries[0]] for name, entries in lists.items()}})
    with pytest.raises(ValidationError, match="at least 1 item"):
        NetworkSpec(**{**one, **dict.fromkeys(lists, ())})


def test_all_weights_together_have_a_bound():
    content = spec(dims=2, stages=1).model_dump() | {"blocks_encoder": (1,), "kernel_sizes": ((1, 1),)}
    assert NetworkSpec(**{**content, "features": (65536,)}).weights == 2**32
    with pytest.raises(ValidationError, match=r"features \(65536,\).* ask for 38654705664 weights, more than"):
        NetworkSpec(**{**content, "features": (65536,), "kernel_sizes": ((3, 3),)})


def test_weights_count_encoder_and_decoder():
    content = spec(dims=2, stages=2).model_dump()
    content |= {"features": (2, 5), "kernel_sizes": ((1, 3), (3, 3)), "blocks_encoder": (1, 4), "blocks_decoder": (7,)}
    assert NetworkSpec(**content).weights == 3 * 4 * 1 + 9 * 25 * 4 + 3 * 4 * 7


def test_a_batch_has_a_bound_of_voxels():
    wide = spec().model_copy(update={"patch_size": (64, 64, 64)})
    assert configuration(patch_size=(64,) * 3, network=wide, batch_size=2**13).batch_size == 2**13
    with pytest.raises(ValidationError, match=r"batch_size 8193 with patch_size \(64, 64, 64\) has 2147745792 voxels"):
        configuration(patch_size=(64,) * 3, network=wide, batch_size=2**13 + 1)
    with pytest.raises(ValidationError, match=r"patch_size \(8000, 8000, 8000\) has 512000000000 voxels"):
        spec(patch=8000)


@pytest.mark.parametrize("spacing", [1e-6, 0.7, 999, 1e5])
def test_spacings_that_can_be(spacing):
    assert configuration(spacing=(1, 1, spacing)).spacing[2] == spacing


@pytest.mark.parametrize("spacing", [0, -1, 1e-9, 1e9, float("nan"), float("inf")])
def test_spacings_that_cannot_be(spacing):
    with pytest.raises(ValidationError, match=r"spacing\.2"):
        configuration(spacing=(1, 1, spacing))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"std": -0.5}, "std"),
        ({"std": 0}, "std is 0, though the values differ: percentiles 0.1 to 2.9"),
        ({"mean": float("nan")}, "mean"),
        ({"std": float("inf")}, "std"),
        ({"percentile_00_5": 3}, "percentile_00_5 3.0 is above percentile_99_5 2.9"),
    ],
)
def test_intensities_that_cannot_be(changes, message):
    sound = plans().intensities[0].model_dump()
    with pytest.raises(ValidationError, match=message):
        ChannelIntensities(**{**sound, **changes})


def test_a_channel_of_one_value_has_no_deviation():
    values = dict.fromkeys(("mean", "median", "min", "max", "percentile_00_5", "percentile_99_5"), 7)
    assert ChannelIntensities(**values, std=0).std == 0


@pytest.mark.parametrize("count", [0, 2])
def test_every_channel_has_its_intensities(count):
    content = plans().model_dump()
    content["intensities"] *= count
    with pytest.raises(ValidationError, match=f"intensities has {count} entries for 1 channel"):
        Plans.model_validate(content)


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
