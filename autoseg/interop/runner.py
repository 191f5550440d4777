"""Segments images with an exported model: python run.py IMAGES OUTPUT.

Needs numpy, scipy, nibabel, and onnxruntime or openvino; for PNG and TIFF pictures also Pillow. Neither torch nor
autoseg. Every number it uses stands in pipeline.json beside it. Arrays are (Z, Y, X), channels first.
IMAGES holds CASE_0000.nii.gz, CASE_0001.nii.gz, ... (one file per channel).
A case that cannot be segmented is listed at the end, the others go on. Exit code 1: some cases failed; 2: all of them,
or a file of this folder is not as it was written.
"""

import argparse
import hashlib
import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
from scipy import ndimage

PIPELINE = "pipeline.json"
SEAL, SEAL_KIND = "autoseg_checksum", "autoseg-sha256:"  # as autoseg/storage.py seals JSON files
DONE, SOME_FAILED, WRONG_USE = 0, 1, 2
AGAIN = "copy the whole folder again, or export the model anew"


class Refused(Exception):
    """Something that would give wrong answers: what is wrong, where, and how to mend it."""

    def __init__(self, what, where, mend):
        super().__init__(f"{where}: {what}\nTo mend it: {mend}")


def main():
    """Segment every case of a folder; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--no-mirroring", action="store_true", help="faster, slightly worse")
    arguments = parser.parse_args()
    try:
        return segment_folder(arguments.images, arguments.output, mirroring=not arguments.no_mirroring)
    except Refused as refusal:
        sys.stderr.write(f"error: {refusal}\n")
        return WRONG_USE


def segment_folder(images, output, *, mirroring):
    """Segment every case of a folder, list those that failed, and return the exit code."""
    folder = Path(__file__).resolve().parent
    model = read_pipeline(folder)
    ending = model["file_ending"]
    cases = [file.name[: -len(f"_0000{ending}")] for file in sorted(images.glob(f"*_0000{ending}"))]
    if not cases:
        raise Refused("there is no image", images / f"*_0000{ending}", "correct the folder, or rename the images")
    networks = load_networks(folder, model)
    output.mkdir(parents=True, exist_ok=True)
    failures = []
    for case in cases:
        try:
            image, spacing, write = read_case(model, images, case)
            label = predict(model, networks, image, spacing, mirroring=mirroring)[0]
            write_whole(write, output / f"{case}{ending}", label)
        except Exception as error:  # whatever it is, it must not cost the other cases
            reason = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
            failures.append(f"  case {case}: {reason}\n")
        else:
            sys.stdout.write(f"{case}\n")
    if not failures:
        return DONE
    others = "the others are complete" if len(failures) < len(cases) else "there is no other case"
    sys.stderr.write(f"error: {len(failures)} case(s) failed; {others}:\n{''.join(failures)}")
    return SOME_FAILED if len(failures) < len(cases) else WRONG_USE


def write_whole(write, path, label):
    """Write a label map beside its place first: what has its name is complete, whenever this is killed."""
    part = path.with_name(f".part_{path.name}")
    try:
        write(part, label)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_pipeline(folder):
    """Return pipeline.json after comparing it, and every file that it lists, with the checksums."""
    path = folder / PIPELINE
    try:
        model = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(f"the file cannot be read ({error})", path, AGAIN) from None
    if not isinstance(model, dict) or not unseal(model):
        purpose = f"if you changed it on purpose, delete its line {SEAL!r}; if not, {AGAIN}"
        raise Refused("the content does not match its checksum", path, purpose)
    listed = model.get("checksums", {})
    for name, digest in listed.items():
        if not (folder / name).is_file():
            raise Refused("the file is missing", folder / name, AGAIN)
        if file_hash(folder / name) != digest:
            raise Refused("the content does not match its checksum", folder / name, AGAIN)
    for name in (name for member in model["members"] for name in member["networks"]):
        if name not in listed:
            raise Refused(f"the file has no checksum in {PIPELINE}", folder / name, AGAIN)
    return model


def unseal(content):
    """Take the checksum off the content of a JSON file, and tell whether it is right; it is if there is none.

    It is known by its name or by its value: one flipped bit does not hide both.
    """
    seals = {k: v for k, v in content.items() if k == SEAL or (isinstance(v, str) and v.startswith(SEAL_KIND))}
    for name in seals:
        del content[name]
    text = json.dumps([content], sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return not seals or seals == {SEAL: SEAL_KIND + hashlib.sha256(text).hexdigest()}


def file_hash(path):
    """Return the SHA-256 hex digest of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()


