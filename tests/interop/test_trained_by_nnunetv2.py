"""Models that nnunetv2 2.8.1 trains here for a moment, and its predictions, against the imported models.

Together they cover 2D pictures, several folds, regions, the residual encoder, coarse slices, reoriented images, a
cascade, the ignore label, transposed axes, and the way back by export. They need AUTOSEG_TEST_NNUNET_PYTHON.
"""

import json
import shutil
import zipfile

import nibabel as nib
import numpy as np
import pytest
from comparing import agreement, read

from autoseg.inference import Predictor
from autoseg.interop import export_nnunet, import_nnunet
from autoseg.model_folder import read_model

SMALL = {"n_stages": 3, "features_per_stage": [8, 16, 32], "n_conv_per_stage_decoder": [1, 1]}
SCHEMES = {
    "nuclei": {
        "source": "Dataset105_NucleiDSB2018",
        "dataset": "Dataset105_NucleiDSB2018",
        "cases": 8,
        "steps": 60,
        "folds": [0, 1],
        "residual": False,
        "plans": {},
        "configurations": {
            "2d": {
                "patch_size": [128, 128],
                "batch_size": 4,
                "spacing": [1.3, 1.3],
                "network": {
                    **SMALL, "n_conv_per_stage": [2, 2, 2], "kernel_sizes": [[3, 3]] * 3,
                    "strides": [[1, 1], [2, 2], [2, 2]],
                },
            }
        },
    },
    "heart": {
        "source": "Dataset112_CardiacACDC",
        "dataset": "Dataset112_Heart",
        "labels": {"background": 0, "heart": [1, 2, 3], "left": [2, 3], "cavity": [3]},
        "regions_class_order": [1, 2, 3],
        "cases": 6,
        "steps": 60,
        "folds": [0],
        "residual": True,
        "plans": {"image_reader_writer": "NibabelIOWithReorient"},
        "configurations": {
            "3d_fullres": {
                "patch_size": [8, 96, 96],
                "batch_size": 2,
                "spacing": [10.0, 3.0, 3.0],
                "network": {
                    **SMALL,
                    "n_blocks_per_stage": [1, 2, 2],
                    "kernel_sizes": [[1, 3, 3], [1, 3, 3], [3, 3, 3]],
                    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
                },
            }
        },
    },
    "liver CT": {
        "source": "Dataset109_LiverCT",
        "dataset": "Dataset109_LiverCT",
        "cases": 1,  # the only one: it is trained on and predicted
        "steps": 100,
        "folds": ["all"],
        "residual": True,
        "plans": {},
        "configurations": {
            "3d_fullres": {
                "patch_size": [32, 64, 64],
                "batch_size": 2,
                "spacing": [4.0, 3.5, 3.5],
                "network": {
                    **SMALL, "n_blocks_per_stage": [1, 2, 2], "kernel_sizes": [[3, 3, 3]] * 3,
                    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
                },
            }
        },
    },
    "cascade": {
        "source": "Dataset004_Hippocampus",
        "dataset": "Dataset004_Hippocampus",
        "labels": {"background": 0, "Anterior": 1, "Posterior": 2, "ignore": 3},
        "cases": 6,
        "steps": 250,  # its batches come from other processes in no fixed order: fewer left only background at times
        "folds": ["all"],
        "residual": False,
        "plans": {"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]},
        "configurations": {
            "3d_fullres": {
                "patch_size": [32, 40, 40],
                "batch_size": 2,
                "network": {
                    **SMALL, "n_conv_per_stage": [2, 2, 2], "kernel_sizes": [[3, 3, 3]] * 3,
                    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
                },
            },
            "3d_lowres": {
                "inherits_from": "3d_fullres",
                "data_identifier": "nnUNetPlans_3d_lowres",
                "patch_size": [16, 24, 20],
                "spacing": [2.0, 2.0, 2.0],
                "next_stage": "3d_cascade_fullres",
            },
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
    },
}  # fmt: skip


def make_raw(scheme, shared, work):
    """Copy a few cases of a real data set, and two others to predict if there are; the heart gets other axes."""
    source, target = shared / "data" / scheme["source"], work / "raw" / scheme["dataset"]
    description = json.loads((source / "dataset.json").read_text())
    ending = description["file_ending"]
    description |= {key: scheme[key] for key in ("labels", "regions_class_order") if key in scheme}
    cases = sorted(path.name[: -len(ending)] for path in (source / "labelsTr").glob(f"*{ending}"))
    wanted = min(scheme["cases"] + 2, len(cases))
    cases = cases[:: len(cases) // wanted][:wanted]
    description["numTraining"] = scheme["cases"]
    for folder in ("imagesTr", "labelsTr"):
        (target / folder).mkdir(parents=True)
    (work / "images").mkdir()
    for index, case in enumerate(cases):
        folders = [target / "imagesTr"] if index < scheme["cases"] else [work / "images"]
        if wanted == scheme["cases"]:
            folders.append(work / "images")
        for images in folders:
            copy(source / "imagesTr" / f"{case}_0000{ending}", images, turned=scheme["dataset"] == "Dataset112_Heart")
        if index < scheme["cases"]:
            label = source / "labelsTr" / f"{case}{ending}"
            copy(label, target / "labelsTr", turned=scheme["dataset"] == "Dataset112_Heart")
    (target / "dataset.json").write_text(json.dumps(description))


def copy(file, folder, *, turned):
    if turned:
        orientation = nib.orientations.axcodes2ornt("ASL")
        nib.save(nib.load(file).as_reoriented(orientation), folder / file.name)
    else:
        shutil.copy(file, folder)


@pytest.fixture(scope="module", params=SCHEMES)
def trained(request, nnunetv2, shared, tmp_path_factory):
    """Let nnunetv2 train and predict; returns its work folder, the folder of the model, and the scheme."""
    scheme, work = SCHEMES[request.param], tmp_path_factory.mktemp(request.param)
    make_raw(scheme, shared, work)
    plans = "nnUNetResEncUNetMPlans" if scheme["residual"] else "nnUNetPlans"
    models = {name: f"results/{scheme['dataset']}/nnUNetTrainer__{plans}__{name}" for name in scheme["configurations"]}
    tasks, below = [], {True: None, False: None}
    if "3d_lowres" in models:
        models.pop("3d_fullres")
        low = models.pop("3d_lowres")
        for mirroring in below:  # in float32: a voxel that rounding changed would change the next stage
            tasks.append(task("3d_lowres", low, scheme["folds"], mirroring=mirroring, float32=True))
            below[mirroring] = tasks[-1]["output"]
    [(name, model)] = models.items()
    for float32 in (False, True):
        tasks.append(task(name, model, scheme["folds"], mirroring=True, previous=below[True], float32=float32))
    tasks.append(task(name, model, scheme["folds"][:1], mirroring=False, previous=below[False], float32=True))
    train = [part for part in scheme["configurations"] if part in (name, "3d_lowres")]
    parts = ("dataset", "steps", "folds", "residual", "plans", "configurations")
    nnunetv2({"work": work, "predict": tasks, "train": train, **{part: scheme[part] for part in parts}})
    return work, work / model, scheme


def task(name, model, folds, *, mirroring, previous=None, float32=False):
    output = f"predictions/{name}_{'mirroring' if mirroring else 'plain'}{'_float32' if float32 else ''}"
    return {
        "model": model, "folds": folds, "mirroring": mirroring, "images": "images", "output": output,
        "previous": previous, "float32": float32,
    }  # fmt: skip


def compare(folder, theirs, *, count, labels, share, tolerance):
    """Assert on the shares of equal foreground labels and of probabilities within a tolerance of nnunetv2's."""
    files = [path for path in sorted(theirs.iterdir()) if path.name.endswith((".png", ".nii.gz"))]
    assert len(files) == count
    for file in files:
        case = file.name.split(".")[0]
        assert agreement(read(folder / file.name), read(file)) >= labels, case
        with np.load(file.parent / f"{case}.npz") as saved:
            probabilities = saved["probabilities"].astype(np.float32)
        ours = next(folder.glob(f"{case}_probabilities*"))
        ours = np.load(ours) if ours.suffix == ".npy" else nib.load(ours).get_fdata().T
        difference = np.abs(ours.reshape(probabilities.shape) - probabilities)
        assert (difference < tolerance).mean() >= share, (case, difference.max())


@pytest.mark.parametrize("mirroring", [True, False])
def test_import_predicts_the_same(trained, mirroring, tmp_path):
    work, model, scheme = trained
    imported = import_nnunet(model, tmp_path / "model")
    folds = None if mirroring else [scheme["folds"][0]]
    predictor = Predictor.load(imported, device="cpu", precision="fp32", folds=folds, mirroring=mirroring)
    results = predictor.predict_folder(work / "images", tmp_path / "out", save_probabilities=True)
    assert all(result.error is None for result in results)
    name = f"{model.name.rpartition('__')[2]}_{'mirroring' if mirroring else 'plain'}"
    theirs = theirs_in_file_axes(work / "predictions" / f"{name}_float32", tmp_path)
    compare(tmp_path / "out", theirs, count=len(results), labels=0.999, share=1.0, tolerance=2e-3)
    if mirroring:  # as nnunetv2 is: its half precision sums change the probabilities at the border of an image
        theirs = theirs_in_file_axes(work / "predictions" / name, tmp_path)
        compare(tmp_path / "out", theirs, count=len(results), labels=0.998, share=0.98, tolerance=2e-3)


def theirs_in_file_axes(folder, tmp_path):
    """nnunetv2 saves probabilities in the axes of the network; those of reoriented images are turned back."""
    if not any("patient" in path.name for path in folder.iterdir()):
        return folder
    shutil.copytree(folder, tmp_path / folder.name)
    for file in (tmp_path / folder.name).glob("*.npz"):
        turn = nib.io_orientation(nib.load(file.with_suffix(".nii.gz")).affine)
        back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), turn)
        with np.load(file) as saved:
            stored = [nib.apply_orientation(values.T, back).T for values in saved["probabilities"]]
        np.savez(file, probabilities=np.stack(stored))
    return tmp_path / folder.name


def test_zip_file_gives_the_same_model(trained, tmp_path):
    work, model, _ = trained
    file = tmp_path / "exported.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((work / "results").rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(work / "results"))
    configuration = model.name.rpartition("__")[2]
    one = import_nnunet(model, tmp_path / "one")
    two = import_nnunet(file, tmp_path / "two", configurations=[configuration])
    assert read_model(one) == read_model(two)


def test_nnunetv2_predicts_the_same_from_an_export(trained, nnunetv2, tmp_path):
    work, model, scheme = trained
    imported = import_nnunet(model, tmp_path / "model")
    folder = export_nnunet(imported, work / "exported")[-1]
    name = model.name.rpartition("__")[2]
    again = task(name, folder.relative_to(work), scheme["folds"], mirroring=True)
    again |= {"output": "again", "previous": "predictions/3d_lowres_mirroring_float32" if "cascade" in name else None}
    nnunetv2({"work": work, "predict": [again]})
    for file in sorted((work / "predictions" / f"{name}_mirroring").glob("*[gz]")):
        if not file.name.endswith(".npz"):
            np.testing.assert_array_equal(read(work / "again" / file.name), read(file))
