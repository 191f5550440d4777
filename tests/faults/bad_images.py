"""Faulty images, by name: how they are made, and what the message must say."""

import gzip
import os
import shutil
import struct

import nibabel
import numpy as np
import SimpleITK as sitk
from bad_data import Data, deep_colour_tiff, nifti_header, png
from PIL import Image as Picture


def spoil(array, value, count=3):
    array = array.astype(np.float32)
    array.flat[:count] = value
    return array


def flip(affine):
    affine[0] *= -1
    return affine


def turn(affine):
    return affine[:, [1, 0, 2, 3]]


def move(affine):
    affine[:3, 3] += 500
    return affine


def stretch(affine):
    affine[:3, 0] *= 1.5
    return affine


def second_channel(data: Data, write) -> None:
    data.describe(channel_names={"0": "T1", "1": "T2"})
    for case in ("good", "bad"):
        image = data.folder / "imagesTr" / f"{case}_0000.nii.gz"
        shutil.copy(image, image.with_name(f"{case}_0001.nii.gz"))
    write(data.image.with_name("bad_0001.nii.gz"))


def volume(path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)), str(path))


def picture(path, size=(40, 30), channels=1) -> None:
    array = np.random.default_rng(0).integers(0, 255, (*size, channels), dtype=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(array.squeeze(), isVector=channels > 1), str(path))


def bitmap(path, place, code, value) -> None:
    """Write a BMP one number of whose header is another."""
    picture(path)
    content = bytearray(path.read_bytes())
    struct.pack_into(code, content, place, value)
    path.write_bytes(content)


def endless(path) -> None:
    """Write a TIFF whose only page is followed by itself."""
    picture(path)
    content = bytearray(path.read_bytes())
    (page,) = struct.unpack_from("<I", content, 4)
    (entries,) = struct.unpack_from("<H", content, page)
    struct.pack_into("<I", content, page + 2 + 12 * entries, page)
    path.write_bytes(content)


def pages(path, second) -> None:
    """Write a TIFF of two pages, of 40 x 30 grey pixels and of the array `second`."""
    first = Picture.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30), dtype=np.uint8))
    first.save(path, save_all=True, append_images=[Picture.fromarray(second)])


def scale(data: Data, factor: float) -> None:
    """Change the spacing of the image and its label map, 1 mm, by a factor."""
    for path in (data.image, data.label):
        data.affine(path, lambda affine: affine @ np.diag([factor] * 3 + [1]))