def load_networks(folder, model):
    """Return, per file, a function from (1, C, *patch) to logits (1, K, *patch)."""
    files = [file for member in model["members"] for file in member["networks"]]
    if model["format"] == "onnx":
        import onnxruntime

        def load(file):
            session = onnxruntime.InferenceSession(str(folder / file), providers=onnxruntime.get_available_providers())
            return lambda patch: session.run(None, {"image": patch})[0]
    else:
        import openvino

        core = openvino.Core()

        def load(file):
            precise = {"INFERENCE_PRECISION_HINT": "f32"}
            compiled = core.compile_model(core.read_model(folder / file), "CPU", precise)
            return lambda patch: compiled(patch)[0]

    return {file: load(file) for file in files}


def predict(model, networks, image, spacing, *, mirroring=True):
    """Return the label map (Z, Y, X) of an image (C, Z, Y, X) and the probabilities (K, Z, Y, X)."""
    inside, box = nonzero_region(image)
    cropped = image[(slice(None), *box)].astype(np.float32)
    numbers = np.array([model["labels"]["background"], *model["labels"]["foreground"]])
    stages, total = {}, []
    for member in model["members"]:
        logits = predict_member(member, networks, cropped, inside, spacing, stages, mirroring)
        values = 1 / (1 + np.exp(-logits)) if model["labels"]["regions"] else softmax(logits)
        stages[member["name"]] = decide(values, model["labels"])
        if member["in_ensemble"]:
            total.append(values)
    mean = sum(total) / len(total)
    whole = np.zeros((len(mean), *image.shape[1:]), np.float32)
    if not model["labels"]["regions"]:
        whole[0] = 1  # outside of the non-zero region there is background
    whole[(slice(None), *box)] = mean
    label = np.zeros(image.shape[1:], int)
    label[box] = decide(mean, model["labels"])
    for values in model["postprocessing"]:
        label = keep_largest(label, values)
    return numbers[label], whole


def predict_member(member, networks, image, inside, spacing, stages, mirroring):
    """Return the logits (K, Z, Y, X) of one configuration on the grid of the cropped image, axes as given."""
    axes = member["transpose"]
    spacing = [spacing[axis] for axis in axes]
    target = [*spacing[: 3 - len(member["spacing"])], *member["spacing"]]
    data = image.transpose(0, *(axis + 1 for axis in axes))
    data = normalise(data, inside.transpose(axes), member["normalization"])
    shape = [max(1, round(old / new * size)) for old, new, size in zip(spacing, target, data.shape[1:], strict=True)]
    resampled = np.stack([resample(channel, shape, spacing, target, 3) for channel in data])
    if member["previous_stage"] is not None:
        below = stages[member["previous_stage"]].transpose(axes)
        below = resample_labels(below, shape, spacing, target)
        count = member["in_channels"] - len(data)
        resampled = np.concatenate([resampled, [(below == value) for value in range(1, count + 1)]])
    resampled = resampled.astype(np.float32)
    logits = 0
    for file in member["networks"]:
        logits = logits + slide(networks[file], resampled, member, mirroring) / len(member["networks"])
    if not np.isfinite(logits).all():  # of such numbers argmax would make background
        raise Refused("the network's output is not finite", member["name"], "look for huge values in the image")
    size = data.shape[1:]
    logits = np.stack([resample(output, size, target, spacing, 1) for output in logits])
    return logits.transpose(0, *(axis + 1 for axis in np.argsort(axes)))


def nonzero_region(image):
    """Return the filled non-zero mask within its bounding box, and the box as slices; all of an empty image."""
    mask = (image != 0).any(0)
    if not mask.any():
        mask[:] = True
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    return ndimage.binary_fill_holes(mask[box]), box


