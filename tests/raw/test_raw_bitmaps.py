"""BMP and TIFF files that make ITK leave its memory, or never come back; found by fuzzing (benchmarks/fuzz.py)."""

import struct

import numpy as np
import pytest
import SimpleITK as sitk

from autoseg.errors import UserError
from autoseg.raw import read_image
from autoseg.raw.itk_files import read_header

CRASHED = bytes.fromhex(  # ended a process by writing behind its memory
    "424d010000000000011236040000280000000a00000006000000010008000100000048000000e8030000e8030000203c3c3c3c3c3c3c3c3c"
    "3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c0000000000000000004d014d4d4d4e01004e4e4d4f4f4f4d506e4d0200000000000000"
    "00714d7272720202024d4dd7"
)


def bitmap(path, *, header=40, bits=8, compression=0, rows_first=False, used=0, offset=None):
    """Write a BMP of 10 x 6 pixels whose values count up, and return them (Y, X)."""
    values = np.arange(60, dtype=np.uint8).reshape(6, 10)
    stored = values if rows_first else values[::-1]
    repeated = np.repeat(stored[..., None], bits // 8, axis=-1).reshape(6, -1)
    rows = b"".join(row.tobytes().ljust(-(-len(row) // 4) * 4, b"\0") for row in repeated)
    palette = b"".join(bytes((i, i, i, 0)) for i in range(256)) if bits == 8 else b""
    start = 14 + header + len(palette) if offset is None else offset
    height = -6 if rows_first else 6
    picture = struct.pack("<IiiHHIIiiII", header, 10, height, 1, bits, compression, len(rows), 1000, 1000, used, 0)
    size = 14 + header + len(palette) + len(rows)
    file = struct.pack("<2sIHHI", b"BM", size, 0, 0, start)
    path.write_bytes(file + picture.ljust(header, b"\0") + palette + rows)
    return values


@pytest.mark.parametrize("bits", [8, 24, 32])
@pytest.mark.parametrize("rows_first", [True, False])
def test_bitmaps_of_windows_are_read(tmp_path, bits, rows_first):
    values = bitmap(tmp_path / "a.bmp", bits=bits, rows_first=rows_first)
    channels = 1 if bits == 8 else 3
    image = read_image([tmp_path / "a.bmp"], channels=channels)
    np.testing.assert_array_equal(image.data[:, 0], np.stack([values] * channels))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"compression": 1}, r"is compressed \(kind 1\)"),
        ({"compression": 3, "bits": 32}, r"is compressed \(kind 3\)"),
        ({"header": 124, "bits": 24}, "a picture header of 124 bytes"),
        ({"used": 257}, "the palette of 257 colours does not fit"),
        ({"offset": 54}, "the palette of 256 colours does not fit"),
        ({"offset": 1079}, "truncated"),  # by one byte
        ({"offset": 2**31}, "truncated"),
    ],
)
def test_other_bitmaps_are_refused(tmp_path, how, said):
    bitmap(tmp_path / "a.bmp", **how)
    for read in (read_header, lambda path: read_image([path], channels=1)):
        with pytest.raises(UserError, match=said):
            read(tmp_path / "a.bmp")


@pytest.mark.parametrize("length", [2, 20, 53, len(CRASHED)])
def test_what_crashed_is_refused_before_it_is_read(tmp_path, length):
    (tmp_path / "a.bmp").write_bytes(CRASHED[:length])
    with pytest.raises(UserError, match=r"truncated|compressed"):
        read_header(tmp_path / "a.bmp")


def ring(path, *, pages, big):
    """Write a TIFF of some pages, the last one followed by the second (or the only one)."""
    count, word, entry, start = ("<Q", "<Q", 20, 16) if big else ("<H", "<I", 12, 8)
    head = b"II" + (struct.pack("<HHHQ", 43, 8, 0, start) if big else struct.pack("<HI", 42, start))
    size = struct.calcsize(count) + entry + struct.calcsize(word)
    content = head
    for page in range(pages):
        following = start + size * (page + 1 if page + 1 < pages else min(1, pages - 1))
        width = struct.pack("<HH" + word[1], 256, 4, 1) + struct.pack(word, 1)
        content += struct.pack(count, 1) + width + struct.pack(word, following)
    path.write_bytes(content)


@pytest.mark.parametrize("big", [True, False])
@pytest.mark.parametrize("pages", [1, 3])
def test_pages_that_go_in_a_circle_are_refused(tmp_path, pages, big):
    ring(tmp_path / "a.tif", pages=pages, big=big)
    with pytest.raises(UserError, match="refer to each other in a circle"):
        read_header(tmp_path / "a.tif")


def test_many_pages_that_end_are_read(tmp_path):
    values = np.arange(7 * 5 * 4, dtype=np.uint8).reshape(7, 5, 4)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / "a.tif"))
    np.testing.assert_array_equal(read_image([tmp_path / "a.tif"], channels=1).data[0], values)