def cut(path, write, share=0.6) -> None:
    write(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def text_volume(path, field) -> None:
    """An MHA whose header says something impossible."""
    volume(path)
    content = path.read_bytes()
    name = field.split(b" = ")[0]
    start = content.index(name + b" = ")
    path.write_bytes(content[:start] + field + content[content.index(b"\n", start) :])


def loop(data: Data) -> None:
    data.image.unlink()
    os.symlink(data.image.name, data.image)


def dangling(data: Data) -> None:
    data.image.unlink()
    os.symlink("nowhere.nii.gz", data.image)


def folder_instead(data: Data) -> None:
    data.image.unlink()
    data.image.mkdir()


def flip_bit(path, share=0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 4
    path.write_bytes(content)


# What is done to the case `bad` of a sound data set; what `autoseg check` must say.
IMAGES = {
    "an empty image file": (lambda d: d.image.write_bytes(b""), "the file is empty"),
    "a truncated gzip stream": (lambda d: d.image.write_bytes(d.image.read_bytes()[:9000]), "truncated"),
    "a flipped bit in a gzip stream": (lambda d: flip_bit(d.image), "gzip stream"),
    "text with the name of an image": (lambda d: d.image.write_text("hello"), "not a NIfTI file"),
    "a picture with the name of a volume": (lambda d: d.image.write_bytes(png(3, 3)), "not a NIfTI file"),
    "a header without the magic of NIfTI": (lambda d: d.header(d.image, magic=b""), "the header has the magic"),
    "a gzip stream of text": (lambda d: d.image.write_bytes(gzip.compress(b"x" * 999)), "not a NIfTI file"),
    "NaN voxels": (lambda d: d.voxels(d.image, lambda a: spoil(a, np.nan)), "3 NaN and 0 infinite"),
    "infinite voxels": (lambda d: d.voxels(d.image, lambda a: spoil(a, -np.inf)), "0 NaN and 3 infinite"),
    "voxels beyond single precision": (
        lambda d: d.voxels(d.image, lambda a: a.astype(np.float64) + 1e300, np.float64),
        "infinite",
    ),
    "complex voxels": (lambda d: d.voxels(d.image, lambda a: a, np.complex64), "complex64"),
    "an unknown voxel type": (lambda d: d.header(d.image, datatype=77), "header is damaged"),
    "zero spacing": (
        lambda d: d.header(d.image, pixdim=[1, 0, 1, 1, 0, 0, 0, 0], sform_code=0, qform_code=0),
        "spacing [0.0, 1.0",
    ),
    "a spacing below a nanometre": (lambda d: scale(d, 1e-7), "spacing is 1e-07 x 1e-07 x 1e-07 mm, beyond"),
    "a spacing of a kilometre": (lambda d: scale(d, 1e6), "spacing is 1e+06 x 1e+06 x 1e+06 mm, beyond"),
    "a NaN in the affine": (lambda d: d.header(d.image, srow_x=[np.nan, 0, 0, 0]), "no grid"),
    "an affine without volume": (lambda d: d.header(d.image, srow_y=[1, 0, 0, 0], srow_x=[1, 0, 0, 0]), "no grid"),
    "a negative size": (lambda d: d.header(d.image, dim=[3, -35, 40, 12, 1, 1, 1, 1]), "shape (-35, 40, 12)"),
    "a size of zero": (lambda d: d.header(d.image, dim=[3, 0, 40, 12, 1, 1, 1, 1]), "shape (0, 40, 12)"),
    "seven axes": (lambda d: d.header(d.image, dim=[7, 2, 2, 2, 2, 2, 2, 2]), "shape (2, 2, 2, 2, 2, 2, 2)"),
    "4D where 3D is meant": (lambda d: d.voxels(d.image, lambda a: np.stack([a, a], -1)), "2 channel(s)"),
    "a huge header with no data": (lambda d: d.image.write_bytes(nifti_header((30000, 30000, 30000))), "truncated"),
    "a huge compressed header with no data": (
        lambda d: d.image.write_bytes(gzip.compress(nifti_header((30000, 30000, 30000)))),
        "truncated",
    ),
    "a NIfTI-2 header beyond counting": (
        lambda d: d.image.write_bytes(nifti_header((2**40, 2**40, 2), second=True)),
        "truncated",
    ),
    "a gzip bomb behind a small header": (
        lambda d: d.image.write_bytes(gzip.compress(nifti_header((4, 4, 4)) + bytes(2**25))),
        "more than its header",
    ),
    "a folder with the name of an image": (folder_instead, "a folder with the name of a file"),
    "a link to itself": (loop, "the link leads to no file"),
    "a link to nothing": (dangling, "the link leads to no file"),
    "a missing channel": (
        lambda d: second_channel(d, lambda path: path.unlink()),
        "1 channel(s) in all, where 2 channel(s)",
    ),
    "a channel too many": (
        lambda d: shutil.copy(d.image, d.image.with_name("bad_0001.nii.gz")),
        "the file is channel 1, but 1 channel(s)",
    ),
    "channels on different grids": (
        lambda d: second_channel(d, lambda path: d.affine(path, stretch)),
        "the channels lie on different grids",
    ),
    "channels of different shapes": (
        lambda d: second_channel(d, lambda path: d.voxels(path, lambda a: a[2:])),
        "the channels lie on different grids",
    ),
    "a name without a channel number": (
        lambda d: d.image.rename(d.image.with_name("bad.nii.gz")),
        "the file name is not CASE_0000.nii.gz",
    ),
    "a truncated MHA": (lambda d: d.only(".mha", lambda path: cut(path, volume)), "truncated"),
    "a truncated NRRD": (lambda d: d.only(".nrrd", lambda path: cut(path, volume)), "cannot be read"),
    "an MHA with zero spacing": (
        lambda d: d.only(".mha", lambda path: text_volume(path, b"ElementSpacing = 0 1 1")),
        "spacing",
    ),
    "an MHA with infinite spacing": (
        lambda d: d.only(".mha", lambda path: text_volume(path, b"ElementSpacing = inf 1 1")),
        "spacing",
    ),
    "an MHA with a spacing of a thousand kilometres": (
        lambda d: d.only(".mha", lambda path: text_volume(path, b"ElementSpacing = 1e9 1 1")),
        "spacing is 1e+09 x 1 x 1 mm, beyond",
    ),
    "an MHA with axes in one plane": (
        lambda d: d.only(".mha", lambda path: text_volume(path, b"TransformMatrix = 1 0 0 1 0 0 0 0 1")),
        "nearly parallel",
    ),
    "a huge MHA with no data": (
        lambda d: d.only(".mha", lambda path: text_volume(path, b"DimSize = 60000 60000 60000")),
        "truncated",
    ),
    "an MHD that points at another file": (
        lambda d: d.only(
            ".mhd",
            lambda path: path.write_text(
                "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\n"
                "ElementDataFile = ../../secret.raw\n"
            ),
        ),
        "outside",
    ),
    "an NRRD that points at another file": (
        lambda d: d.only(
            ".nhdr",
            lambda path: path.write_text(
                "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 4 4\nencoding: raw\ndata file: /etc/hostname\n"
            ),
        ),
        "outside",
    ),
    "a truncated PNG": (lambda d: d.only(".png", lambda path: cut(path, picture)), "truncated"),
    "a truncated JPG": (lambda d: d.only(".jpg", lambda path: cut(path, picture)), "truncated"),
    "a truncated TIFF": (lambda d: d.only(".tif", lambda path: cut(path, picture)), "cannot be read"),
    "a TIFF whose pages go in a circle": (lambda d: d.only(".tif", endless), "refer to each other in a circle"),
    "a TIFF whose second page is smaller": (
        lambda d: d.only(".tif", lambda path: pages(path, np.zeros((20, 15), np.uint8))),
        "page 2 has width 15, the first one 30",
    ),
    "a TIFF whose second page has another depth": (
        lambda d: d.only(".tif", lambda path: pages(path, np.zeros((40, 30), np.uint16))),
        "page 2 has bits per sample 16, the first one 8",
    ),
    "a truncated BMP": (lambda d: d.only(".bmp", lambda path: cut(path, picture)), "truncated"),
    "a BMP whose voxels lie behind its end": (
        lambda d: d.only(".bmp", lambda path: bitmap(path, 10, "<I", 10**6)),
        "truncated",
    ),
    "a compressed BMP": (lambda d: d.only(".bmp", lambda path: bitmap(path, 30, "<I", 1)), "is compressed (kind 1)"),
    "a BMP of OS/2": (lambda d: d.only(".bmp", lambda path: bitmap(path, 14, "<I", 12)), "header of 12 bytes"),
    "a BMP with a palette of a million colours": (
        lambda d: d.only(".bmp", lambda path: bitmap(path, 46, "<I", 10**6)),
        "the palette of 1000000 colours does not fit",
    ),
    "a PNG of a thousand million pixels without them": (
        lambda d: d.only(".png", lambda path: path.write_bytes(png(40000, 40000))),
        "1.5 GiB",
    ),
    "colour of 10 bits": (lambda d: d.only(".tif", lambda path: path.write_bytes(deep_colour_tiff())), "10"),
    "a colour picture where grey is meant": (
        lambda d: d.only(".png", lambda path: picture(path, channels=3)),
        "1 file(s) with 3 channel(s)",
    ),
    "a format that is not supported": (
        lambda d: d.only(".gif", lambda path: path.write_bytes(b"GIF89a")),
        "the format is not supported",
    ),
}


def thin(data: Data) -> None:
    """One voxel along one axis, in image and label map."""
    for path in (data.image, data.label):
        data.voxels(path, lambda a: a[:1])


def second_place(data: Data) -> None:
    """Put the image 25 mm to the right by its qform."""
    x, y, z = nibabel.load(data.image).affine[:3, 3]
    data.header(data.image, qform_code=2, qoffset_x=x + 25, qoffset_y=y, qoffset_z=z)


# What is worth a warning, or is legal and told nothing: `autoseg check` ends with 0.
IMAGES_TAKEN = {
    "the same value everywhere": (lambda d: d.voxels(d.image, lambda a: a * 0 + 7), "all voxels have the value 7"),
    "the same image twice": (
        lambda d: (
            shutil.copy(d.folder / "imagesTr" / "good_0000.nii.gz", d.image)
            and d.label.write_bytes((d.folder / "labelsTr" / "good.nii.gz").read_bytes())
        ),
        "the same image as case bad",
    ),
    "an axis of one voxel": (thin, ""),
    "a header that gives two places": (
        second_place,
        "the sform (code 2), which is used, as by ITK, and the qform (code 2), by which corners are up to 25.00 mm",
    ),
    "a second place that is none": (
        lambda d: d.header(d.image, qform_code=2, quatern_d=np.nan),
        "the qform (code 2), which is no place at all",
    ),
    "a spacing of a tenth of a micrometre": (lambda d: scale(d, 1e-4), "perhaps the unit of length is wrong"),
    "millimetres that are said to be metres": (
        lambda d: [d.header(path, xyzt_units=1) for path in (d.image, d.label)],
        "the spacing is 1000 x 1000 x 1000 mm",
    ),
    "a TIFF stack without spacing": (lambda d: d.only(".tif", volume), "nothing says what spacing this stack has"),
    "a volume of one voxel": (
        lambda d: [d.voxels(path, lambda a: a[:1, :1, :1]) for path in (d.image, d.label)],
        "all voxels have the value",
    ),
    "big-endian voxels": (
        lambda d: nibabel.save(
            nibabel.Nifti1Image(
                np.asarray(nibabel.load(d.image).dataobj).copy(),
                nibabel.load(d.image).affine,
                nibabel.Nifti1Header(endianness=">"),
            ),
            d.image,
        ),
        "",
    ),
    "bytes behind the voxels": (
        lambda d: d.image.write_bytes(gzip.compress(gzip.decompress(d.image.read_bytes()) + b"x" * 100)),
        "",
    ),
}
