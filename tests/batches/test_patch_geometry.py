import math

import numpy as np
import pytest

from autoseg.batches.geometry import initial_patch_size, rotation_limit, rotation_matrix, turns_in_plane_only


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ((128, 128, 128), (205, 205, 205)),
        ((40, 56, 40), (73, 80, 64)),
        ((512, 512), (602, 602)),
        ((20, 256, 256), (20, 301, 301)),  # flat: first axis kept, the others at 90 degrees
    ],
)
def test_initial_patch_size_of_the_card(patch, expected):
    assert initial_patch_size(patch) == expected


def test_an_elongated_slice_turns_by_15_degrees():
    cosine, sine = math.cos(math.radians(15)), math.sin(math.radians(15))
    expected = (int((100 * cosine + 40 * sine) / 0.85), int(max(40, abs(40 * cosine - 100 * sine)) / 0.85))
    assert initial_patch_size((100, 40)) == expected
    assert initial_patch_size((100, 40), rotation=0) == (117, 47)


def test_rotation_limits():
    assert rotation_limit((40, 56, 40)) == pytest.approx(math.radians(30))
    assert rotation_limit((56, 40)) == pytest.approx(math.pi)
    assert rotation_limit((61, 40)) == pytest.approx(math.radians(15))
    assert rotation_limit((20, 256, 256)) == pytest.approx(math.pi)
    assert not turns_in_plane_only((20, 60, 60))  # exactly 3 is not flat
    assert turns_in_plane_only((20, 61, 60))


def test_rotation_matrix_is_rz_ry_rx():
    # a quarter turn about axis 0 takes axis 1 to axis 2; then one about axis 2 takes axis 0 to axis 1
    assert np.allclose(rotation_matrix([math.pi / 2, 0, 0]) @ [0, 1, 0], [0, 0, 1])
    assert np.allclose(rotation_matrix([0, 0, math.pi / 2]) @ [1, 0, 0], [0, 1, 0])
    both = rotation_matrix([math.pi / 2, 0, math.pi / 2])
    assert np.allclose(both @ [0, 0, 1], rotation_matrix([0, 0, math.pi / 2]) @ [0, -1, 0])
    assert np.allclose(rotation_matrix([0.4]) @ rotation_matrix([-0.4]), np.eye(2))
