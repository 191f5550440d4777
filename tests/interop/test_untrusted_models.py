"""Results folders that are damaged or made to do harm: refused by field and file, and nothing is left behind."""

import json
import shutil
import zipfile

import pytest
import torch
from nnunet_folders import changed, configuration, description, plans, write_results

from autoseg.errors import UserError
from autoseg.interop import export_nnunet, import_nnunet
from autoseg.interop.checkpoints import read_checkpoint
from autoseg.model_folder import MODEL_FILE, checksums, read_model
from autoseg.storage import read_json, write_json

LABELS = {"background": 0, "a": 1, "b": 2}
OUTSIDE = "../../../../escaped"
WEIGHT = "encoder.stages.0.0.convs.0.conv.weight"


@pytest.fixture
def small(tmp_path):
    """A sound results folder, deep enough that `OUTSIDE` would stay below tmp_path."""
    folder, _ = write_results(tmp_path / "r", plans({"3d": configuration()}), description(LABELS), "3d")
    return folder


def rename_configuration(folder, name):
    """Let checkpoint and plans agree on another name of the configuration."""
    file = folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    content["init_args"]["configuration"] = name
    torch.save(content, file)
    (folder / "plans.json").write_text(json.dumps(plans({name: configuration()})))


def edit_plans(folder, path, value):
    file = folder / "plans.json"
    file.write_text(json.dumps(changed(json.loads(file.read_text()), path, value)))


def zipped(folder, file):
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*.*")):
            archive.write(path, path.relative_to(folder.parent))
    return file


