"""The self-contained model folder: validated, checksummed, nothing outside of it."""

import json

import pytest

from autoseg.errors import UserError
from autoseg.labels import labels_from_description
from autoseg.model_folder import Member, Model, checksums, read_model
from autoseg.storage import write_json


def member(**changes):
    fields = {
        "name": "3d",
        "plans_file": "members/3d/plans.json",
        "configuration": "3d_fullres",
        "architecture": "plain_unet",
        "trainer": "supervised",
        "folds": {"0": "members/3d/fold_0.safetensors"},
        "mirror_axes": (0, 1, 2),
    }
    return Member(**{**fields, **changes})


@pytest.fixture
def folder(tmp_path):
    files = tmp_path / "model" / "members" / "3d"
    files.mkdir(parents=True)
    (files / "plans.json").write_text("{}")
    (files / "fold_0.safetensors").write_bytes(b"weights")
    return tmp_path / "model"


def write(folder, *members, **changes):
    fields = {
        "dataset_name": "Dataset004_Hippocampus",
        "channel_names": ("MRI",),
        "labels": labels_from_description({"labels": {"background": 0, "a": 1}}),
        "file_ending": ".nii.gz",
        "members": members or (member(),),
        "checksums": checksums(folder),
    }
    write_json(folder / "model.json", Model(**{**fields, **changes}).model_dump(mode="json"))


def test_round_trip(folder):
    write(folder)
    model = read_model(folder)
    assert model.member("3d").folds == {"0": "members/3d/fold_0.safetensors"}
    assert sorted(model.checksums) == ["members/3d/fold_0.safetensors", "members/3d/plans.json"]
    with pytest.raises(UserError, match=r"no member '2d'\n.*3d"):
        model.member("2d")


def test_a_moved_folder_still_loads(folder, tmp_path):
    write(folder)
    folder.rename(tmp_path / "elsewhere")
    assert read_model(tmp_path / "elsewhere").dataset_name == "Dataset004_Hippocampus"


def test_changed_and_missing_files_are_named(folder):
    write(folder)
    weights = folder / "members/3d/fold_0.safetensors"
    weights.write_bytes(b"wEights")
    with pytest.raises(UserError, match=r"fold_0\.safetensors: the content does not match its checksum"):
        read_model(folder)
    assert read_model(folder, verify=False)
    weights.unlink()
    with pytest.raises(UserError, match=r"fold_0\.safetensors: the file is missing"):
        read_model(folder, verify=False)


