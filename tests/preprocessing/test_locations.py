import numpy as np

from autoseg.labels import Labels
from autoseg.preprocessing import class_locations


def test_all_voxels_of_small_classes_and_their_coordinates():
    label = np.zeros((3, 4, 5), dtype=np.int16)
    label[1, 2, 3] = label[2, 0, 4] = 1
    label[0, 0, 0] = -1
    found = class_locations(label, Labels(values={"a": (1,), "b": (2,)}))
    assert set(found) == {1}
    assert found[1].dtype == np.int32
    assert sorted(map(tuple, found[1].tolist())) == [(1, 2, 3), (2, 0, 4)]


def test_counts_ten_thousand_or_one_percent():
    label = np.ones((1, 1100, 1000), dtype=np.int16)
    label[0, :20] = 2
    found = class_locations(label, Labels(values={"a": (1,), "b": (2,)}))
    assert len(found[1]) == 10_800  # one percent of 1 080 000
    assert len(found[2]) == 10_000
    assert len(np.unique(found[2], axis=0)) == 10_000  # without replacement
    assert (found[2][:, 1] < 20).all()
    assert np.array_equal(found[1], class_locations(label, Labels(values={"a": (1,), "b": (2,)}))[1])


def test_the_draws_are_those_of_nnunet():
    label = np.zeros((1, 150, 100), dtype=np.int16)
    label[0, :120] = 2
    random = np.random.RandomState(1234)
    expected = np.argwhere(label == 2)[random.choice(12_000, 10_000, replace=False)]
    assert np.array_equal(class_locations(label, Labels(values={"a": (1,), "b": (2,)}))[2], expected)


def test_regions_by_position_and_annotated_voxels_with_ignore():
    label = np.asarray([[[0, 1, 2, 3, -1]]], dtype=np.int16)
    labels = Labels(
        values={"whole": (1, 2), "core": (2,)},
        ignore=(9,),
        regions=True,
        paint_order=("whole", "core"),
        paint_values=(1, 2),
    )
    found = class_locations(label, labels)
    assert {key: sorted(voxels[:, 2].tolist()) for key, voxels in found.items()} == {
        0: [1, 2],
        1: [2],
        -1: [0, 1, 2, 4],  # 3 is the internal value of "ignore"
    }
