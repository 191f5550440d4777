"""Labels, regions, ignore values: raw values <-> internal values <-> network outputs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.errors import UserError
from autoseg.labels import Labels, labels_from_description, smallest_integer_type
from autoseg.storage import read_json

HEART = {"labels": {"background": 0, "rv": 1, "myo": 2, "lv": 4}}
BRATS = {
    "labels": {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing": [3]},
    "regions_class_order": [1, 2, 3],
}


def test_plain_labels_in_internal_values():
    labels = labels_from_description(HEART)
    assert (labels.names, labels.num_outputs, labels.regions) == (("rv", "myo", "lv"), 4, False)
    assert labels.foreground_values == (1, 2, 4)
    assert labels.members == ((1,), (2,), (3,))
    assert labels.ignore_index is None
    internal = labels.to_internal(np.array([[0, 4], [2, 1]], dtype=np.uint8))
    assert internal.dtype == np.int16
    assert internal.tolist() == [[0, 3], [2, 1]]
    assert labels.to_raw(internal).tolist() == [[0, 4], [2, 1]]


def test_declared_order_does_not_matter_values_do():
    labels = labels_from_description({"labels": {"lv": 4, "background": 0, "rv": 1}})
    assert labels.names == ("rv", "lv")
    assert labels.to_internal(np.array([4, 1, 0])).tolist() == [2, 1, 0]


def test_background_need_not_be_zero_and_values_may_be_negative():
    labels = labels_from_description({"labels": {"background": 7, "a": -3, "b": 0, "ignore": 255}})
    raw = np.array([7, -3, 0, 255], dtype=np.int16)
    assert labels.to_internal(raw).tolist() == [0, 1, 2, 3]
    assert labels.to_raw(np.array([0, 1, 2, 3])).tolist() == [7, -3, 0, 255]


def test_ignore_values_have_no_output():
    labels = labels_from_description({"labels": {"background": 0, "a": 1, "ignore": [254, 255]}})
    assert (labels.num_outputs, labels.ignore_index) == (2, 2)
    assert labels.to_internal(np.array([0, 1, 254, 255])).tolist() == [0, 1, 2, 2]


def test_outside_value_becomes_background_in_the_users_file():
    assert labels_from_description(HEART).to_raw(np.array([-1, 0, 3], dtype=np.int16)).tolist() == [0, 0, 4]


def test_undeclared_value_is_told_with_file_and_value():
    with pytest.raises(UserError, match=r"case_7\.nii\.gz: label value\(s\) \[3, 9\] are not declared"):
        labels_from_description(HEART).to_internal(np.array([0, 9, 3]), where="case_7.nii.gz")


def test_regions_have_sigmoid_outputs_and_are_painted():
    labels = labels_from_description(BRATS)
    assert (labels.num_outputs, labels.regions) == (3, True)
    assert labels.members == ((1, 2, 3), (2, 3), (3,))
    whole, core, enhancing = ([1, 1, 1, 0, 0], [0, 1, 1, 0, 1], [0, 0, 1, 1, 0])
    assert labels.paint(np.array([whole, core, enhancing])).tolist() == [1, 2, 3, 3, 2]


def test_paint_order_follows_from_inclusion():
    shuffled = {"labels": {"background": 0, "enhancing": [3], "whole": [1, 2, 3], "core": [2, 3]}}
    labels = labels_from_description(shuffled)
    assert labels.paint_order == ("whole", "core", "enhancing")
    assert labels.paint_values == (1, 2, 3)
    assert labels.painting == ((1, 1), (2, 2), (0, 3))
    masks = np.array([[0, 0, 1], [1, 1, 1], [0, 1, 1]])
    assert labels.paint(masks).tolist() == [1, 2, 3]


@st.composite
def label_definitions(draw):
    values = draw(st.lists(st.integers(-300, 70000), min_size=3, max_size=8, unique=True))
    description = {"background": values[0], **{f"c{i}": value for i, value in enumerate(values[1:-1])}}
    if draw(st.booleans()):
        description["ignore"] = values[-1]
        return description, values
    return description, values[:-1]


@given(definition=label_definitions(), data=st.data())
def test_raw_internal_raw_is_the_identity(definition, data):
    description, values = definition
    labels = labels_from_description({"labels": description})
    raw = np.array(data.draw(st.lists(st.sampled_from(values), min_size=1, max_size=30)))
    internal = labels.to_internal(raw)
    assert internal.min() >= 0
    assert internal.max() <= len(values) - 1
    assert np.array_equal(labels.to_raw(internal).astype(np.int64), raw)
    assert ((internal == 0) == (raw == description["background"])).all()


@given(nesting=st.permutations(range(1, 6)))
def test_nested_regions_survive_painting(nesting):
    """Region i holds the values nesting[i:], so painting the true masks must give the label map back."""
    description = {f"r{i}": list(nesting[i:]) for i in range(5)}
    labels = labels_from_description({"labels": {"background": 0, **description}})
    internal = labels.to_internal(np.arange(6))
    masks = np.stack([np.isin(internal, members) for members in labels.members])
    assert np.array_equal(labels.paint(masks), internal)


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        (None, None, "field labels must be an object"),
        ({}, None, "field labels must be an object"),
        ({"a": 1}, None, "needs an entry 'background'"),
        ({"background": [0, 1], "a": 2}, None, "needs an entry 'background'"),
        ({"background": 0}, None, "no foreground entry"),
        ({"background": 0, "ignore": 1}, None, "no foreground entry"),
        ({"background": 0, "a": "1"}, None, r"labels\.a must be an integer"),
        ({"background": 0, "a": 1.5}, None, r"labels\.a must be an integer"),
        ({"background": 0, "a": True}, None, r"labels\.a must be an integer"),
        ({"background": 0, "a": []}, None, r"labels\.a must be an integer"),
        ({"background": 0, "a": 0}, None, r"labels\.a uses \[0\], which is background or ignore"),
        ({"background": 0, "a": 1, "ignore": 1}, None, r"labels\.a uses \[1\]"),
        ({"background": 0, "a": 1, "b": 1}, None, "share one value"),
        ({"background": 0, "a": [1, 2], "b": [1, 2]}, None, "no value that smaller regions do not cover"),
        ({"background": 0, "a": [1, 2], "b": [2]}, [1], "regions_class_order must list"),
        ({"background": 0, "a": [1, 2], "b": [2]}, [1, 5], "regions_class_order must list"),
        ({"background": 0, "a": [1, 2], "b": [2]}, [[1], 2], "regions_class_order must list"),
        ({"background": 0, "a": [1, 2], "b": [2]}, "12", "regions_class_order must list"),
    ],
)
def test_faults_name_file_field_and_value(labels, order, message):
    description = {"labels": labels} | ({"regions_class_order": order} if order is not None else {})
    with pytest.raises(UserError, match=message) as caught:
        labels_from_description(description, where="data/dataset.json")
    assert str(caught.value).startswith("data/dataset.json: ")


def test_smallest_integer_type():
    assert smallest_integer_type((0, 255)) == np.uint8
    assert smallest_integer_type((-1, 255)) == np.int16
    assert smallest_integer_type((0, 60000)) == np.uint16
    assert smallest_integer_type((-1, 60000)) == np.int32
    assert smallest_integer_type((0, 2**40)) == np.int64


def test_labels_are_values(tmp_path):
    one, other = labels_from_description(BRATS), labels_from_description(BRATS)
    assert one.members
    assert one == other
    assert Labels.model_validate(one.model_dump(mode="json")) == other


def test_every_shared_data_set_has_labels(shared):
    files = sorted((shared / "data").glob("Dataset*/dataset.json"))
    assert len(files) > 10
    for file in files:
        labels = labels_from_description(read_json(file), str(file))
        assert labels.num_outputs == len(labels.names) + 1


def test_a_background_that_is_ignored_is_told():
    with pytest.raises(UserError, match=r"field labels\.ignore uses 5, which is background\nTo mend it: give"):
        labels_from_description({"labels": {"background": 5, "a": 1, "ignore": [9, 5]}})