@pytest.mark.parametrize("name", ["../plans.json", "/etc/passwd", "a/../../b", "", "a\\..\\b", "C:/plans.json"])
@pytest.mark.parametrize("field", ["plans_file", "plugin_source", "folds"])
def test_files_outside_are_refused(folder, field, name):
    write(folder)
    content = json.loads((folder / "model.json").read_text())
    content["members"][0][field] = {"0": name} if field == "folds" else name
    (folder / "model.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"field members\.0\.{field}: .*points outside"):
        read_model(folder)


def test_a_checksum_outside_is_refused(folder, tmp_path):
    (tmp_path / "secret").write_text("x")
    write(folder, checksums={**checksums(folder), "../secret": "0"})
    with pytest.raises(UserError, match="secret"):
        read_model(folder)


@pytest.mark.parametrize("changes", [{"plugin_source": "net.py"}, {"folds": {"0": "other.safetensors"}}])
def test_every_file_of_a_member_needs_a_checksum(folder, changes):
    write(folder, member(**changes))
    with pytest.raises(UserError, match=r"files without a checksum: \['(net\.py|other\.safetensors)'\]"):
        read_model(folder)


MEMBER = member().model_dump()
REGIONS = {"values": {"whole": (1, 2), "core": (2,)}, "regions": True}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file_ending": "/../../../evil.nii.gz"}, r"field file_ending: it must be one of \.nii\.gz, .*evil"),
        ({"file_ending": ""}, "field file_ending"),
        ({"labels": {"values": {"a": [10**30]}}}, r"field labels\.values\.a\.0: .*less than or equal"),
        ({"labels": {"values": {}}}, "field labels: .*at least one label"),
        ({"labels": {"values": {"a": []}}}, "field labels: every label needs a value"),
        ({"labels": {"values": {"a": [1], "b": [1]}}}, "field labels: .*each its own"),
        ({"labels": {"values": {"a": [0]}}}, r"field labels: values\.a has \[0\], which is background"),
        ({"labels": {"values": {"a": [1], "b": [2]}, "ignore": [9, 2]}}, r"values\.b has \[2\], which is ignore"),
        ({"labels": {"values": {"a": [1]}, "background": 5, "ignore": [5]}}, "ignore has 5, which is background"),
        ({"labels": REGIONS | {"background": 2}}, r"values\.whole has \[2\], which is background"),
        ({"labels": {"values": {"a": [1, 2]}}}, "field labels: .*one value each"),
        ({"labels": REGIONS | {"paint_order": ["whole"], "paint_values": [1]}}, "paint_order must name every region"),
        ({"labels": REGIONS | {"paint_order": ["whole", "core"], "paint_values": [1]}}, "one entry per region"),
        ({"labels": REGIONS | {"paint_order": ["whole", "core"], "paint_values": [1, 7]}}, r"\[7\] are values of no"),
        ({"postprocessing": [{"values": [1]}, {"values": [1, 2]}]}, r"postprocessing\.1\.values has \[2\].* 1 to 1"),
        ({"postprocessing": [{"values": [0]}]}, r"field postprocessing\.0\.values\.0: .*greater than or equal to 1"),
        ({"postprocessing": [{"values": []}]}, r"field postprocessing\.0\.values: .*at least 1 item"),
        ({"members": [member().model_dump() | {"folds": {}}]}, r"field members\.0\.folds: .*at least 1 item"),
        ({"members": [MEMBER] * 101}, "field members: .*at most 100 items"),
        (
            {"members": [MEMBER | {"folds": {str(n): f"{n}" for n in range(1001)}}]},
            r"members\.0\.folds: .*at most 1000",
        ),
        ({"members": [MEMBER | {"folds": {"0": "w", "1": "v", "2": "w"}}]}, r"folds: folds '0' and '2' both name 'w'"),
        ({"postprocessing": [{"values": [1]}] * 1001}, "field postprocessing: .*at most 1000 items"),
        ({"members": [member().model_dump() | {"mirror_axes": [0, 7]}]}, r"members\.0\.mirror_axes\.1: .*'7'"),
        ({"members": [member().model_dump() | {"mirror_axes": [-1]}]}, r"members\.0\.mirror_axes\.0: .*'-1'"),
    ],
)
def test_what_no_model_can_have(folder, changes, message):
    write(folder)
    content = json.loads((folder / "model.json").read_text())
    content.pop("autoseg_checksum", None)
    (folder / "model.json").write_text(json.dumps(content | changes))
    with pytest.raises(UserError, match=message) as caught:
        read_model(folder)
    assert str(folder / "model.json") in str(caught.value)
    assert "To mend it: " in str(caught.value)


@pytest.mark.parametrize("ending", [".nii.gz", ".PNG", ".tif", ".mha"])
def test_file_endings_that_can_be(folder, ending):
    write(folder, file_ending=ending)
    assert read_model(folder).file_ending == ending


def test_regions_and_steps_that_fit_are_taken(folder):
    labels = REGIONS | {"paint_order": ["whole", "core"], "paint_values": [1, 2]}
    write(folder, labels=labels, postprocessing=[{"values": [1, 2]}])
    assert read_model(folder).postprocessing[0].values == (1, 2)


def test_no_model_here(tmp_path):
    with pytest.raises(UserError, match=r"model\.json: the file does not exist"):
        read_model(tmp_path)
