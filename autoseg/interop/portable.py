"""autoseg model folder -> ONNX or OpenVINO networks, a plain JSON of every other step, and a runner without torch."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import autoseg
from autoseg.devices import prepare_to_compute
from autoseg.errors import UserError
from autoseg.inference.members import LoadedMember, load_members
from autoseg.interop import runner
from autoseg.interop.folders import new_folder, refuse_model_folder
from autoseg.interop.names import checked_name
from autoseg.model_folder import MODEL_FILE, Model, checksums, read_model
from autoseg.storage import WRITE_MENDS, write_bytes, write_json

log = logging.getLogger(__name__)

FORMATS = {"onnx": ("onnx", "onnxscript"), "openvino": ("onnx", "onnxscript", "openvino")}
SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
PIPELINE, RUNNER = "pipeline.json", "run.py"
VOLUMES = (".nii", ".nii.gz")  # what the runner reads
PICTURES = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff")  # of one slice
LARGEST_FILE = 2**30  # bytes of weights; beyond, they stand beside the ONNX file, which protobuf limits to 2 GiB
STEPS = (
    "crop to the bounding box of what is not zero in any channel; the mask inside has its holes filled",
    "transpose the axes (z, y, x), then the following in this order",
    "normalise every channel: zscore (inside the mask if use_mask), ct (clip to the percentiles, then mean and std), "
    "rescale_to_0_1, rgb_to_0_1, none",
    "resample to the spacing by cubic splines; an axis more than three times as coarse as the finest one (of the "
    "present spacing, else of the target) by nearest neighbour, the others slice by slice",
    "with a previous stage: append one channel per foreground label of its label map",
    "logits: tiles of patch_size at half overlap, Gaussian weights of sigma patch/8, mean over all mirrored tiles and "
    "networks",
    "resample the logits linearly to the shape after cropping; softmax, or with regions sigmoid; mean over the members",
    "label map: argmax, or with regions paint (output, number) in order where the output is above 0.5; into the box",
    "post-processing: keep the largest component (26 neighbours) of the union of these numbers",
    "numbers 0, 1, 2, ... become the values background, foreground[0], foreground[1], ...",
)


def export(
    model_folder: Path | str,
    output: Path | str,
    *,
    format: str = "onnx",
    folds: Sequence[str | int] | None = None,
    trust_plugins: bool = False,
) -> Path:
    """Write a model folder as ONNX or OpenVINO networks with `pipeline.json` and `run.py`; returns the new folder.

    Every network takes `image` (batch, C, *patch) float32 and gives `logits` (batch, K, *patch). Raises UserError if a
    package of the extra `export` is missing, the network cannot be expressed, or the runner cannot read the images.
    """
    if format not in FORMATS:
        raise UserError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    missing = [name for name in FORMATS[format] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"export to {format} needs {', '.join(missing)}", mend="pip install 'autoseg-engine[export]'")
    folder, output = Path(model_folder), Path(output)
    model = read_model(folder)
    refuse_model_folder(output, folder)
    _check_ending(model, folder)
    for name in (part for member in model.members for part in (member.name, *member.folds)):
        checked_name(name, "members", folder / MODEL_FILE)
    device = torch.device("cpu")
    prepare_to_compute(device)
    members = load_members(folder, model, device=device, folds=folds, trust_plugins=trust_plugins)
    with new_folder(output) as new:
        described = [_write_member(new, member, format) for member in members]
        write_bytes(new / RUNNER, Path(runner.__file__).read_bytes())
        pipeline = {**describe_pipeline(model, format), "members": described, "checksums": checksums(new)}
        write_json(new / PIPELINE, pipeline, sealed=True)
    return output


def _check_ending(model: Model, folder: Path) -> None:
    """Refuse images that the runner could not read, or would read wrongly: it takes one slice of a picture."""
    readable = VOLUMES if model.dims_of_data == 3 else (*VOLUMES, *PICTURES)
    if model.file_ending not in readable:
        raise UserError(
            f"the runner that is exported does not read {model.dims_of_data}D images as {model.file_ending!r}, only "
            f"{', '.join(readable)}",
            where=folder / MODEL_FILE,
            mend="convert the images to .nii.gz, and write that into the field file_ending of a copy of the model",
        )


def _write_member(root: Path, loaded: LoadedMember, format: str) -> dict[str, Any]:
    """Write the networks of a member and return its description."""
    configuration = loaded.configuration
    files = []
    for fold, network in zip(loaded.folds, loaded.networks, strict=True):
        log.info("%s, fold %s: to %s", loaded.member.name, fold, format)
        stem = root / f"{loaded.member.name}_fold_{fold}"
        example = torch.zeros(2, configuration.network.in_channels, *configuration.patch_size)
        write_onnx(network, example, stem.with_suffix(".onnx"))
        if format == "openvino":
            _to_openvino(stem)
        files.append(stem.name + SUFFIX[format])
    return describe_member(loaded, files)


def describe_member(loaded: LoadedMember, files: Sequence[str]) -> dict[str, Any]:
    """Return what the runner needs to know of a member whose networks are in `files`."""
    configuration, plans = loaded.configuration, loaded.plans
    normalization = [
        {"scheme": scheme, "use_mask": use_mask, **values.model_dump()}
        for scheme, use_mask, values in zip(
            configuration.normalization, configuration.use_mask, plans.intensities, strict=True
        )
    ]
    return {
        "name": loaded.member.name,
        "networks": files,
        "in_ensemble": loaded.member.in_ensemble,
        "previous_stage": loaded.member.previous_stage,
        "transpose": plans.transpose_forward,
        "spacing": configuration.spacing,
        "patch_size": configuration.patch_size,
        "in_channels": configuration.network.in_channels,
        "num_outputs": configuration.network.num_outputs,
        "mirror_axes": loaded.member.mirror_axes,
        "normalization": normalization,
    }


def write_onnx(network: nn.Module, example: torch.Tensor, path: Path) -> None:
    """Write a network in evaluation mode as ONNX; the batch size stays free where the network allows it."""
    size = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    arguments = {
        "input_names": ["image"], "output_names": ["logits"], "dynamo": True, "verbose": False,
        "external_data": size > LARGEST_FILE,
    }  # fmt: skip
    network.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own deprecated calls
        try:
            free = ({0: torch.export.Dim("batch")},)
            torch.onnx.export(network, (example,), path, dynamic_shapes=free, **arguments)
        except Exception as error:  # torch raises many kinds
            _refuse_disk(error, path)
            log.info("not with a free batch size (%s); with one image at a time", type(error).__name__)
            try:
                torch.onnx.export(network, (example[:1],), path, **arguments)
            except Exception as again:
                _refuse_disk(again, path)
                raise UserError(
                    f"the network {type(network).__name__} cannot be written as ONNX: {str(again)[:300]}"
                ) from again


def _refuse_disk(error: BaseException | None, path: Path) -> None:
    """Raise UserError if `error`, or what it was raised from, is of a disk that is full or may not be written to."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in WRITE_MENDS:
            what, where = f"the file cannot be written ({error.strerror})", error.filename or path
            raise UserError(what, where=where, mend=WRITE_MENDS[error.errno]) from error
        error = error.__cause__


