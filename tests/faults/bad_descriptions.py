"""Faulty label maps, descriptions and lists, by name: how they are made, and what the message must say."""

import shutil

import nibabel
import numpy as np
from bad_data import Data
from bad_images import flip, move, spoil, stretch, turn

TWO = {"background": 0, "a": 1, "b": 2}
PAIR = {"image": "imagesTr/bad_0000.nii.gz", "label": "labelsTr/bad.nii.gz"}


def four_dimensional(data: Data) -> None:
    data.voxels(data.label, lambda a: np.stack([a, a * 0], -1))


def value(number, count=5):
    def change(array):
        array = array.astype(np.int32)
        array.flat[:count] = number
        return array

    return change


def minus_one(data: Data) -> None:
    """Write -1 for the second class, in dataset.json, too."""
    data.describe(labels=DESCRIBED | {"posterior": -1})
    for path in data.folder.glob("labelsTr/*"):
        data.voxels(path, lambda array: np.where(array == 2, -1, array).astype(np.int16))


LABELS = {
    "a label map of another shape": (lambda d: d.voxels(d.label, lambda a: a[3:]), "the label map has shape"),
    "a label map with another spacing": (lambda d: d.affine(d.label, stretch), "another geometry (affine)"),
    "a label map in another place": (lambda d: d.affine(d.label, move), "another geometry (affine)"),
    "a label map with a flipped direction": (lambda d: d.affine(d.label, flip), "another geometry (affine)"),
    "a label map with exchanged axes": (lambda d: d.affine(d.label, turn), "another geometry (affine)"),
    "values outside the declared set": (lambda d: d.voxels(d.label, value(7)), "7 (5 voxels)"),
    "a negative value": (lambda d: d.voxels(d.label, value(-3)), "-3 (5 voxels)"),
    "the value -1": (lambda d: d.voxels(d.label, value(-1)), "-1 (5 voxels)"),
    "a value of two thousand million": (lambda d: d.voxels(d.label, value(2**31 - 1)), "2147483647 (5 voxels)"),
    "values between integers": (
        lambda d: d.voxels(d.label, lambda a: spoil(a, 1.5)),
        "3 voxel(s) that are not integers",
    ),
    "a label map with NaN": (lambda d: d.voxels(d.label, lambda a: spoil(a, np.nan)), "such as nan"),
    "a label map with two different channels": (four_dimensional, "the label map has 2 different channels"),
    "an image without a label map": (lambda d: d.label.unlink(), "the training image has no label map"),
    "a label map without an image": (lambda d: d.image.unlink(), "the label map has no image"),
    "a truncated label map": (lambda d: d.label.write_bytes(d.label.read_bytes()[:300]), "truncated"),
}

LABELS_TAKEN = {
    "integers stored as floats": (lambda d: d.voxels(d.label, lambda a: a, np.float32), ""),
    "nothing but background": (lambda d: d.voxels(d.label, lambda a: a * 0), "the label map is empty"),
    "a class of the value -1": (minus_one, ""),
    "a class that no case has": (lambda d: d.describe(labels=DESCRIBED | {"third": 3}), "occurs in no training case"),
}

DESCRIBED = {"background": 0, "anterior": 1, "posterior": 2}


def write(text, encoding="utf-8"):
    return lambda d: d.file.write_text(text, encoding=encoding)


def rename(data: Data, name: str) -> None:
    data.image.rename(data.image.with_name(f"{name}_0000.nii.gz"))
    data.label.rename(data.label.with_name(f"{name}.nii.gz"))


def written_as(data: Data, ending: str, **changes) -> None:
    """Name the files of all cases, and ask for label maps of another ending."""
    entries = {
        case: {"images": [f"imagesTr/{case}_0000.nii.gz"], "label": f"labelsTr/{case}.nii.gz"}
        for case in ("good", "bad")
    }
    data.describe(dataset=entries, file_ending=ending, **changes)


def named(data: Data, one: str, other: str) -> None:
    """Give the two cases names of a list."""
    cases = [
        {"case": name, "image": f"imagesTr/{file}_0000.nii.gz", "label": f"labelsTr/{file}.nii.gz"}
        for name, file in ((one, "good"), (other, "bad"))
    ]
    data.describe(cases=cases)


def to_test(data: Data, name: str) -> None:
    """Add a test case of this name, whose image is none of the others."""
    path = data.folder / "imagesTs" / name
    path.parent.mkdir()
    shutil.copy(data.image, path)
    data.voxels(path, lambda array: array + 1)


def empty(data: Data) -> None:
    for path in data.folder.glob("*/*.nii.gz"):
        path.unlink()


