"""Headers that name other files, do not end, or count without end: nothing outside of their folder is read."""

import numpy as np
import pytest

from autoseg.errors import UserError
from autoseg.raw import read_image

META = "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\n"
HEAD = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 4 4\nencoding: raw\n"
LOCAL = "ElementDataFile = LOCAL\n"
SLICES = "".join(f"../s{z}.raw\n" for z in range(1, 5))
LONG = "x" * 200 + "\n"
ELSEWHERE = {
    "a parent": (".mhd", META + "ElementDataFile = ../secret.raw\n"),
    "a parent, attached": (".mha", META + "ElementDataFile = ../secret.raw\n"),
    "a way round": (".mhd", META + "ElementDataFile = x/../../secret.raw\n"),
    "an absolute path": (".mhd", META + "ElementDataFile = {place}/secret.raw\n"),
    "a list": (".mhd", META + "ElementDataFile = LIST\n" + SLICES),
    "a list with its axes": (".mhd", META + "ElementDataFile = LIST 2\n" + SLICES),
    "a pattern": (".mhd", META + "ElementDataFile = ../s%d.raw 1 4 1\n"),
    "a colon": (".mhd", META + "ElementDataFile : ../secret.raw\n"),
    "two signs": (".mhd", META + "ElementDataFile == ../secret.raw\n"),
    "a sign in the next line": (".mhd", META + "ElementDataFile\n= ../secret.raw\n"),
    "an empty line": (".mhd", META + "\nElementDataFile = ../secret.raw\n"),
    "comments": (".mhd", META + f"Comment = {LONG}" * 400 + "ElementDataFile = ../secret.raw\n"),
    "a link": (".mhd", META + "ElementDataFile = link.raw\n"),
    "a folder that is a link": (".mhd", META + "ElementDataFile = up/secret.raw\n"),
    "an end that is none": (".mha", META + "Foo\n" + LOCAL + "ElementDataFile = ../secret.raw\n"),
    "an end behind an empty line": (".mha", META + "Foo\n\n" + LOCAL + "ElementDataFile = ../secret.raw\n"),
    "an end in a long line": (".mha", META + f"Color = 1{' ' * 600}\n" + LOCAL + "ElementDataFile = ../secret.raw\n"),
    "an end behind a return": (".mha", META + "Comment =\r" + LOCAL + "ElementDataFile = ../secret.raw\n"),
    "a name": (".nhdr", HEAD + "data file: ../secret.raw\n"),
    "a name in one word": (".nhdr", HEAD + "datafile: ../secret.raw\n"),
    "capitals": (".nrrd", HEAD + "Data File: ../secret.raw\n\n"),
    "returns": (".nhdr", HEAD.replace("\n", "\r\n") + "data file: ../secret.raw\r\n"),
    "a lone return": (".nhdr", HEAD + "# x\rdata file: ../secret.raw\n"),
    "slices": (".nhdr", HEAD + "data file: LIST\n" + SLICES),
    "slices by a pattern": (".nhdr", HEAD + "data file: ../s%d.raw 1 4 1 2\n"),
    "many remarks": (".nhdr", HEAD + f"# {LONG}" * 400 + "data file: ../secret.raw\n"),
    "a linked file": (".nhdr", HEAD + "data file: link.raw\n"),
    "the standard input": (".nhdr", HEAD + "data file: -\n"),
}


@pytest.fixture
def inside(tmp_path):
    """A folder with `beside.raw`, and links to what lies outside of it."""
    for name in ("secret", *(f"s{z}" for z in range(1, 5))):
        (tmp_path / f"{name}.raw").write_bytes(bytes(range(64)))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "link.raw").symlink_to("../secret.raw")
    (folder / "up").symlink_to("..")
    (folder / "beside.raw").write_bytes(bytes(range(64)))
    return folder


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_a_header_does_not_read_files_elsewhere(inside, kind):
    ending, text = ELSEWHERE[kind]
    path = inside / f"image{ending}"
    path.write_bytes(text.replace("{place}", str(inside.parent)).encode())
    with pytest.raises(UserError, match=r"outside of its folder|several files") as caught:
        read_image([path], channels=1)
    assert str(path) in str(caught.value)
    assert caught.value.mend


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.mhd", META + "ElementDataFile = beside.raw\n"),
        ("a.mhd", META + "Comment =\n\nElementDataFile : beside.raw\n"),
        ("a.nhdr", HEAD + "data file: beside.raw\n"),
        ("a.nhdr", HEAD + "# data file: ../secret.raw\ndata file: ./beside.raw\n"),
        ("a.mha", META + LOCAL),
        ("a.mhd", META + "Comment = ElementDataFile\n" + LOCAL),
        ("a.nrrd", HEAD + "\n"),
        ("a.nrrd", HEAD + f"# {LONG}" * 2000 + "\n"),
    ],
)
def test_a_header_reads_its_own_voxels(inside, name, text):
    own = bytes(range(64)) if name.endswith(("a", "d")) and "beside" not in text else b""
    (inside / name).write_bytes(text.encode() + own)
    np.testing.assert_array_equal(read_image([inside / name], channels=1).data.ravel(), np.arange(64))


def test_a_header_and_its_voxels_may_be_linked_together(inside, tmp_path):
    (inside / "a.mhd").write_text(META + "ElementDataFile = beside.raw\n")
    (tmp_path / "links").mkdir()
    for name in ("a.mhd", "beside.raw"):
        (tmp_path / "links" / name).symlink_to(inside / name)
    data = read_image([tmp_path / "links" / "a.mhd"], channels=1).data
    np.testing.assert_array_equal(data.ravel(), np.arange(64))


@pytest.mark.parametrize(
    ("name", "line"), [("a.mhd", f"Comment = {LONG}"), ("a.mha", f"Comment = {LONG}"), ("a.nhdr", f"# {LONG}")]
)
def test_a_header_without_end_is_refused(inside, name, line):
    last = "data file: ../secret.raw\n" if name == "a.nhdr" else "ElementDataFile = ../secret.raw\n"
    start = HEAD if name == "a.nhdr" else META
    (inside / name).write_text(start + line * (2**20 // len(line) + 1) + last)
    with pytest.raises(UserError, match="does not end within 1024 KiB"):
        read_image([inside / name], channels=1)


@pytest.mark.parametrize("axes", ["-1", "0", "11", "1e9", ""])
def test_a_header_with_impossible_axes_is_refused(inside, axes):
    """MetaIO counts from -1 without end."""
    (inside / "a.mha").write_text(META.replace("NDims = 3", f"NDims = {axes}") + LOCAL)
    with pytest.raises(UserError, match=r"a\.mha: "):
        read_image([inside / "a.mha"], channels=1)