def _to_openvino(stem: Path) -> None:
    """Turn `stem`.onnx into `stem`.xml and `stem`.bin."""
    import openvino

    path = stem.with_suffix(".onnx")
    try:
        openvino.save_model(openvino.convert_model(path), stem.with_suffix(".xml"), compress_to_fp16=False)
    except RuntimeError:  # of a full disk it says no more; then as many bytes cannot be written here either
        write_bytes(stem.with_suffix(".bin"), path.read_bytes())
        raise
    for file in (path, path.with_name(path.name + ".data")):
        file.unlink(missing_ok=True)


def describe_pipeline(model: Model, format: str) -> dict[str, Any]:
    """Return what the runner needs to know of the whole model."""
    labels = model.labels
    number = {value: index + 1 for index, value in enumerate(labels.foreground_values)}
    return {
        "format": format,
        "dataset": model.dataset_name,
        "channels": model.channel_names,
        "file_ending": model.file_ending,
        "orientation": model.orientation,
        "steps": STEPS,
        "labels": {
            "outputs": labels.names if labels.regions else ("background", *labels.names),
            "regions": labels.regions,
            "background": labels.background,
            "foreground": labels.foreground_values,
            "painting": [(output, number[value]) for output, value in labels.painting] if labels.regions else [],
        },
        "postprocessing": [step.values for step in model.postprocessing],
        "versions": {"autoseg": autoseg.__version__, "torch": torch.__version__},
    }
