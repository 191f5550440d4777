"""The pages of a TIFF are slices if they are of one kind; ITK would cut the others, or read noise."""

import struct

import numpy as np
import pytest
from PIL import Image as Picture

from autoseg.errors import UserError
from autoseg.raw import read_image
from autoseg.raw.itk_files import read_header


def pixels(*shape, kind=np.uint8):
    return np.random.default_rng(0).integers(0, 200, shape).astype(kind)


def save(path, first, second, **options):
    Picture.fromarray(first).save(path, save_all=True, append_images=[Picture.fromarray(second)], **options)
    return path


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)])
def test_equal_pages_are_the_slices_of_a_volume(tmp_path, shape, compression):
    one, two = pixels(*shape), pixels(*shape)[::-1].copy()
    path = save(tmp_path / "a.tif", one, two, compression=compression)
    channels = 3 if len(shape) == 3 else 1
    data = read_image([path], channels=channels).data
    for index, page in enumerate((one, two)):
        np.testing.assert_array_equal(data[:, index], np.moveaxis(page.reshape(20, 30, channels), -1, 0))


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (pixels(20, 15), "page 2 has width 15, the first one 30"),
        (pixels(40, 30), "page 2 has height 40, the first one 20"),
        (pixels(20, 30, kind=np.uint16), "page 2 has bits per sample 16, the first one 8"),
        (pixels(20, 30, 3), "page 2 has bits per sample 8, 8, 8, the first one 8"),
    ],
)
def test_pages_of_another_kind_are_refused(tmp_path, second, said):
    path = save(tmp_path / "a.tif", pixels(20, 30), second)
    for read in (read_header, lambda path: read_image([path], channels=1)):
        with pytest.raises(UserError, match=rf"a\.tif: {said}; the pages of a volume are all of one kind") as caught:
            read(path)
        assert "a file of its own" in caught.value.mend


@pytest.mark.parametrize("use", [1, 4])
def test_previews_and_masks_beside_a_picture_are_no_slices(tmp_path, use):
    picture = pixels(20, 30)
    path = save(tmp_path / "a.tif", picture, pixels(10, 15), tiffinfo={254: use})
    content = bytearray(path.read_bytes())
    (page,) = struct.unpack_from("<I", content, 4)
    assert struct.unpack_from("<H", content, page + 2) == (254,)
    struct.pack_into("<I", content, page + 10, 0)  # the first page is the picture itself
    path.write_bytes(content)
    image = read_image([path], channels=1)
    assert image.geometry.dims == 2
    np.testing.assert_array_equal(image.data[0, 0], picture)