DESCRIPTIONS = {
    "an empty dataset.json": (write(""), "not valid JSON"),
    "a dataset.json cut in half": (write('{"channel_names": {"0": "MRI"}, "labels"'), "not valid JSON"),
    "a dataset.json in UTF-16": (write("{}", "utf-16"), "not valid JSON"),
    "a dataset.json nested a hundred thousand deep": (write("[" * 100_000 + "]" * 100_000), "not valid JSON"),
    "a dataset.json that is a list": (write("[]"), "one JSON object"),
    "a dataset.json without a field": (write("{}"), "field channel_names"),
    "no dataset.json": (lambda d: d.file.unlink(), "no dataset.json"),
    "channel_names that are a number": (lambda d: d.describe(channel_names=3), "field channel_names"),
    "channel_names counted from one": (lambda d: d.describe(channel_names={"1": "MRI"}), "field channel_names"),
    "labels that are a list": (lambda d: d.describe(labels=["a", "b"]), "labels"),
    "labels without background": (lambda d: d.describe(labels={"a": 1, "b": 2}), "needs an entry 'background'"),
    "a label that is text": (lambda d: d.describe(labels=TWO | {"b": "two"}), "field labels.b"),
    "a label that is true": (lambda d: d.describe(labels=TWO | {"b": True}), "field labels.b"),
    "a label that is a fraction": (lambda d: d.describe(labels=TWO | {"b": 1.5}), "field labels.b"),
    "a label that is an empty list": (lambda d: d.describe(labels=TWO | {"b": []}), "field labels.b"),
    "two names for one value": (lambda d: d.describe(labels=TWO | {"b": 1}), "share one value"),
    "a class with the value of background": (lambda d: d.describe(labels=TWO | {"b": 0}), "field labels.b"),
    "a background that is ignored": (
        lambda d: d.describe(labels=TWO | {"ignore": [9, 0]}),
        "field labels.ignore uses 0, which is background",
    ),
    "cyclic regions": (
        lambda d: d.describe(labels={"background": 0, "a": [1, 2], "b": [2, 1]}),
        "no value that smaller regions do not",
    ),
    "a painting order of other values": (
        lambda d: d.describe(labels={"background": 0, "a": [1, 2], "b": [2]}, regions_class_order=[5, 6]),
        "regions_class_order",
    ),
    "an ignore label beside labels": (lambda d: d.describe(ignore=3), "belongs inside labels"),
    "a file ending that is not supported": (lambda d: d.describe(file_ending=".gif"), "field file_ending"),
    "a file ending that is a number": (lambda d: d.describe(file_ending=3), "field file_ending"),
    "no file ending": (lambda d: d.describe(file_ending=None), "field file_ending"),
    "the ending of other files": (lambda d: d.describe(file_ending=".mha"), "no file that ends with .mha"),
    "label maps to be written as JPG": (lambda d: written_as(d, ".jpg"), "which loses their values"),
    "label maps of volumes to be written as PNG": (
        lambda d: written_as(d, ".png"),
        "2 image(s) are volumes, such as that of case bad",
    ),
    "a class of -1 in label maps to be written as TIFF": (
        lambda d: written_as(d, ".tif", labels=TWO | {"b": -1}),
        "field labels.b: value -1 cannot be written",
    ),
    "a class of 256 in label maps to be written as BMP": (
        lambda d: written_as(d, ".bmp", labels=TWO | {"b": 256}),
        "label maps in .bmp hold 0 to 255",
    ),
    "a number of cases that is text": (lambda d: d.describe(numTraining="two"), "field numTraining"),
    "labels_folder that is a number": (lambda d: d.describe(labels_folder=1), "field labels_folder"),
    "labels_folder that leads outside": (lambda d: d.describe(labels_folder="../../labels"), "field labels_folder"),
    "labels_folder that is absolute": (lambda d: d.describe(labels_folder="/etc"), "field labels_folder"),
    "a folder that does not exist": (lambda d: d.describe(folder="elsewhere"), "field folder"),
    "a folder that is a number": (lambda d: d.describe(folder=3), "field folder"),
    "annotated classes that are not declared": (
        lambda d: d.describe(annotated={"bad": ["kidney"]}),
        "field annotated.bad",
    ),
    "annotated that is a list": (lambda d: d.describe(annotated=["bad"]), "field annotated"),
    "groups that are a list": (lambda d: d.describe(groups=["bad"]), "field groups"),
    "cases that are a number": (lambda d: d.describe(cases=5), "field cases"),
    "a case whose name is a path": (
        lambda d: d.describe(cases=[{"case": "../../escaped", "image": "a.nii.gz"}]),
        "'../../escaped'",
    ),
    "a case whose name is absolute": (
        lambda d: d.describe(cases=[{"case": "/etc/passwd", "image": "a.nii.gz"}]),
        "'/etc/passwd'",
    ),
    "a case without images": (lambda d: d.describe(cases=[{"case": "a", "images": []}]), "images must be a list"),
    "a case of files that do not exist": (
        lambda d: d.describe(cases=[{"case": "a", "image": "none.nii.gz"}]),
        "the file does not exist",
    ),
    "a case listed twice": (
        lambda d: d.describe(
            cases=[{"case": "a", "image": "imagesTr/bad_0000.nii.gz", "label": "labelsTr/bad.nii.gz"}] * 2
        ),
        "two cases have this name",
    ),
    "a split of an unknown name": (
        lambda d: d.describe(cases=[{"case": "a", "image": "imagesTr/bad_0000.nii.gz", "split": "holdout"}]),
        "'holdout'",
    ),
    "training pairs of the wrong form": (lambda d: d.describe(training=["bad"]), "field training"),
    "nnU-Net's field dataset as a list": (lambda d: d.describe(dataset=["bad"]), "field dataset"),
    "a label that stands twice": (
        lambda d: d.file.write_text(d.file.read_text().replace('"posterior"', '"anterior"')),
        "the name 'anterior' stands twice",
    ),
    "half a character in a label": (lambda d: d.describe(labels=TWO | {"b\ud800": 3}), "\\ud800 is half a character"),
    "half a character in the file ending": (
        lambda d: d.describe(file_ending=".nii\ud800"),
        "\\ud800 is half a character",
    ),
    "a test pair whose label is a number": (
        lambda d: d.describe(training=[PAIR], test=[PAIR | {"label": 5}], numTraining=1),
        "field test",
    ),
    "a labels_folder of 5000 letters": (lambda d: d.describe(labels_folder="l" * 5000), "field labels_folder"),
    "a path of 5000 letters": (
        lambda d: d.describe(training=[PAIR | {"image": f"{'i' * 5000}.nii.gz"}]),
        "the file does not exist",
    ),
    "a folder of 5000 letters": (lambda d: d.describe(folder="f" * 5000), "field folder"),
    "a case name of 5000 letters": (lambda d: d.describe(cases=[{"case": "c" * 5000, **PAIR}]), "cannot become"),
    "cases in a table of 5000 letters": (lambda d: d.describe(cases="c" * 5000), "field cases"),
    "no case at all": (empty, "it is empty"),
    "no folder of images": (
        lambda d: shutil.rmtree(d.folder / "imagesTr"),
        "folder with the training images is missing",
    ),
    "a case name with a line break": (lambda d: rename(d, "b\nad"), "'b\\nad'"),
    "a table that is no text": (
        lambda d: (d.folder / "cases.csv").write_bytes(b"case,patient\n\xff\xfe,1\n"),
        "the table cannot be read",
    ),
    "a table with too many fields": (
        lambda d: (d.folder / "cases.csv").write_text("case,patient\nbad,1,2\n"),
        "line 2 has more fields",
    ),
    "texts that are a list": (lambda d: (d.folder / "texts.json").write_text("[]"), "must map cases to texts"),
    "volumes and pictures in one data set": (lambda d: flat(d), "the image is 2D"),
}