def refused(source, tmp_path, message):
    """Assert that the import is refused and that nothing new is below tmp_path."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message) as caught:
        import_nnunet(source, tmp_path / "a" / "b" / "c" / "d" / "model")
    assert sorted(tmp_path.rglob("*")) == before
    return caught.value


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("name", [OUTSIDE, "/absolute", "..", ".hidden", "a/b", "a\\b", "a\nb", "", "3d\0"])
def test_configurations_that_are_paths(small, tmp_path, name, kind):
    rename_configuration(small, name)
    source = small if kind == "folder" else zipped(small, tmp_path / "model.zip")
    error = refused(source, tmp_path, "field init_args.configuration is ")
    assert error.where.endswith("checkpoint_final.pth")


@pytest.mark.parametrize(
    "path",
    [
        "dataset_name",
        "plans_name",
        "configurations.3d.previous_stage",
        "configurations.3d.next_stage",
        "configurations.3d.data_identifier",
    ],
)
def test_other_names_that_are_paths(small, tmp_path, path):
    edit_plans(small, path, OUTSIDE)
    error = refused(small, tmp_path, f"field {path} is '{OUTSIDE}'")
    assert error.where.endswith("plans.json")


def test_usual_names_are_taken(small, tmp_path):
    rename_configuration(small, "3d_fullres-v1.2")
    assert read_model(import_nnunet(small, tmp_path / "model")).members[0].name == "3d_fullres-v1.2"


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_folders_set_aside_are_no_folds(small, tmp_path, kind):
    for name in ("fold_0_backup", "fold_", "fold_all_old", "fold_-1"):
        shutil.copytree(small / "fold_0", small / name)
    shutil.copytree(small / "fold_0", small / "fold_10")
    source = small if kind == "folder" else zipped(small, tmp_path / "model.zip")
    assert list(read_model(import_nnunet(source, tmp_path / "model")).members[0].folds) == ["0", "10"]


@pytest.mark.parametrize("part", ["first tensor", "last tensor"])
def test_changed_bytes_in_a_checkpoint(small, tmp_path, part):
    file = small / "fold_0" / "checkpoint_final.pth"
    content = bytearray(file.read_bytes())
    weights = read_checkpoint(file)["network_weights"]
    name = next(iter(weights)) if part == "first tensor" else list(weights)[-1]
    position = content.index(weights[name].numpy().tobytes())
    content[position + 1] ^= 0x01  # a low bit of a mantissa: the number stays plausible
    file.unlink()
    file.write_bytes(content)
    assert torch.load(file, weights_only=True)  # torch does not notice
    assert refused(small, tmp_path, "does not match its checksum").where == str(file)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("transpose_forward", [0, 0, 1]),
        ("transpose_backward", [0, 1, 3]),
        ("transpose_backward", [1, 2, 0]),  # does not undo [0, 1, 2]
        ("original_median_spacing_after_transp", [1.0, float("nan"), 1.0]),
        ("configurations.3d.spacing", [1.0, 0.0, 1.0]),
        ("configurations.3d.spacing", [1.0, -1.0, 1.0]),
        ("configurations.3d.spacing", [1.0, float("inf"), 1.0]),
        ("configurations.3d.spacing", [1.0, float("nan"), 1.0]),
        ("configurations.3d.median_image_size_in_voxels", [-1, 20, 20]),
        ("configurations.3d.patch_size", [0, 16, 16]),
        ("configurations.3d.patch_size", [16, 16, 4096]),
        ("configurations.3d.patch_size", [16, 16, 10**12]),
        ("configurations.3d.architecture.arch_kwargs.features_per_stage", [4, 10**9]),
        ("configurations.3d.architecture.arch_kwargs.features_per_stage", [4, -8]),
        ("configurations.3d.architecture.arch_kwargs.n_stages", 2.5),
        ("configurations.3d.architecture.arch_kwargs.n_stages", "2"),
        ("configurations.3d.architecture.arch_kwargs.n_stages", 10**12),
        ("configurations.3d.architecture.arch_kwargs.kernel_sizes", [[3, 3, 3], [3, 999, 3]]),
        ("configurations.3d.architecture.arch_kwargs.strides", [[1, 1, 1], [0, 2, 2]]),
        ("configurations.3d.architecture.arch_kwargs.n_conv_per_stage", [2, 10**6]),
    ],
)
def test_numbers_that_no_plans_can_have(small, tmp_path, path, value):
    edit_plans(small, path, value)
    field = path.rpartition(".")[2]
    error = refused(small, tmp_path, rf"field \S*{field}[\w.]*( is |: )")
    assert error.where.endswith("plans.json")


def test_intensities_of_ct_must_be_finite(small, tmp_path):
    edit_plans(small, "configurations.3d.normalization_schemes", ["CTNormalization"])
    edit_plans(small, "foreground_intensity_properties_per_channel.0.mean", float("nan"))
    refused(small, tmp_path, "foreground_intensity_properties_per_channel.0 holds a number that is not finite")


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda value: value.to_sparse(), "not one of real numbers .*sparse"),
        (lambda value: value.to(torch.complex64), "not one of real numbers .*complex64"),
        (lambda value: value.to(torch.int64), "not one of real numbers .*int64"),
        (lambda value: value * float("nan"), "not finite"),
        (lambda value: value + float("inf"), "not finite"),
    ],
    ids=["sparse", "complex", "whole numbers", "nan", "infinite"],
)
def test_tensors_that_are_no_weights(tmp_path, edit, message):
    theirs = plans({"3d": configuration()})
    folder, _ = write_results(
        tmp_path / "r", theirs, description(LABELS), "3d", edit=lambda w: {**w, WEIGHT: edit(w[WEIGHT])}
    )
    error = refused(folder, tmp_path, message)
    assert WEIGHT in str(error)
    assert error.where.endswith("checkpoint_final.pth")


def rewrite(folder, **changes):
    """Change the description of a model folder, and its checksums with it."""
    fields = read_json(folder / MODEL_FILE) | changes | {"checksums": checksums(folder)}
    write_json(folder / MODEL_FILE, fields)


@pytest.mark.parametrize("field", ["plans_name", "configuration", "fold", "dataset_name"])
def test_export_stays_in_its_folder(small, tmp_path, field):
    model = import_nnunet(small, tmp_path / "model")
    [member] = read_json(model / MODEL_FILE)["members"]
    if field == "plans_name":
        file = model / member["plans_file"]
        write_json(file, read_json(file) | {"plans_name": f"x/{OUTSIDE}"})
        rewrite(model)
    elif field == "configuration":
        file = model / member["plans_file"]
        content = read_json(file)
        content["configurations"] = {OUTSIDE: content["configurations"]["3d"] | {"name": OUTSIDE}}
        write_json(file, content)
        rewrite(model, members=[member | {"configuration": OUTSIDE}])
    elif field == "fold":
        rewrite(model, members=[member | {"folds": {f"0/{OUTSIDE}": member["folds"]["0"]}}])
    else:
        rewrite(model, dataset_name=f"Dataset007_/{OUTSIDE}")
    before = sorted(tmp_path.rglob("*"))
    output = tmp_path / "a" / "b" / "c" / "d" / "results"
    if field == "dataset_name":  # nnU-Net needs another name anyway, as for any that is not in its form
        [folder] = export_nnunet(model, output)
        assert folder.parent.parent == output
        assert folder.parent.name == "Dataset999_Dataset007escaped"
    else:
        with pytest.raises(UserError, match=f"field {field} is "):
            export_nnunet(model, output)
        assert sorted(tmp_path.rglob("*")) == before
