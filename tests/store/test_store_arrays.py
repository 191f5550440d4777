import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.errors import UserError
from autoseg.store import arrays

sizes = st.integers(1, 300)


@given(st.tuples(st.integers(1, 4), sizes, sizes, sizes), st.tuples(sizes, sizes, sizes), st.sampled_from([1, 2, 4]))
@settings(max_examples=200, deadline=None)
def test_blocks_and_chunks_keep_their_limits(shape, patch, itemsize):
    chunk, block = arrays.partition(shape, patch, itemsize)
    assert np.prod(block) * itemsize <= arrays.BLOCK_BYTES
    assert np.prod(chunk) * itemsize <= arrays.CHUNK_BYTES
    assert all(1 <= b <= c <= s for b, c, s in zip(block, chunk, shape, strict=True))
    assert all(b <= p for b, p in zip(block[1:], patch, strict=True))


def test_blocks_of_a_2d_patch_have_one_slice():
    assert arrays.partition((1, 20, 512, 512), (1, 256, 256), 2)[1] == (1, 1, 128, 256)


@given(st.integers(0, 1000), st.sampled_from([np.float16, np.float32, np.int8, np.int16]), st.tuples(*[sizes] * 2))
@settings(max_examples=20, deadline=None)
def test_what_is_written_is_read(tmp_path_factory, seed, kind, plane):
    array = np.random.default_rng(seed).integers(-100, 100, size=(2, 3, *plane)).astype(kind)
    path = tmp_path_factory.mktemp("arrays") / "x.b2nd"
    path.write_bytes(arrays.compress(array, (2, 64, 64)))
    assert np.array_equal(arrays.read_array(path), array)
    part = (slice(0, 1), slice(1, 3), slice(0, plane[0] // 2 + 1), slice(plane[1] // 2, None))
    assert np.array_equal(arrays.slice_array(arrays.open_array(path), part, path), array[part])


def test_float16_only_where_it_is_precise():
    assert arrays.smallest_float(np.asarray([-1024, 3], np.float32)).dtype == np.float16
    assert arrays.smallest_float(np.asarray([-1025, 3], np.float32)).dtype == np.float32
    assert arrays.smallest_float(np.asarray([0, 1025], np.float32)).dtype == np.float32


def test_labels_take_one_byte_if_they_can():
    assert arrays.smallest_label(np.asarray([-1, 127], np.int16)).dtype == np.int8
    assert arrays.smallest_label(np.asarray([-1, 128], np.int16)).dtype == np.int16


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 255], np.uint8),
        ([-1, 255], np.int16),
        ([0, 40_000], np.uint16),
        ([0, 70_000], np.float32),
        ([0, 0.5], np.float32),
        ([-0.0, 3], np.uint8),
    ],
)
def test_native_type_keeps_every_value(values, kind):
    array = np.asarray(values, dtype=np.float32)
    assert arrays.native(array).dtype == kind
    assert np.array_equal(arrays.native(array), array)


@pytest.mark.filterwarnings("error")
def test_native_type_of_values_that_are_not_finite():
    array = np.asarray([np.nan, np.inf, 1], dtype=np.float32)
    assert arrays.native(array) is array


def test_damage_is_told_with_the_file(tmp_path):
    path = tmp_path / "x.b2nd"
    with pytest.raises(UserError, match=r"x\.b2nd: the file is missing"):
        arrays.read_array(path)
    content = arrays.compress(np.random.default_rng(0).normal(size=(40, 40, 40)))
    for damaged in (content[:500], content[: len(content) // 2], b"", b"x" * 2000):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"x\.b2nd: the stored array is damaged"):
            arrays.read_array(path)