def normalise(data, inside, schemes):
    """Return an image (C, Z, Y, X) with every channel normalised by its scheme."""
    result = data.astype(np.float32)
    for channel, scheme in zip(result, schemes, strict=True):
        kind = scheme["scheme"]
        if kind == "zscore":
            where = inside if scheme["use_mask"] else np.ones_like(inside)
            values = channel[where].astype(np.float64)
            channel[where] = (channel[where] - values.mean()) / max(values.std(), 1e-8)
        elif kind == "ct":
            channel[:] = np.clip(channel, scheme["percentile_00_5"], scheme["percentile_99_5"])
            channel[:] = (channel - scheme["mean"]) / max(scheme["std"], 1e-8)
        elif kind == "rescale_to_0_1":
            channel -= channel.min()
            channel /= max(channel.max(), 1e-8)
        elif kind == "rgb_to_0_1":
            channel /= 255
    return result


def coarse_axis(current, target):
    """Return the axis to resample by nearest neighbour: the one more than three times as coarse as the finest."""
    for spacing in (current, target):
        if max(spacing) / min(spacing) > 3:
            return spacing.index(max(spacing)) if spacing.count(max(spacing)) == 1 else None
    return None


def resample(volume, shape, current, target, order):
    """Resample one volume by splines (3) or linearly (1), half-pixel centres, clipped to the range of the input."""
    shape = tuple(shape)
    if volume.shape == shape:
        return volume
    axis = coarse_axis(current, target)
    if axis is None:
        return zoom(volume, shape, order)
    size = tuple(new for index, new in enumerate(shape) if index != axis)
    slices = [zoom(slice_, size, order) for slice_ in np.moveaxis(volume, axis, 0)]
    return np.moveaxis(np.stack(slices)[nearest(len(slices), shape[axis])], 0, axis)


def zoom(array, shape, order):
    """Resample an array by splines along every axis."""
    if array.shape == tuple(shape):
        return array
    factors = [new / old for new, old in zip(shape, array.shape, strict=True)]
    result = ndimage.zoom(array, factors, order=order, mode="nearest", grid_mode=True)
    return np.clip(result, array.min(), array.max())


def nearest(n_in, n_out):
    """Return for every output voxel of an axis the nearest input voxel."""
    centre = (n_in / n_out) * (np.arange(n_out) + 0.5) - 0.5
    return np.clip(np.floor(centre + 0.5).astype(int), 0, n_in - 1)


def resample_labels(label, shape, current, target):
    """Resample a label map: per label linear interpolation, at least one half wins, later labels over earlier ones."""
    result = np.zeros(tuple(shape), np.int16)
    for value in np.unique(label):
        weight = resample((label == value).astype(np.float32), shape, current, target, 1)
        result[weight >= 0.5 - 1e-6] = value
    return result


