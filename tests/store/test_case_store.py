import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from autoseg.errors import UserError
from autoseg.store import CaseProperties, CaseStore, Preprocessed
from autoseg.store.layout import case_file, stem


def make_case(seed=0, shape=(20, 30, 40), channels=2, scale=1.0):
    random = np.random.default_rng(seed)
    properties = CaseProperties(
        spacing=(2.0, 1.0, 1.0),
        shape_before_crop=(22, 32, 42),
        crop_box=((1, 21), (1, 31), (1, 41)),
        shape_after_crop=shape,
        shape_resampled=shape,
    )
    data = (scale * random.normal(size=(channels, *shape))).astype(np.float32)
    return Preprocessed(data, random.integers(-1, 4, size=shape).astype(np.int16), properties)


def fill(store, cases=("a", "b", "c"), **arguments):
    made = {}
    for seed, case in enumerate(cases):
        made[case] = make_case(seed)
        store.write(case, made[case], {1: np.full((4, 3), seed), 3: np.zeros((2, 3))}, **arguments)
    return made


PART = (slice(3, 17), slice(0, 30), slice(39, 40))


@pytest.mark.parametrize("cache", [True, False, None])
@pytest.mark.parametrize("sealed", [True, False])
def test_cases_come_back(tmp_path, cache, sealed):
    made = fill(CaseStore(tmp_path), annotated=(1, 3), input_hash="abc", patch_size=(8, 16, 16))
    if sealed:
        CaseStore(tmp_path).seal()
    store = CaseStore(tmp_path, cache=cache)
    assert store.cases == ("a", "b", "c")
    assert store.sealed is sealed
    for seed, (case, expected) in enumerate(made.items()):
        stored = store.read(case)
        assert (stored.id, stored.shape, stored.annotated, stored.labelled) == (case, (20, 30, 40), (1, 3), True)
        assert stored.properties == expected.properties
        assert stored.image().dtype == np.float32
        assert np.allclose(stored.image(), expected.data, rtol=1e-3)
        assert np.allclose(stored.image(PART), expected.data[(slice(None), *PART)], rtol=1e-3)
        assert stored.label().dtype == np.int16
        assert np.array_equal(stored.label(), expected.label)
        assert np.array_equal(stored.label(PART), expected.label[PART])
        assert {key: found.shape for key, found in stored.locations.items()} == {1: (4, 3), 3: (2, 3)}
        assert (stored.locations[1] == seed).all()
        assert stored.locations[1].dtype == np.int32
    assert store.verify() == ()


@pytest.mark.parametrize("cache", [True, False])
def test_what_is_read_may_be_changed(tmp_path, cache):
    made = fill(CaseStore(tmp_path), ("a",))
    stored = CaseStore(tmp_path, cache=cache).read("a")
    for _ in range(2):
        label = stored.label(PART)
        assert np.array_equal(label, made["a"].label[PART])
        label += 1
        stored.image(PART)[:] = 0
    assert stored.image(PART).any()


def test_large_values_stay_exact(tmp_path):
    case = make_case(scale=1e5)
    store = CaseStore(tmp_path)
    store.write("ct", case, {})
    assert np.array_equal(store.read("ct").image(), case.data)
    assert store.read("ct").locations == {}


def test_a_case_without_label_map(tmp_path):
    case = make_case()
    case.label = None
    store = CaseStore(tmp_path)
    store.write("u", case, {}, annotated=())
    assert not store.read("u").labelled
    assert (store.read("u").label() == 0).all()
    assert CaseStore(tmp_path).read("u").annotated == ()


@pytest.mark.parametrize("cache", [True, False])
def test_many_threads_read_the_same(tmp_path, cache):
    made = fill(CaseStore(tmp_path), [f"case_{index}" for index in range(40)], patch_size=(8, 8, 8))
    store = CaseStore(tmp_path, cache=cache)

    def read(index):
        random = np.random.default_rng(index)
        case = f"case_{random.integers(40)}"
        part = tuple(slice(low := int(random.integers(0, size - 5)), low + 5) for size in (20, 30, 40))
        label, image = store.read(case).label(part), store.read(case).image(part)
        return np.array_equal(label, made[case].label[part]) and np.array_equal(
            image, made[case].data[(slice(None), *part)].astype(np.float16).astype(np.float32)
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(400)))


