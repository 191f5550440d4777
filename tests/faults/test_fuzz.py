"""Readers and schemas under arbitrary bytes and arbitrary JSON: a result or a UserError, never anything else."""

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from bad_data import DESCRIPTION, nifti_header, sound
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from model_factory import make_plans

from autoseg.errors import CasesFailed, UserError
from autoseg.evaluation import evaluate
from autoseg.model_folder import Model
from autoseg.plans import Plans, parse
from autoseg.raw import read_image
from autoseg.raw.description import parse_description
from autoseg.raw.opening import draft_dataset
from autoseg.raw.problems import CheckReport, Problem
from autoseg.raw.truncation import refuse_truncated

BOUNDED = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    LEAF,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["channel_names", "labels", "file_ending", "numTraining", "labels_folder", "annotated", "groups", "modality",
          "regions_class_order", "ignore"]  # fmt: skip
SMALL = nifti_header((4, 5, 6)) + bytes(4 * 120)


def is_read_or_named(path: Path, content: bytes) -> bool:
    """Return whether a file with this content gives an image of the shape that it tells, or a message with its name."""
    path.write_bytes(content)
    try:
        image = read_image([path], channels=1)
    except UserError as error:
        return path.name in str(error)
    return image.data.shape == (1, *image.geometry.size)


def said(call: Callable[[], Any]) -> str:
    """Return what is said of bad input; nothing, if it is taken as it is."""
    try:
        call()
    except (CasesFailed, UserError) as error:
        return str(error)
    return ""


@BOUNDED
@given(place=st.integers(0, 347), value=st.binary(min_size=1, max_size=4), packed=st.booleans())
def test_any_nifti_header(tmp_path_factory, place, value, packed):
    content = (SMALL[:place] + value + SMALL[place + len(value) :])[: len(SMALL)]
    name = "a.nii.gz" if packed else "a.nii"
    assert is_read_or_named(tmp_path_factory.getbasetemp() / name, gzip.compress(content) if packed else content)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    volume = sitk.GetImageFromArray(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    flat = sitk.GetImageFromArray(np.arange(60, dtype=np.uint8).reshape(6, 10))
    found = {}
    for ending in (".mha", ".nrrd", ".png", ".bmp", ".tif", ".jpg"):
        path = folder / f"a{ending}"
        sitk.WriteImage(volume if ending in (".mha", ".nrrd") else flat, str(path))
        found[ending] = path.read_bytes()
    return found


@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".png", ".bmp", ".tif", ".jpg"])
def test_any_changed_bytes(ending, samples, tmp_path):
    content = samples[ending]

    @BOUNDED
    @given(place=st.integers(0, len(content) - 1), value=st.binary(min_size=1, max_size=3), cut=st.booleans())
    def changed(place, value, cut):
        rest = b"" if cut else content[place + len(value) :]
        nonlocal tried
        tried += 1
        assert is_read_or_named(tmp_path / f"a{ending}", content[:place] + value + rest)

    tried = 0
    changed()
    assert tried >= BOUNDED.max_examples


@BOUNDED
@given(content=st.binary(max_size=64), kind=st.sampled_from([b"II*\0", b"MM\0*", b"II+\0", b""]))
def test_any_tiff(tmp_path_factory, content, kind):
    path = tmp_path_factory.getbasetemp() / "a.tif"
    path.write_bytes(kind + struct.pack("<I", 8) + content)
    text = said(lambda: refuse_truncated(path))
    assert not text or text.startswith(f"{path}: ")


@BOUNDED
@given(field=st.sampled_from(FIELDS), value=JSON)
def test_any_description(field, value):
    description = parse_description(DESCRIPTION | {field: value}, Path("dataset.json"))
    for problem in description.problems:
        assert problem.message
        assert problem.file == "dataset.json"


