"""Faulty models, and faulty images to be predicted, by name: the command that meets them, and what it must say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bad_data import Data
from bad_images import spoil
from bad_settings import change
from model_factory import edit_model, write_model

from autoseg.storage import read_json, write_json


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


def planned(changed: Callable[[dict], None]):
    """Change the plans of the model, and make the checksums anew."""

    def prepare(data: Data, model: Path) -> None:
        path = model / "members" / "member0" / "plans.json"
        content = read_json(path)
        changed(content)
        path.write_text(json.dumps(content))
        edit_model(model)

    return predict(prepare)


def labelled(value: int):
    return described(labels={"values": {"near": [3], "far": [value]}})


def crowded(content: dict) -> dict:
    return content | {"members": content["members"] * 101}


IN_MEMBER = ("configurations", "member0")


def weights(model: Path) -> Path:
    return next(model.glob("members/*/fold_0.safetensors"))


def odd_patch(content: dict) -> None:
    for path in (IN_MEMBER, (*IN_MEMBER, "network")):
        change(*path, "patch_size", to=[8, 17, 16])(content)


def flat_member(model: Path) -> None:
    write_model(model, {"plans": {"spacing": (1.0, 1.0)}, "mirror_axes": (0, 2)})


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
    "a model whose network never ends": (
        planned(change(*IN_MEMBER, "network", "blocks_encoder", to=[10**7] * 2)),
        "field configurations.member0.network.blocks_encoder.0: Input should be less than or equal to 256",
    ),
    "a model whose network is far larger than its weights": (
        planned(change(*IN_MEMBER, "network", "features", to=[4096] * 2)),
        "fold_0.safetensors: the weights do not fit architecture 'plain_unet': by the plans they need",
    ),
    "a model with a patch that the strides do not divide": (
        planned(odd_patch),
        "plans.json: field configurations.member0.patch_size: (8, 17, 16) is no multiple of (2, 2, 2)",
    ),
    "a model without a fold": (edited(folds={}), "field members.0.folds: Dictionary should have at least 1 item"),
    "a model with more folds than anybody trains": (
        edited(folds={str(fold): f"members/member0/fold_{fold}.safetensors" for fold in range(20_000)}),
        "field members.0.folds: Dictionary should have at most 1000 items after validation",
    ),
    "a model with one network as two folds": (
        edited(folds=dict.fromkeys("01", "members/member0/fold_0.safetensors")),
        "field members.0.folds: folds '0' and '1' both name 'members/member0/fold_0.safetensors'",
    ),
    "a model with more members than anybody averages": (
        predict(lambda d, m: write_json(m / "model.json", crowded(read_json(m / "model.json")))),
        "field members: Tuple should have at most 100 items after validation",
    ),
    "a model with a hundred thousand steps of post-processing": (
        described(postprocessing=[{"rule": "keep_largest", "values": [1]}] * 100_000),
        "field postprocessing: Tuple should have at most 1000 items after validation",
    ),
    "a model with a label of the value of background": (
        labelled(0),
        "model.json: field labels: values.far has [0], which is background",
    ),
    "a model with a label that is ignored": (
        described(labels={"values": {"near": [3], "far": [7]}, "ignore": [255, 7]}),
        "model.json: field labels: values.far has [7], which is ignore",
    ),
    "a model that ignores the background": (
        described(labels={"values": {"near": [3], "far": [7]}, "ignore": [0]}),
        "model.json: field labels: ignore has 0, which is background",
    ),
    "a model with a label that no file can hold": (
        labelled(10**30),
        "field labels.values.far.0: Input should be less than or equal to 9223372036854775807",
    ),
    "a model that mirrors axes that are none": (
        edited(mirror_axes=[0, 1, 2, 7]),
        "field members.0.mirror_axes.3: Input should be less than or equal to 2, got '7'",
    ),
    "a 2D model that mirrors a third axis": (
        predict(lambda d, m: flat_member(m)),
        "field mirror_axes has [2], but configuration 'member0' is 2D",
    ),
    "a model of 2D data that predicts in 3D": (
        described(dims_of_data=2),
        "field dims_of_data is 2, but member 'member0' predicts in 3D",
    ),
    "post-processing of a label that is none": (
        described(postprocessing=[{"rule": "keep_largest", "values": [99]}]),
        "postprocessing.0.values has [99], the labels have the internal values 1 to 2",
    ),
    "predictions that would leave their folder": (
        described(file_ending="/../../../evil.nii.gz"),
        "field file_ending: it must be one of .nii.gz",
    ),
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