def test_resuming_asks_for_inputs_and_sizes(tmp_path):
    fill(CaseStore(tmp_path), ("a",), input_hash="one")
    store = CaseStore(tmp_path)
    assert store.is_complete("a", "one")
    assert not store.is_complete("a", "two")
    assert not store.is_complete("b", "one")
    path = case_file(tmp_path, "a", "image.b2nd")
    path.write_bytes(path.read_bytes()[:-1])
    assert not CaseStore(tmp_path).is_complete("a", "one")
    path.unlink()
    assert not CaseStore(tmp_path).is_complete("a", "one")


def test_an_interrupted_case_does_not_exist(tmp_path):
    fill(CaseStore(tmp_path), ("a", "b"))
    case_file(tmp_path, "b", "json").unlink()  # the record is written last
    (tmp_path / "cases" / ".writing-x-c.json").write_text("{")
    store = CaseStore(tmp_path)
    assert store.cases == ("a",)
    store.seal()
    assert CaseStore(tmp_path).cases == ("a",)
    assert sorted(path.name for path in (tmp_path / "cases").iterdir()) == [
        "a.image.b2nd",
        "a.label.b2nd",
        "a.locations.npy",
    ]


def test_sealing_keeps_what_is_wanted_and_later_cases_win(tmp_path):
    store = CaseStore(tmp_path)
    fill(store, ("a", "b"))
    store.seal(["b"])
    assert store.cases == ("b",)
    again = make_case(9)
    CaseStore(tmp_path).write("b", again, {})
    assert np.array_equal(CaseStore(tmp_path).read("b").label(), again.label)
    assert not CaseStore(tmp_path).sealed


def test_discarded_cases_are_gone_before_they_are_made_anew(tmp_path):
    fill(CaseStore(tmp_path), ("a", "b", "c"))
    CaseStore(tmp_path).seal(["a", "b"])
    fill(CaseStore(tmp_path), ("c",))
    store = CaseStore(tmp_path)
    store.discard(["a", "c", "never"])
    assert store.cases == CaseStore(tmp_path).cases == ("b",)


def test_verify_finds_one_flipped_byte(tmp_path):
    fill(CaseStore(tmp_path))
    path = case_file(tmp_path, "b", "label.b2nd")
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    case_file(tmp_path, "c", "locations.npy").unlink()
    faults = CaseStore(tmp_path).verify()
    assert len(faults) == 2
    assert "case b" in faults[0]
    assert "does not match its checksum" in faults[0]
    assert "c.locations.npy is missing" in faults[1]


def test_unknown_cases_and_damage_are_user_errors(tmp_path):
    fill(CaseStore(tmp_path), ("a",))
    store = CaseStore(tmp_path)
    with pytest.raises(UserError, match="case x is not preprocessed"):
        store.read("x")
    case_file(tmp_path, "a", "locations.npy").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="damaged"):
        _ = store.read("a").locations
    record = case_file(tmp_path, "a", "json")
    record.write_text(json.dumps({"id": "a"}))
    with pytest.raises(UserError, match="field input_hash"):
        _ = CaseStore(tmp_path).cases


def test_previous_stage(tmp_path):
    store = CaseStore(tmp_path, cache=True)
    fill(store, ("a",))
    label = np.random.default_rng(3).integers(0, 5, size=(20, 30, 40)).astype(np.int16)
    with pytest.raises(UserError, match="case a has no prediction of the previous stage '3d_lowres'"):
        store.read("a").previous_stage(name="3d_lowres")
    for version in (label, label[::-1]):
        store.add_previous_stage("a", version, "3d_lowres")
        assert store.has_previous_stage("a", "3d_lowres")
        assert np.array_equal(store.read("a").previous_stage(PART, name="3d_lowres"), version[PART])
    assert not store.has_previous_stage("a", "other")
    with pytest.raises(ValueError, match="has shape"):
        store.add_previous_stage("a", label[1:], "3d_lowres")
    with pytest.raises(ValueError, match="cannot name a previous stage"):
        store.add_previous_stage("a", label, "../x")


def test_ids_that_are_no_file_names(tmp_path):
    store = CaseStore(tmp_path)
    fill(store, ("site/../one", "two words"))
    assert CaseStore(tmp_path).cases == ("site/../one", "two words")
    assert CaseStore(tmp_path).read("site/../one").image().shape == (2, 20, 30, 40)
    assert "/" not in stem("site/../one")
    assert {path.parent for path in tmp_path.rglob("*.b2nd")} == {tmp_path / "cases"}