TEXT = st.text(st.characters(), max_size=8)  # with halves of characters
PATHS = st.sampled_from(
    ["imagesTr/bad_0000.nii.gz", "labelsTr/bad.nii.gz", ".", "..", "/", "imagesTr", "b\0.nii.gz", "a\ud800.nii.gz",
     "i" * 5000, "i" * 5000 + ".nii.gz", "x/" * 3000 + ".nii.gz", "dataset.json", ".nii.gz", "cases.csv"]
)  # fmt: skip
VALUES = PATHS | TEXT | JSON
NAMES = ["image", "label", "images", "case", "name", "split", "text", "annotated", "attributes", "group"]
ENTRY = st.fixed_dictionaries({"image": VALUES, "images": st.lists(VALUES, max_size=2), "label": VALUES}) | (
    st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, VALUES | st.lists(PATHS, max_size=2)))
)
CONTENT = VALUES | st.lists(ENTRY | VALUES, max_size=3) | st.dictionaries(TEXT | PATHS, ENTRY | VALUES, max_size=3)
LISTS = ["training", "test", "cases", "dataset", "folder"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return sound(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("field", [*LISTS, *FIELDS])
def test_any_data_set(field, whole):
    """From the file to the table that is printed, with the files of the data set beside it."""

    @settings(BOUNDED, max_examples=40)
    @given(value=CONTENT, pairs=st.booleans())
    def described(value, pairs):
        start = {"training": [{"image": "imagesTr/bad_0000.nii.gz", "label": "labelsTr/bad.nii.gz"}]} if pairs else {}
        whole.file.write_text(json.dumps(DESCRIPTION | start | {field: value}))
        try:
            problems = draft_dataset(whole.folder).problems
        except UserError as error:
            problems = (Problem.of_error(error),)
        report = CheckReport("whole", 0, 0, problems)
        for told in (report.table(), *(str(problem.as_error()) for problem in problems)):
            assert told.encode()
            assert "i" * 1000 not in told
        assert all(problem.file for problem in problems)

        nonlocal tried
        tried += 1

    tried = 0
    described()
    assert tried >= 40


@BOUNDED
@example(content="x" * 2**18, start=True)  # more than the reader of tables takes for one field
@given(content=st.text(st.sampled_from('case,image\n"\r\t;\0 /x'), max_size=40), start=st.booleans())
def test_any_table(whole, content, start):
    whole.file.write_text(json.dumps(DESCRIPTION))
    path = whole.folder / "list.csv"
    path.write_text(("case,image,label\n" if start else "") + content)
    drafts = []
    text = said(lambda: drafts.append(draft_dataset(path)))
    assert text.startswith(f"{path}: ") if text else drafts[0].file == whole.file
    assert all(problem.file and problem.message for draft in drafts for problem in draft.problems)


@BOUNDED
@example(field="annotated", value={"x": [["q"]]})
@example(field="file_ending", value=5)
@given(field=st.sampled_from(["annotated", "file_ending", "labels", None]), value=CONTENT)
def test_any_description_to_evaluate_by(whole, field, value):
    path = whole.folder.parent / "evaluate.json"
    path.write_text(json.dumps(value if field is None else DESCRIPTION | {field: value}))
    folder = whole.folder / "labelsTr"
    found = []
    output = path.parent / "scores"
    text = said(
        lambda: found.append(evaluate(folder, folder, dataset_json=path, output=output, surface=False, workers=1))
    )
    assert "evaluate.json" in text or "case bad" in text or (not text and set(found[0].cases) == {"bad", "good"}), text


PLANS = make_plans("3d", channels=1, outputs=3).model_dump(mode="json")


def paths(content, before=()):
    yield before
    if isinstance(content, dict):
        for name, value in content.items():
            yield from paths(value, (*before, name))


@BOUNDED
@given(path=st.sampled_from([path for path in paths(PLANS) if path]), value=JSON)
def test_any_plans(path, value):
    content = json.loads(json.dumps(PLANS))
    inner = content
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    parsed = []
    text = said(lambda: parsed.append(parse(Plans, content, "plans.json")))
    assert text.startswith("plans.json: ") if text else parse(Plans, parsed[0].model_dump(mode="json"), "again")


@BOUNDED
@given(value=JSON)
def test_any_model(value):
    with pytest.raises(UserError, match=r"^model\.json: field "):
        parse(Model, value, "model.json")