def slide(network, data, member, mirroring):
    """Return the logits (K, Z, Y, X) of one network: Gaussian-weighted mean over tiles, mean over mirrored tiles."""
    flat = len(member["patch_size"]) == 2
    patch = (1,) * flat + tuple(member["patch_size"])
    missing = [0 if flat and axis == 0 else max(0, patch[axis] - size) for axis, size in enumerate(data.shape[1:])]
    pads = [(amount // 2, amount - amount // 2) for amount in missing]
    data = np.pad(data, [(0, 0), *pads])
    axes = member["mirror_axes"] if mirroring else []
    mirrors = [subset for count in range(len(axes) + 1) for subset in itertools.combinations(axes, count)]
    weights = gaussian(patch, flat)
    total = np.zeros((member["num_outputs"], *data.shape[1:]), np.float32)
    norm = np.zeros(data.shape[1:], np.float32)
    for corner in itertools.product(*(starts(*sizes) for sizes in zip(data.shape[1:], patch, strict=True))):
        where = tuple(slice(low, low + length) for low, length in zip(corner, patch, strict=True))
        tile = data[(slice(None), *where)].reshape(1, len(data), *member["patch_size"])
        mean = 0
        for subset in mirrors:
            flip = [axis + 2 for axis in subset]
            mean = mean + np.flip(network(np.ascontiguousarray(np.flip(tile, flip))), flip) / len(mirrors)
        total[(slice(None), *where)] += mean.reshape(-1, *patch) * weights
        norm[where] += weights
    end = [size - after for (_, after), size in zip(pads, data.shape[1:], strict=True)]
    inside = tuple(slice(before, stop) for (before, _), stop in zip(pads, end, strict=True))
    return (total / norm)[(slice(None), *inside)]


def starts(size, patch):
    """Return the evenly spread lower corners of half-overlapping tiles along one axis."""
    if patch == 1:
        return list(range(size))
    count = math.ceil((size - patch) / (patch / 2)) + 1
    return [0] if count == 1 else [round((size - patch) / (count - 1) * index) for index in range(count)]


def gaussian(patch, flat):
    """Return the weights of a tile: sigma one eighth of the patch, one in the centre."""
    weights = np.ones(patch, np.float32)
    for axis, length in enumerate(patch):
        if flat and axis == 0:
            continue
        delta = np.zeros(length)
        delta[length // 2] = 1
        vector = ndimage.gaussian_filter1d(delta, length / 8, mode="constant")
        weights = weights * (vector / vector.max()).reshape([-1 if index == axis else 1 for index in range(3)])
    return weights.astype(np.float32)


def softmax(logits):
    """Return probabilities (K, ...) of logits."""
    values = np.exp(logits - logits.max(0))
    return values / values.sum(0)


def decide(values, labels):
    """Return the label map, numbered 0, 1, 2, ..., of probabilities (K, Z, Y, X)."""
    if not labels["regions"]:
        return values.argmax(0)
    result = np.zeros(values.shape[1:], int)
    for output, number in labels["painting"]:
        result[values[output] > 0.5] = number
    return result


def keep_largest(label, values):
    """Return the label map with only the largest component of the union of `values`."""
    mask = np.isin(label, values)
    parts, count = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())[1:]
    if count > 1:
        label = np.where(mask & ~np.isin(parts, np.flatnonzero(sizes == sizes.max()) + 1), 0, label)
    return label


def read_case(model, folder, case):
    """Return what `read` does of a case, with as many channels as the model takes, every voxel finite."""
    channels, ending = len(model["channels"]), model["file_ending"]
    files = [folder / f"{case}_{channel:04d}{ending}" for channel in range(channels)]
    files = files if all(file.exists() for file in files) else files[:1]
    image, spacing, write = read(files, model["orientation"])
    if len(image) != channels:
        raise Refused(f"there are {len(image)} channel(s), not {channels}", files[0], "add the files of the others")
    for channel, volume in enumerate(image):
        nan, infinite = int(np.isnan(volume).sum()), int(np.isinf(volume).sum())
        if nan or infinite:
            raise Refused(
                f"channel {channel} has {nan} NaN and {infinite} infinite voxel(s)",
                files[channel] if len(files) == channels else files[0],
                "replace them, for example by the value of the background",
            )
    return image, spacing, write


def read(files, orientation):
    """Return image (C, Z, Y, X), spacing (z, y, x) in mm, and a function that writes a label map on the same grid."""
    if not files[0].name.endswith((".nii", ".nii.gz")):
        return read_pictures(files)
    import nibabel

    stored = nibabel.load(files[0])
    turn = nibabel.io_orientation(stored.affine)
    back = nibabel.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], turn)

    def volume(file):
        image = nibabel.load(file)
        image = image.as_reoriented(turn) if orientation == "ras" else image
        return np.asarray(image.dataobj, np.float32).T, [float(size) for size in image.header.get_zooms()[2::-1]]

    def write(path, label):
        array = label.T.astype(np.uint8 if label.max() < 256 else np.int32)
        array = nibabel.apply_orientation(array, back) if orientation == "ras" else array
        nibabel.save(nibabel.Nifti1Image(array, stored.affine), path)

    volumes = [volume(file) for file in files]
    return np.stack([data for data, _ in volumes]), volumes[0][1], write


def read_pictures(files):
    """Read 2D pictures: one file per channel, or one colour file."""
    from PIL import Image

    pictures = [np.asarray(Image.open(file), np.float32) for file in files]
    pictures = [np.moveaxis(p[..., :3], -1, 0) if p.ndim == 3 else p[None] for p in pictures]

    def write(path, label):
        Image.fromarray(label[0].astype(np.uint8 if label.max() < 256 else np.uint16)).save(path)

    return np.concatenate(pictures)[:, None], [999.0, 1.0, 1.0], write


if __name__ == "__main__":
    sys.exit(main())