def flat(data: Data) -> None:
    """A third case, which is 2D."""
    for folder, name in (("imagesTr", "flat_0000"), ("labelsTr", "flat")):
        voxels = np.arange(35 * 40, dtype=np.int16).reshape(35, 40) % (3 if folder == "labelsTr" else 200)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), data.folder / folder / f"{name}.nii.gz")
    data.describe(numTraining=3)
    shutil.copy(data.folder / "imagesTr" / "good_0000.nii.gz", data.folder / "imagesTr" / "more_0000.nii.gz")
    shutil.copy(data.folder / "labelsTr" / "good.nii.gz", data.folder / "labelsTr" / "more.nii.gz")


DESCRIPTIONS_TAKEN = {
    "a number of cases that is not theirs": (lambda d: d.describe(numTraining=9), "it says 9, but there are 2"),
    "a case name in three alphabets": (lambda d: rename(d, "Fall Ü 患者 пациент"), ""),
    "case names that differ by letter case": (
        lambda d: named(d, "Case_1", "case_1"),
        "the name differs from that of case 'Case_1' by its letter case",
    ),
    "case names that differ by their Unicode form": (
        lambda d: named(d, "Fall a\u0308", "Fall \u00e4"),
        "the name differs from that of case 'Fall a\\u0308' by its Unicode form",
    ),
    "a case name in training and testing": (
        lambda d: to_test(d, "bad_0000.nii.gz"),
        "one of the training cases has this name, too",
    ),
    "an image whose ending is in upper case": (
        lambda d: d.image.with_name("more_0000.NII.GZ").write_bytes(d.image.read_bytes()),
        "1 file(s) do not end with .nii.gz and are left out",
    ),
    "a split of an unknown name in a table": (
        lambda d: (d.folder / "cases.csv").write_text("case,split\ngood,train\nbad,holdout\n"),
        "1 split(s) are not one of train, val, test, unlabelled, and are not used",
    ),
    "a case name of 180 letters": (lambda d: rename(d, "x" * 180), ""),
    "HTML in a case name": (lambda d: rename(d, "<b onclick=alert(1)>&amp;"), ""),
    "a single case": (
        lambda d: [
            (d.folder / "imagesTr" / "good_0000.nii.gz").unlink(),
            (d.folder / "labelsTr" / "good.nii.gz").unlink(),
            d.describe(numTraining=1),
        ],
        "",
    ),
}
