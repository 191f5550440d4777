import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from autoseg.inference import postprocess
from autoseg.model_folder import PostprocessingStep


def step(*values):
    return PostprocessingStep(values=values)


def test_the_union_of_values_is_one_object():
    label = np.array([[[1, 2, 0, 2, 2, 0, 1, 1]]], dtype=np.int16)
    np.testing.assert_array_equal(postprocess(label, [step(1, 2)]), [[[1, 2, 0, 2, 2, 0, 1, 1]]])
    label[0, 0, 6] = 0
    np.testing.assert_array_equal(postprocess(label, [step(1, 2)]), [[[1, 2, 0, 2, 2, 0, 0, 0]]])


def test_other_values_are_left_alone_and_steps_follow_one_another():
    label = np.array([[[1, 1, 0, 1, 3, 3, 0, 3]]], dtype=np.int16)
    np.testing.assert_array_equal(postprocess(label, [step(1)]), [[[1, 1, 0, 0, 3, 3, 0, 3]]])
    np.testing.assert_array_equal(postprocess(label, [step(1), step(3)]), [[[1, 1, 0, 0, 3, 3, 0, 0]]])
    np.testing.assert_array_equal(postprocess(label, []), label)


def test_corners_connect_in_two_and_three_dimensions():
    flat = np.zeros((1, 4, 4), dtype=np.int16)
    flat[0, [0, 1, 3], [0, 1, 3]] = 1
    kept = postprocess(flat, [step(1)])
    assert kept.sum() == 2
    assert kept[0, 0, 0] == kept[0, 1, 1] == 1
    deep = np.zeros((3, 3, 3), dtype=np.int16)
    deep[[0, 1], [0, 1], [0, 1]] = 1
    np.testing.assert_array_equal(postprocess(deep, [step(1)]), deep)


def test_the_input_is_not_changed_and_nothing_to_do_is_fine():
    label = np.array([[[1, 0, 1, 1]]], dtype=np.int16)
    before = label.copy()
    postprocess(label, [step(1)])
    np.testing.assert_array_equal(label, before)
    np.testing.assert_array_equal(postprocess(label, [step(7)]), label)


@given(st.lists(st.integers(0, 2), min_size=27, max_size=27))
def test_the_result_follows_a_flip(values):
    label = np.array(values, dtype=np.int16).reshape(3, 3, 3)
    steps = [step(1, 2), step(2)]
    np.testing.assert_array_equal(postprocess(label[::-1, :, ::-1], steps), postprocess(label, steps)[::-1, :, ::-1])
