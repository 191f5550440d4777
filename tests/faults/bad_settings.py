"""Faulty plans, settings and splits, by name: the command that meets them, and what the message must say."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bad_data import Data
from model_factory import make_plans

from autoseg.storage import read_json


def plans_of(data: Data) -> Path:
    """Write sound plans of a configuration `3d`."""
    path = data.place / "w" / "preprocessed" / "data" / "plans" / "p.json"
    make_plans("3d", channels=1, outputs=3).write(path)
    return path


def train(*arguments: str, plans: Callable[[dict], Any] | str | None = None, fold: str = "0", configuration="3d"):
    """Return what prepares `autoseg train`: plans changed as given, or replaced by a text."""

    def make(data: Data) -> list[str]:
        path = plans_of(data)
        if isinstance(plans, str):
            path.write_text(plans)
        elif plans is not None:
            content = read_json(path)
            plans(content)
            path.write_text(json.dumps(content))
        return ["train", str(data.folder), configuration, fold, "--plans", "p", "--device", "cpu", *arguments]

    return make


def change(*path: str, to: Any) -> Callable[[dict], None]:
    def apply(content: dict) -> None:
        for name in path[:-1]:
            content = content[name]
        content[path[-1]] = to

    return apply


IN_3D = ("configurations", "3d")
NETWORK = (*IN_3D, "network")


def patch(*edges: int) -> Callable[[dict], None]:
    def apply(content: dict) -> None:
        for path in (IN_3D, NETWORK):
            change(*path, "patch_size", to=list(edges))(content)

    return apply


def splits(content: Any):
    def make(data: Data) -> list[str]:
        (data.folder / "splits_final.json").write_text(json.dumps(content))
        return train()(data)

    return make


def plugin(text: str):
    def make(data: Data) -> list[str]:
        file = data.place / "mine.py"
        file.write_text(text)
        return train("--trainer", str(file))(data)

    return make


def planning(prepare: Callable[[Data], Any], *arguments: str):
    """Return what prepares `autoseg plan-and-preprocess` for data that `prepare` spoils."""

    def make(data: Data) -> list[str]:
        prepare(data)
        return ["plan-and-preprocess", str(data.folder), "--workers", "1", *arguments]

    return make


def only_one_case(data: Data) -> list[str]:
    data.image.unlink()
    data.label.unlink()
    return train()(data)


def only_background(data: Data) -> None:
    for path in data.folder.glob("labelsTr/*"):
        data.voxels(path, np.zeros_like)


def every_label_map_elsewhere(data: Data) -> None:
    for path in data.folder.glob("labelsTr/*"):
        data.affine(path, lambda affine: affine + np.outer([7, 0, 0, 0], [0, 0, 0, 1]))  # 7 mm


SETTINGS = {
    "one case where folds are meant": (only_one_case, "has one case, or one group of cases, and no folds"),
    "fewer cases than folds": (train(fold="4"), "fold 4: this data set has 2 fold(s), 0 to 1"),
    "plans that are no JSON": (train(plans="{"), "not valid JSON"),
    "plans of another format": (train(plans=change("format", to=7)), "field format"),
    "plans with an unknown field": (train(plans=change("learning_rat", to=7)), "field learning_rat"),
    "plans with a text for a number": (
        train(plans=change(*IN_3D, "batch_size", to="two")),
        "field configurations.3d.batch_size",
    ),
    "plans with a batch of none": (
        train(plans=change(*IN_3D, "batch_size", to=0)),
        "field configurations.3d.batch_size",
    ),
    "plans whose network has another patch": (
        train(plans=change(*NETWORK, "patch_size", to=[8, 8, 8])),
        "network.patch_size differs from patch_size",
    ),
    "plans whose network has too few strides": (
        train(plans=change(*NETWORK, "strides", to=[[1, 1, 1]])),
        "strides, kernel_sizes, blocks must fit the 2 stages",
    ),
    "plans of 3D with a patch of two axes": (
        train(plans=change(*IN_3D, "patch_size", to=[8, 8])),
        "patch_size must have dims=3 entries",
    ),
    "plans whose axes do not come back": (train(plans=change("transpose_backward", to=[2, 1, 1])), "does not undo"),
    "plans with a negative spacing": (train(plans=change(*IN_3D, "spacing", to=[1, -1, 1])), "spacing"),
    "plans with an unknown normalisation": (
        train(plans=change(*IN_3D, "normalization", to=["magic"])),
        "field configurations.3d.normalization",
    ),
    "plans for other channels": (train(plans=change(*IN_3D, "normalization", to=["zscore"] * 2)), "normalization"),
    "plans that keep their data outside": (
        train(plans=change(*IN_3D, "data_identifier", to="../../elsewhere")),
        "data_identifier",
    ),
    "plans with a batch of a thousand million": (
        train(plans=change(*IN_3D, "batch_size", to=10**9)),
        "field configurations.3d.batch_size: Input should be less than or equal to 65536, got '1000000000'",
    ),
    "plans with a patch that no device holds": (
        train(plans=patch(8000, 8000, 8000)),
        "patch_size (8000, 8000, 8000) has 512000000000 voxels, more than 2147483648",
    ),
    "plans with a patch that the strides do not divide": (
        train(plans=patch(8, 17, 16)),
        "p.json: field configurations.3d.patch_size: (8, 17, 16) is no multiple of (2, 2, 2)",
    ),
    "plans with features beyond all bounds": (
        train(plans=change(*NETWORK, "features", to=[10**9] * 2)),
        "field configurations.3d.network.features.0: Input should be less than or equal to 65536",
    ),
    "plans with features of no channel": (
        train(plans=change(*NETWORK, "features", to=[0, 0])),
        "field configurations.3d.network.features.0: Input should be greater than or equal to 1",
    ),
    "plans with kernels beyond all bounds": (
        train(plans=change(*NETWORK, "kernel_sizes", to=[[3001] * 3] * 2)),
        "field configurations.3d.network.kernel_sizes.0.0: Input should be less than or equal to 127, got '3001'",
    ),
    "plans with more weights than any device holds": (
        train(plans=change(*NETWORK, "features", to=[65536] * 2)),
        "weights, more than 17179869184",
    ),
    "plans with a spacing of a thousand kilometres": (
        train(plans=change(*IN_3D, "spacing", to=[1, 1, 1e9])),
        "field configurations.3d.spacing.2: Input should be less than or equal to 100000",
    ),
    "plans with a spacing below a nanometre": (
        train(plans=change(*IN_3D, "spacing", to=[1, 1, 1e-9])),
        "field configurations.3d.spacing.2: Input should be greater than or equal to 0.000001, got '1e-09'",
    ),
    "plans with a negative standard deviation": (
        train(plans=change("intensities", 0, "std", to=-1)),
        "field intensities.0.std: Input should be greater than or equal to 0, got '-1'",
    ),
    "plans with no standard deviation where values differ": (
        train(plans=change("intensities", 0, "std", to=0)),
        "field intensities.0: std is 0, though the values differ",
    ),
    "plans with a mean that is no number": (
        train(plans=change("intensities", 0, "mean", to=math.nan)),
        "field intensities.0.mean: Input should be a finite number, got 'nan'",
    ),
    "plans of an unknown name": (lambda d: [*train()(d)[:-4], "--plans", "none", "--device", "cpu"], "plans/none.json"),
    "a configuration that the plans lack": (train(configuration="4d"), "have no configuration '4d'"),
    "data that are not preprocessed": (train(), "preprocess"),
    "a setting that does not exist": (train("--set", "learning_rat=1"), "did you mean learning_rate"),
    "a setting of the wrong type": (train("--set", "steps=many"), "steps"),
    "a setting out of its range": (train("--set", "learning_rate=-1"), "learning_rate"),
    "a setting without a value": (train("--set", "steps"), "--set 'steps' is not of the form"),
    "a trainer that does not exist": (train("--trainer", "xyzzy"), "xyzzy"),
    "a trainer file that does not exist": (train("--trainer", "none.py"), "none.py"),
    "a trainer file with an error": (plugin("from autoseg import Trainer, register\n1 +\n"), "mine.py"),
    "a trainer file without a trainer": (plugin("x = 1\n"), "mine.py"),
    "an architecture that does not exist": (train("--architecture", "xyzzy"), "xyzzy"),
    "a fold that is no fold": (train(fold="first"), "first"),
    "a fold beyond all bounds": (
        train(fold="9" * 23),
        f"there is no fold {'9' * 23}, their numbers are 0 to 9999",
    ),
    "folds beyond all bounds": (
        train(fold="0-99999999999"),
        "there is no fold 99999999999, their numbers are 0 to 9999",
    ),
    "a seed beyond all bounds": (
        train("--seed", "9" * 23),
        f"--seed {'9' * 23} is no integer within 0 and 4294967295",
    ),
    "a negative seed": (train("--seed", "-1"), "--seed -1 is no integer within 0 and 4294967295"),
    "a GPU with less memory than any plan takes": (
        planning(lambda data: None, "--gpu-memory", "1e-9"),
        "--gpu-memory: a plan needs 0.01 to 100000 GiB, got 1e-09",
    ),
    "a GPU of boundless memory": (
        planning(lambda data: None, "--gpu-memory", "inf"),
        "--gpu-memory: a plan needs 0.01 to 100000 GiB, got inf",
    ),
    "a device that does not exist": (train("--device", "tpu"), "tpu"),
    "a name of runs that is a path": (train("--name", "../../escaped"), "../../escaped"),
    "splits that are no list": (splits({"train": []}), "must be a list of folds"),
    "splits with an unknown case": (splits([{"train": ["good"], "val": ["who"]}]), "who"),
    "splits that train on what they validate": (splits([{"train": ["good"], "val": ["good"]}]), "trains and validates"),
    "a time budget that is no time": (train("--time-budget", "soon"), "'soon' is not a time span"),
}


UNPLANNED = {
    "no foreground in any label map": (planning(only_background), "no label map has any foreground"),
    "every label map in another place": (
        planning(every_label_map_elsewhere),
        "2 case(s) failed; there is no other case",
    ),
}
