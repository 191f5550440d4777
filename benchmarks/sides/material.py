"""Material that both sides work on, made once from real data: a many-class CT, and label maps to be scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def make_export(job: dict[str, Any]) -> dict[str, Any]:
    """Write logits of many classes on a 3 mm grid, and labels and plans of their 1.5 mm grid.

    The organs of a real CT (19 classes) are cut into as many pieces as are asked for; a logit is the smoothed mask of
    its piece plus noise, in half precision. The grid is a cube of `size` voxels of 1.5 mm.
    """
    import nibabel as nib
    from scipy import ndimage

    folder, size, classes = Path(job["folder"]), int(job["size"]), int(job["classes"])
    folder.mkdir(parents=True, exist_ok=True)
    source = nib.load(job["labels"])
    organs = np.asarray(source.dataobj).T.astype(np.int16)
    coarse = size // 2
    organs = ndimage.zoom(organs, [coarse / edge for edge in organs.shape], order=0)
    pieces = split(organs, classes - 1)
    affine = np.diag([-1.5, -1.5, 1.5, 1.0])
    affine[:3, 3] = source.affine[:3, 3]
    fine = pieces.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    random = np.random.default_rng(0)
    logits = np.empty((classes, coarse, coarse, coarse), dtype=np.float16)
    for value in range(classes):
        mask = (pieces == value).astype(np.float32)
        noise = random.standard_normal(mask.shape, dtype=np.float32)
        logits[value] = 10 * ndimage.gaussian_filter(mask, 1.0) + 0.3 * noise
    np.save(folder / "logits.npy", logits)
    names = {"background": 0} | {f"piece {value}": value for value in range(1, classes)}
    description = {"channel_names": {"0": "CT"}, "labels": names, "numTraining": 3, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    (folder / "plans.json").write_text(json.dumps(plain_plans((3.0, 3.0, 3.0))))
    for part in ("references", "predictions"):
        (folder / part).mkdir(exist_ok=True)
    for case in range(int(job["cases"])):
        reference = np.roll(fine, 5 * case, axis=2)
        nib.save(nib.Nifti1Image(reference.T, affine), folder / "references" / f"ct_{case}.nii.gz")
        nib.save(nib.Nifti1Image(moved(reference, case).T, affine), folder / "predictions" / f"ct_{case}.nii.gz")
    return {
        "logits": str(folder / "logits.npy"), "grid": str(folder / "references" / "ct_0.nii.gz"),
        "plans": str(folder / "plans.json"), "description": str(folder / "dataset.json"), "shape": list(fine.shape),
        "coarse": list(pieces.shape),
    }  # fmt: skip


def make_predictions(job: dict[str, Any]) -> dict[str, Any]:
    """Write a prediction for each of some label maps: the label map itself, moved by a voxel; and plans beside."""
    import nibabel as nib

    folder, references = Path(job["folder"]), sorted(Path(job["references"]).glob("*.nii.gz"))
    for part in ("references", "predictions"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for index, path in enumerate(references[: job["cases"]]):
        image = nib.load(path)
        array = np.asarray(image.dataobj).astype(np.uint8)
        nib.save(nib.Nifti1Image(array, image.affine), folder / "references" / path.name)
        nib.save(nib.Nifti1Image(moved(array, index), image.affine), folder / "predictions" / path.name)
    description = json.loads((Path(job["references"]).parent / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(description))
    (folder / "plans.json").write_text(json.dumps(plain_plans((1.0, 1.0, 1.0))))
    return {"plans": str(folder / "plans.json"), "description": str(folder / "dataset.json")}


def split(organs: np.ndarray, pieces: int) -> np.ndarray:
    """Return a label map whose foreground is cut into up to `pieces` labels, slabs of equal size of each organ."""
    present = [value for value in np.unique(organs) if value]
    result = np.zeros(organs.shape, dtype=np.uint8)
    following = 1
    for position, value in enumerate(present):
        rest = len(present) - position
        count = -(-(pieces - following + 1) // rest)
        places = np.nonzero(organs == value)
        longest = max(places, key=np.ptp)
        limits = np.quantile(longest, np.linspace(0, 1, count + 1)[1:-1])
        result[places] = following + np.searchsorted(limits, longest, side="right")
        following += count
    return result


def moved(array: np.ndarray, index: int) -> np.ndarray:
    """Return the label map moved by one voxel along one axis, another one for each case."""
    return np.roll(array, 1, axis=index % array.ndim)


def plain_plans(spacing: tuple[float, ...]) -> dict[str, Any]:
    """Return nnU-Net plans of one 3D configuration, as far as export and evaluation read them."""
    entry = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 2, "features_per_stage": [4, 8], "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3] * 3] * 2, "strides": [[1] * 3, [2] * 3], "n_conv_per_stage": [2, 2],
            "n_conv_per_stage_decoder": [1], "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }  # fmt: skip
    fields: dict[str, Any] = {
        "data_identifier": "nnUNetPlans_3d_fullres", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": [32] * 3, "median_image_size_in_voxels": [64.0] * 3, "spacing": list(spacing),
        "normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [False], "batch_dice": False,
        "architecture": entry,
    }  # fmt: skip
    for kind, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        fields[f"resampling_fn_{kind}"] = "resample_data_or_seg_to_shape"
        fields[f"resampling_fn_{kind}_kwargs"] = {
            "is_seg": kind == "seg", "order": order, "order_z": 0, "force_separate_z": None
        }  # fmt: skip
    names = ("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std")
    return {
        "dataset_name": "Dataset900_Many", "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
        "original_median_spacing_after_transp": [1.5] * 3, "original_median_shape_after_transp": [64] * 3,
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "label_manager": "LabelManager",
        "experiment_planner_used": "ExperimentPlanner", "configurations": {"3d_fullres": fields},
        "foreground_intensity_properties_per_channel": {"0": dict.fromkeys(names, 1.0)},
    }  # fmt: skip


JOBS = {"make_export": make_export, "make_predictions": make_predictions}
