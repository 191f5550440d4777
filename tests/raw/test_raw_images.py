"""Reading and writing images and label maps in every format, on exactly the same grid."""

import gzip
import itertools
import struct
import tracemalloc

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from autoseg.errors import UserError
from autoseg.raw import (
    probability_ending,
    read_geometry,
    read_image,
    read_label,
    write_label,
    write_probabilities,
)
from autoseg.raw.palettes import has_grey_palette

AFFINE = np.array([[1.0, 0, 0, -20], [0, 0.7, 0, 5.5], [0, 0, 3.3, 101], [0, 0, 0, 1]])


def voxels(*shape, kind=np.int16):
    return np.random.default_rng(0).integers(0, 200, shape).astype(kind)


def save_nifti(path, array_xyz, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(array_xyz, affine), path)
    return path


def orientations():
    """All 48 ways to put the axes of an array along the axes of the room."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            matrix = np.eye(4)
            matrix[:3, :3] = np.eye(3)[list(order)] * np.array(signs) * (0.9, 1.1, 2.5)
            matrix[:3, 3] = (3.25, -17.5, 40.125)
            yield matrix


def oblique():
    angle = np.radians(23)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    tilt = turn[[2, 0, 1]][:, [2, 0, 1]]
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ tilt * (0.5, 0.6, 4.0)
    matrix[:3, 3] = (-90.1, 33.3, 12.7)
    return matrix


def test_nifti_is_read_as_simpleitk_reads_it(tmp_path):
    array = voxels(5, 6, 7)
    for matrix in [*orientations(), oblique()]:
        path = save_nifti(tmp_path / "a_0000.nii.gz", array, matrix)
        image = read_image([path], channels=1)
        reference = sitk.ReadImage(str(path))
        assert np.array_equal(image.data[0], sitk.GetArrayFromImage(reference))
        assert image.data.dtype == np.float32
        geometry = image.geometry
        assert geometry.size == (7, 6, 5)
        assert geometry.spacing[::-1] == pytest.approx(reference.GetSpacing(), rel=1e-6)
        assert geometry.origin == pytest.approx(reference.GetOrigin(), abs=1e-5)
        assert geometry.direction == pytest.approx(reference.GetDirection(), abs=1e-6)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr"])
def test_written_label_lies_exactly_on_the_image(tmp_path, ending):
    label = voxels(7, 6, 5, kind=np.uint8)
    for number, matrix in enumerate([*orientations(), oblique()]):
        image = save_nifti(tmp_path / "image_0000.nii.gz", voxels(5, 6, 7), matrix)
        geometry = read_geometry(image)
        write_label(tmp_path / f"label{ending}", label, geometry)
        written, grid = read_label(tmp_path / f"label{ending}")
        assert np.array_equal(written, label)
        assert written.dtype == np.uint8
        assert grid.spacing == pytest.approx(geometry.spacing, rel=1e-6)
        assert grid.corners == pytest.approx(geometry.corners, abs=1e-4)
        if number in (0, 48):
            reference, mine = sitk.ReadImage(str(image)), sitk.ReadImage(str(tmp_path / f"label{ending}"))
            assert mine.GetDirection() == pytest.approx(reference.GetDirection(), abs=1e-6)
            assert mine.GetOrigin() == pytest.approx(reference.GetOrigin(), abs=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"image_0000.nii.gz", f"label{ending}"}  # the voxels within


def test_nifti_forms_are_copied_bit_for_bit(tmp_path):
    image = nibabel.Nifti1Image(voxels(4, 5, 6), AFFINE)
    image.set_sform(oblique(), code=2)
    image.set_qform(AFFINE, code=1)
    nibabel.save(image, tmp_path / "a.nii.gz")
    geometry = read_geometry(tmp_path / "a.nii.gz")
    assert geometry.spacing == pytest.approx((3.3, 0.7, 1.0))  # ITK's choice: the form that speaks of the scanner
    write_label(tmp_path / "b.nii.gz", voxels(6, 5, 4, kind=np.uint8), geometry)
    source, copy = (nibabel.load(tmp_path / name).header for name in ("a.nii.gz", "b.nii.gz"))
    for name in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x", "pixdim"):
        assert np.array_equal(np.atleast_1d(source[name])[:4], np.atleast_1d(copy[name])[:4]), name


def test_sheared_affine_survives(tmp_path):
    matrix = AFFINE.copy()
    matrix[0, 1] = 0.2
    image = nibabel.Nifti1Image(voxels(4, 5, 6), None)
    image.set_sform(matrix, code=1)
    nibabel.save(image, tmp_path / "a.nii.gz")
    (tmp_path / "gone").mkdir()
    geometry = read_geometry(tmp_path / "a.nii.gz")
    write_label(tmp_path / "b.nii.gz", voxels(6, 5, 4, kind=np.uint8), geometry)
    assert nibabel.load(tmp_path / "b.nii.gz").affine == pytest.approx(matrix, abs=1e-6)


def test_geometry_does_not_need_the_source(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", voxels(4, 5, 6), oblique())
    geometry = read_geometry(path)
    path.unlink()
    write_label(tmp_path / "b.nii.gz", voxels(6, 5, 4, kind=np.uint8), geometry)
    assert nibabel.load(tmp_path / "b.nii.gz").affine == pytest.approx(oblique(), abs=1e-5)


def test_header_without_forms_is_read_as_itk_does(tmp_path):
    image = nibabel.Nifti1Image(voxels(4, 5, 6), None)
    image.header.set_zooms((1, 2, 3))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "a.nii")
    geometry = read_geometry(tmp_path / "a.nii")
    assert (geometry.spacing, geometry.origin) == ((3, 2, 1), (0, 0, 0))
    assert geometry.direction == (1, 0, 0, 0, 1, 0, 0, 0, 1)


def test_big_endian_and_nifti2(tmp_path):
    array = voxels(4, 5, 6)
    swapped = nibabel.Nifti1Image(array, AFFINE, nibabel.Nifti1Header(endianness=">"))
    nibabel.save(swapped, tmp_path / "a.nii")
    nibabel.save(nibabel.Nifti2Image(array, AFFINE), tmp_path / "b.nii.gz")
    for name in ("a.nii", "b.nii.gz"):
        assert np.array_equal(read_image([tmp_path / name], channels=1).data[0], array.T)


def test_scaled_voxels(tmp_path):
    image = nibabel.Nifti1Image(voxels(4, 5, 6), AFFINE)
    nibabel.save(image, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[112:120] = np.array([0.5, -10], dtype="<f4").tobytes()  # scl_slope, scl_inter
    (tmp_path / "a.nii").write_bytes(content)
    assert np.array_equal(read_image([tmp_path / "a.nii"], channels=1).data[0], voxels(4, 5, 6).T * 0.5 - 10)


def test_4d_and_rgb_nifti_hold_channels(tmp_path):
    array = voxels(4, 5, 6, 2)
    save_nifti(tmp_path / "a.nii.gz", array)
    image = read_image([tmp_path / "a.nii.gz"], channels=2)
    assert np.array_equal(image.data, array.T)
    rgb = np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb["G"] = voxels(4, 5, 6, kind=np.uint8)
    save_nifti(tmp_path / "b.nii", rgb)
    image = read_image([tmp_path / "b.nii"], channels=3)
    assert np.array_equal(image.data[1], rgb["G"].T)
    assert not image.data[0].any()


def test_2d_nifti_is_one_slice(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", voxels(4, 5), np.diag([0.5, 2.0, 1, 1]))
    image = read_image([path], channels=1)
    assert image.data.shape == (1, 1, 5, 4)
    assert image.geometry.spacing == (1998.0, 2.0, 0.5)
    assert image.geometry.dims == 2
    write_label(tmp_path / "b.nii.gz", voxels(1, 5, 4, kind=np.uint8), image.geometry)
    written = nibabel.load(tmp_path / "b.nii.gz")
    assert written.shape == (4, 5)
    assert written.affine == pytest.approx(np.diag([0.5, 2.0, 1, 1]))


def test_single_slice_volume_stays_a_volume(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", voxels(4, 5, 1))
    geometry = read_geometry(path)
    assert (geometry.dims, geometry.size, geometry.spacing) == (3, (1, 5, 4), pytest.approx((3.3, 0.7, 1.0)))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_pictures_round_trip(tmp_path, name):
    label = voxels(1, 9, 7, kind=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(label[0]), str(tmp_path / f"image_{name}"))
    image = read_image([tmp_path / f"image_{name}"], channels=1)
    assert np.array_equal(image.data[0], label)
    assert (image.geometry.spacing, image.geometry.dims) == ((999.0, 1.0, 1.0), 2)
    write_label(tmp_path / name, label.astype(np.int64), image.geometry)
    written, _ = read_label(tmp_path / name)
    assert written.dtype == np.uint8
    assert np.array_equal(written, label)


def test_colour_and_depth_of_pictures(tmp_path):
    rng = np.random.default_rng(1)
    rgba = rng.integers(0, 256, (9, 7, 4)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(rgba, isVector=True), str(tmp_path / "rgba.png"))
    image = read_image([tmp_path / "rgba.png"], channels=3)
    assert np.array_equal(image.data[:, 0], np.moveaxis(rgba[..., :3], -1, 0))  # alpha is dropped
    assert read_image([tmp_path / "rgba.png"], channels=4).data.shape == (4, 1, 9, 7)  # unless it is asked for
    grey = rng.integers(0, 65536, (9, 7)).astype(np.uint16)
    for name in ("grey.png", "grey.tif"):
        sitk.WriteImage(sitk.GetImageFromArray(grey), str(tmp_path / name))
        assert np.array_equal(read_image([tmp_path / name], channels=1).data[0, 0], grey)
    with pytest.raises(UserError, match=r"rgba\.png.*3 channel\(s\).*1 channel\(s\) are declared"):
        read_image([tmp_path / "rgba.png"], channels=1)
    with pytest.raises(UserError, match="different channels"):
        read_label(tmp_path / "rgba.png")


def test_palettes(tmp_path):
    from PIL import Image as Picture

    indices = voxels(9, 7, kind=np.uint8) % 3
    for name, colours in (("grey.png", (0, 0, 0, 1, 1, 1, 2, 2, 2)), ("colour.png", (0, 0, 0, 255, 0, 0, 0, 255, 0))):
        picture = Picture.frombytes("P", (7, 9), indices.tobytes())
        picture.putpalette(colours)
        picture.save(tmp_path / name)
    assert np.array_equal(read_image([tmp_path / "grey.png"], channels=1).data[0, 0], indices)
    assert np.array_equal(read_label(tmp_path / "grey.png")[0][0], indices)
    assert read_image([tmp_path / "colour.png"], channels=3).data.shape == (3, 1, 9, 7)
    with pytest.raises(UserError, match="palette"):
        read_label(tmp_path / "colour.png")


@pytest.mark.parametrize(
    ("qfac", "quaternion"),
    [(1, (0.1, 0.2, 0.3)), (-1, (0.5, 0.5, 0.5)), (0, (0.1, -0.2, 0.3)), (7, (0, 0, 0)), (-3, (0.9, 0.9, 0.1)),
     (1, (0, 0, 1.5))],
)  # fmt: skip
def test_odd_quaternions_are_read_as_itk_reads_them(tmp_path, qfac, quaternion):
    path = save_nifti(tmp_path / "a.nii", voxels(4, 5, 6))
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, 76, qfac)
    struct.pack_into("<hh6f", content, 252, 1, 0, *quaternion, 11, -12, 13)
    path.write_bytes(content)
    ours, theirs = read_geometry(path), sitk.ReadImage(str(path))
    assert ours.spacing == pytest.approx(theirs.GetSpacing()[::-1], rel=1e-5)
    assert ours.origin == pytest.approx(theirs.GetOrigin(), abs=1e-4)
    assert ours.direction == pytest.approx(theirs.GetDirection(), abs=1e-5)


def patched(path, *changes):
    """Write a NIfTI file of 4 x 5 x 6 voxels with (offset, format, values) put into its header."""
    content = bytearray(save_nifti(path, voxels(4, 5, 6), oblique()).read_bytes())
    for offset, form, *values in changes:
        struct.pack_into(form, content, offset, *values)
    path.write_bytes(content)
    return path


ITK_SCALES_ORIGINS = (sitk.Version.MajorVersion(), sitk.Version.MinorVersion()) >= (2, 5)  # 2.3 forgot them


@pytest.mark.parametrize("units", [0, 1, 2, 3, 4, 1 + 8, 3 + 16])
@pytest.mark.parametrize("forms", [(1, 0), (0, 1), (0, 0)])
def test_units_of_length_are_read_as_itk_reads_them(tmp_path, units, forms):
    changes = (123, "<B", units), (252, "<hh", *forms)
    path = patched(tmp_path / "a.nii", *changes)
    ours, theirs = read_geometry(path), sitk.ReadImage(str(path))
    assert ours.spacing == pytest.approx(theirs.GetSpacing()[::-1], rel=1e-5)
    if units % 8 == 2 or ITK_SCALES_ORIGINS:
        assert ours.origin == pytest.approx(theirs.GetOrigin(), rel=1e-5, abs=1e-6)
    assert ours.direction == pytest.approx(theirs.GetDirection(), abs=1e-5)
    write_label(tmp_path / "b.nii", voxels(6, 5, 4, kind=np.uint8), ours)
    assert sitk.ReadImage(str(tmp_path / "b.nii")).GetSpacing() == theirs.GetSpacing()


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("slope", "inter"),
    [(0, 5), (0, 0), (1, 5), (NAN, 5), (INF, 5), (1, NAN), (0, NAN), (-1, 0), (0, INF), (1e-17, 5), (2, 0), (0.5, 3)],
)
def test_odd_scaling_is_read_as_itk_reads_it(tmp_path, slope, inter):
    path = patched(tmp_path / "a.nii", (112, "<ff", slope, inter))
    ours, theirs = read_image([path], channels=1).data[0], sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    assert np.array_equal(ours, theirs.astype(np.float32))


@pytest.mark.parametrize("offset", [0, 348, 351])
def test_voxels_do_not_begin_within_the_header(tmp_path, offset):
    """ITK would read them one voxel too early, without a word."""
    path = patched(tmp_path / "a.nii", (108, "<f", offset))
    with pytest.raises(UserError, match=rf"a\.nii: .* begin at byte {offset} .* at 352 or later"):
        read_image([path], channels=1)


@pytest.mark.parametrize("tilt", [0.0, 1e-7, 5e-3])
def test_axes_that_are_nearly_parallel_are_told(tmp_path, tilt):
    rows = (1, 1, 0, 0, 1, 1 + tilt, 0, 0, 0, 0, 1, 0)
    path = patched(tmp_path / "a.nii", (252, "<hh", 0, 1), (280, "<12f", *rows))
    with pytest.raises(UserError, match=r"a\.nii: the axes that the header gives are nearly parallel"):
        read_image([path], channels=1)
    with pytest.raises(UserError, match="nearly parallel"):
        read_geometry(path)


@pytest.mark.parametrize(("ending", "place"), [("png", b"PLTE"), ("bmp", None)])
def test_a_palette_that_claims_billions_of_colours_costs_no_memory(tmp_path, ending, place):
    from PIL import Image as Picture

    path = tmp_path / f"a.{ending}"
    Picture.frombytes("P", (7, 9), bytes(63)).save(path)
    content = bytearray(path.read_bytes())
    if place:
        at = content.index(place) - 4
        content[at : at + 4] = struct.pack(">I", 2**32 - 1)
    else:
        content[46:50] = struct.pack("<I", 2**32 - 1)
    path.write_bytes(content)
    tracemalloc.start()
    assert not has_grey_palette(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_an_axis_without_voxels_is_told(tmp_path):
    path = tmp_path / "a.mha"
    header = "ObjectType = Image\nNDims = 3\nDimSize = 4 0 4\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    path.write_bytes(header.encode() + bytes(9))
    with pytest.raises(UserError, match=r"a\.mha: the file has an axis without voxels: its size is \(4, 0, 4\)"):
        read_image([path], channels=1)


def test_tiff_stack_takes_its_spacing_from_the_sidecar(tmp_path):
    stack = voxels(3, 9, 7, kind=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(stack), str(tmp_path / "a_0000.tif"))
    assert read_geometry(tmp_path / "a_0000.tif").spacing == (1, 1, 1)
    (tmp_path / "a.json").write_text('{"spacing": [5, 0.5, 0.25]}')
    image = read_image([tmp_path / "a_0000.tif"], channels=1)
    assert image.geometry.spacing == (5, 0.5, 0.25)
    assert np.array_equal(image.data[0], stack)
    write_label(tmp_path / "out" / "a.tif", stack, image.geometry)
    assert read_label(tmp_path / "out" / "a.tif")[1].spacing == (5, 0.5, 0.25)
    (tmp_path / "a.json").write_text('{"spacing": 3}')
    with pytest.raises(UserError, match=r"a\.json"):
        read_geometry(tmp_path / "a_0000.tif")


def test_vector_mha_and_2d_mha(tmp_path):
    array = voxels(3, 4, 5, 2)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / "a.mha"))
    assert np.array_equal(read_image([tmp_path / "a.mha"], channels=2).data, np.moveaxis(array, -1, 0))
    flat = sitk.GetImageFromArray(voxels(4, 5))
    flat.SetSpacing((0.5, 2.0))
    flat.SetDirection((0, 1, -1, 0))
    sitk.WriteImage(flat, str(tmp_path / "b.mha"))
    geometry = read_geometry(tmp_path / "b.mha")
    assert (geometry.dims, geometry.size, geometry.spacing) == (2, (1, 4, 5), (1998.0, 2.0, 0.5))
    write_label(tmp_path / "c.mha", voxels(1, 4, 5, kind=np.uint8), geometry)
    written = sitk.ReadImage(str(tmp_path / "c.mha"))
    assert (written.GetSpacing(), written.GetDirection()) == ((0.5, 2.0), (0, 1, -1, 0))


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.mha", "a.nrrd", "a.png", "a.jpg", "a.tif"])
def test_every_truncated_format_is_detected(tmp_path, name):
    path = tmp_path / name
    array = voxels(60, 50, 8, kind=np.uint8)
    if ".nii" in name:
        save_nifti(path, array)
    else:
        flat = name.endswith((".png", ".jpg"))
        sitk.WriteImage(sitk.GetImageFromArray(array[:, :, 0] if flat else array), str(path))
    read_image([path], channels=1)
    content = path.read_bytes()
    for share in (0.3, 0.6, 0.95):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            read_image([path], channels=1)


def test_damaged_gzip_and_foreign_files(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", voxels(20, 20, 20))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.nii\.gz"):
        read_image([path], channels=1)
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(b"no header" * 100))
    (tmp_path / "c.nii.gz").write_bytes(b"")
    (tmp_path / "d.png").write_bytes(b"text")
    for name in ("b.nii.gz", "c.nii.gz", "d.png", "e.nii", "f.mha", "g.xyz"):
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            read_image([tmp_path / name], channels=1)


def test_uncompressed_file_with_a_compressed_name(tmp_path):
    save_nifti(tmp_path / "a.nii", voxels(4, 5, 6))
    (tmp_path / "a.nii").rename(tmp_path / "a.nii.gz")
    assert read_image([tmp_path / "a.nii.gz"], channels=1).data.shape == (1, 6, 5, 4)


def test_channels_must_share_the_grid(tmp_path):
    one = save_nifti(tmp_path / "a_0000.nii.gz", voxels(4, 5, 6))
    two = save_nifti(tmp_path / "a_0001.nii.gz", voxels(4, 5, 6), AFFINE + 0.001)
    assert read_image([one, two], channels=2).data.shape == (2, 6, 5, 4)  # within the tolerance
    save_nifti(two, voxels(4, 5, 6), AFFINE @ np.diag([2, 1, 1, 1]))
    with pytest.raises(UserError, match=r"a_0001.*different grids"):
        read_image([one, two], channels=2)
    save_nifti(two, voxels(4, 5, 7))
    with pytest.raises(UserError, match=r"a_0001.*different grids"):
        read_image([one, two], channels=2)
    with pytest.raises(UserError, match="2 channel"):
        read_image([one], channels=2)


def test_label_types(tmp_path):
    save_nifti(tmp_path / "a.nii.gz", np.array([[[0.0, 2.0, 1.0]]]))
    label, _ = read_label(tmp_path / "a.nii.gz")
    assert label.dtype == np.int32
    assert label.ravel().tolist() == [0, 2, 1]
    save_nifti(tmp_path / "b.nii.gz", np.array([[[0.0, 1.5, 1.0]]]))
    with pytest.raises(UserError, match=r"b\.nii\.gz.*1 voxel.*1\.5"):
        read_label(tmp_path / "b.nii.gz")
    save_nifti(tmp_path / "c.nii.gz", np.array([[[0.0, np.nan, 1.0]]]))
    with pytest.raises(UserError, match="not integers, such as nan"):
        read_label(tmp_path / "c.nii.gz")
    geometry = read_geometry(tmp_path / "a.nii.gz")
    for value in (-5, 300, 70000):
        array = np.full(geometry.size, value, dtype=np.int64)
        write_label(tmp_path / "d.nii.gz", array, geometry)
        assert np.array_equal(read_label(tmp_path / "d.nii.gz")[0], array)
    write_label(tmp_path / "d.nii.gz", array > 0, geometry)
    assert read_label(tmp_path / "d.nii.gz")[0].max() == 1


def test_what_a_picture_cannot_hold(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(voxels(4, 5, kind=np.uint8)), str(tmp_path / "a.png"))
    geometry = read_geometry(tmp_path / "a.png")
    label = np.full((1, 4, 5), 300, dtype=np.int16)
    write_label(tmp_path / "b.png", label, geometry)
    assert np.array_equal(read_label(tmp_path / "b.png")[0], label)
    for name, wrong in (("c.png", -label), ("c.jpg", label), ("c.bmp", label)):
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            write_label(tmp_path / name, wrong, geometry)
    with pytest.raises(ValueError, match="shape"):
        write_label(tmp_path / "c.png", label[:, :3], geometry)
    assert not list(tmp_path.glob("c.*"))


def test_probabilities(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", voxels(4, 5, 6), oblique())
    geometry = read_geometry(path)
    probabilities = np.random.default_rng(0).random((3, 6, 5, 4)).astype(np.float32)
    assert probability_ending(".nii.gz") == probability_ending(".nrrd") == ".nii.gz"
    write_probabilities(tmp_path / "p.nii.gz", probabilities, geometry)
    assert np.array_equal(read_image([tmp_path / "p.nii.gz"], channels=3).data, probabilities)
    assert nibabel.load(tmp_path / "p.nii.gz").affine == pytest.approx(oblique(), abs=1e-5)
    assert probability_ending(".png") == ".npy"
    write_probabilities(tmp_path / "p.npy", probabilities.astype(np.float16), geometry)
    assert np.load(tmp_path / "p.npy").dtype == np.float16


def test_real_images_agree_with_simpleitk(shared):
    for name in ("Dataset115_SpinalCordContrasts", "Dataset110_BrainTumourMR", "Dataset119_TumourNRRD"):
        for path in sorted((shared / "data" / name / "imagesTr").iterdir()):
            image, reference = read_image([path], channels=1), sitk.ReadImage(str(path))
            assert np.array_equal(image.data[0], sitk.GetArrayViewFromImage(reference).astype(np.float32))
            assert image.geometry.direction == pytest.approx(reference.GetDirection(), abs=1e-5)
            assert image.geometry.origin == pytest.approx(reference.GetOrigin(), abs=1e-4)
