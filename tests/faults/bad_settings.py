"""Faulty plans, settings, splits and models, by name: the command that meets them, and what the message must say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bad_data import Data
from bad_images import spoil
from model_factory import edit_model, make_plans, write_model

from autoseg.storage import read_json, write_json


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


def planning(prepare: Callable[[Data], Any]):
    """Return what prepares `autoseg plan-and-preprocess` for data that `prepare` spoils."""

    def make(data: Data) -> list[str]:
        prepare(data)
        return ["plan-and-preprocess", str(data.folder), "--workers", "1"]

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


def predict(prepare: Callable[[Data, Path], Any] = lambda data, model: None, *arguments: str):
    """Return what prepares `autoseg predict` with a tiny model, changed by `prepare`, for the images of `data`."""

    def make(data: Data) -> list[str]:
        model = write_model(data.place / "model")
        prepare(data, model)
        where = ["-i", str(data.folder / "imagesTr"), "-o", str(data.place / "out"), "-m", str(model)]
        return ["predict", *where, "--device", "cpu", *arguments]

    return make


def edited(**changes: Any):
    return predict(lambda data, model: edit_model(model, **changes))


def described(**changes: Any):
    """Change fields of model.json itself."""

    def prepare(data: Data, model: Path) -> None:
        write_json(model / "model.json", read_json(model / "model.json") | changes)

    return predict(prepare)


def weights(model: Path) -> Path:
    return next(model.glob("members/*/fold_0.safetensors"))


def bring_source(data: Data, model: Path) -> None:
    source = model / "members" / "member0" / "network.py"
    source.write_text(f"open({str(data.place / 'executed')!r}, 'w')\n")
    edit_model(model, architecture="foreign", plugin_source="members/member0/network.py")


MODELS = {
    "a folder without a model": (
        predict(lambda d, m: (m / "model.json").unlink()),
        "model.json: the file does not exist",
    ),
    "a model.json that is no JSON": (predict(lambda d, m: (m / "model.json").write_text("{")), "not valid JSON"),
    "a model.json of another format": (described(format=2), "field format"),
    "a model.json with an unknown field": (described(code="print(1)"), "field code"),
    "weights with one flipped bit": (
        predict(lambda d, m: weights(m).write_bytes(weights(m).read_bytes()[:-1] + b"\0")),
        "does not match its checksum",
    ),
    "weights that are missing": (predict(lambda d, m: weights(m).unlink()), "the file is missing"),
    "weights outside of the model folder": (edited(folds={"0": "../../w.safetensors"}), "points outside"),
    "plans at an absolute path": (edited(plans_file="/etc/passwd"), "points outside"),
    "plug-in source in the model folder": (predict(bring_source), "--trust-plugins"),
    "an architecture that is a path": (edited(architecture="../../network.py"), "network.py"),
    "a fold that the model lacks": (predict(lambda d, m: None, "--folds", "3"), "3"),
    "a folder of images that does not exist": (
        predict(lambda d, m: shutil.rmtree(d.folder / "imagesTr")),
        "the folder does not exist",
    ),
    "a folder without images": (
        predict(lambda d, m: [f.unlink() for f in d.folder.glob("imagesTr/*")]),
        "the folder has no images",
    ),
    "no case with a name that can be one of a file": (
        predict(lambda d, m: [f.rename(str(f).replace("d_0000", "..d_0000")) for f in d.folder.glob("imagesTr/*")]),
        "the case name 'ba..d' cannot become a file name",
    ),
    "input and output in one folder": (
        lambda d: [text.replace(str(d.place / "out"), str(d.folder / "imagesTr")) for text in predict()(d)],
        "input and output are the same folder",
    ),
}

# One bad image among good ones: exit code 1, and the others are complete.
CASES = {
    "a link to nothing among the images": (
        predict(lambda d, m: (d.image.unlink(), d.image.symlink_to("nowhere"))),
        "the link leads to no file",
    ),
    "a case whose first channel is missing": (
        predict(lambda d, m: d.image.rename(d.image.with_name("bad_0001.nii.gz"))),
        "channel file bad_0000.nii.gz is missing",
    ),
    "a case whose name cannot be one of a file": (
        predict(lambda d, m: d.image.rename(d.image.with_name("b..d_0000.nii.gz"))),
        "the case name 'b..d' cannot become a file name",
    ),
    "an empty image among good ones": (predict(lambda d, m: d.image.write_bytes(b"")), "the file is empty"),
    "a truncated image among good ones": (
        predict(lambda d, m: d.image.write_bytes(d.image.read_bytes()[:999])),
        "truncated",
    ),
    "NaN voxels among good images": (
        predict(lambda d, m: d.voxels(d.image, lambda a: spoil(a, np.nan))),
        "channel 0 has 3 NaN",
    ),
    "two channels where one is meant": (
        predict(lambda d, m: d.voxels(d.image, lambda a: np.stack([a, a], -1))),
        "2 channel(s)",
    ),
}
