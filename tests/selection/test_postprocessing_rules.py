"""Component tables against direct image processing, and the acceptance rules on small hand-made cases."""

import cc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.evaluation import evaluate_case
from autoseg.labels import Labels
from autoseg.selection.components import component_table, value_sets
from autoseg.selection.postprocessing import determine_postprocessing

TWO = Labels(values={"a": (1,), "b": (2,)})
BRATS = Labels(
    values={"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}, ignore=(9,), regions=True,
    paint_order=("whole", "core", "enhancing"), paint_values=(1, 2, 3),
)  # fmt: skip


def keep_largest(label, members):
    """The rule on an image, ties stay."""
    components = cc3d.connected_components(np.isin(label, members), connectivity=26)
    sizes = np.bincount(components.ravel())[1:]
    if not sizes.size:
        return label
    largest = np.flatnonzero(sizes == sizes.max()) + 1
    return np.where((components > 0) & ~np.isin(components, largest), 0, label)


def test_value_sets():
    assert value_sets(TWO) == [(1, 2), (1,), (2,)]
    assert value_sets(Labels(values={"a": (5,)})) == [(1,)]
    assert value_sets(BRATS) == [(1, 2, 3), (2, 3), (3,)]
    crossing = Labels(values={"x": (1, 2), "y": (2, 3)}, regions=True, paint_order=("x", "y"), paint_values=(1, 3))
    assert value_sets(crossing) == [(1, 2, 3), (1, 2)]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), labels=st.sampled_from([TWO, BRATS]), flat=st.booleans())
def test_table_scores_equal_scores_of_changed_images(seed, labels, flat):
    random = np.random.default_rng(seed)
    shape = (1, 9, 9) if flat else (4, 5, 6)
    top = len(labels.foreground_values)
    prediction = random.integers(1, top + 1, shape) * (random.random(shape) < 0.25)
    reference = random.integers(-1, top + 1 + bool(labels.ignore), shape)
    groups = value_sets(labels)
    table = component_table(prediction, reference, labels=labels, groups=groups)
    kept, image = table.all_kept(), prediction
    for position, members in enumerate(groups):
        kept, image = table.keep_largest(position, kept), keep_largest(image, members)
        expected = evaluate_case(image, reference, labels=labels, spacing=(1, 1, 1), surface=False)
        assert table.dice(kept, labels) == pytest.approx({name: s.dice for name, s in expected.items()})


def tables_of(pairs, labels=TWO):
    groups = value_sets(labels)
    return {str(i): component_table(p, r, labels=labels, groups=groups) for i, (p, r) in enumerate(pairs)}


def row(text):
    return np.array([[[int(c) for c in text]]])


def test_false_islands_of_one_class_are_removed():
    # The island of b lies far off, and a has two true pieces that the union rule would break.
    pairs = [(row("1100011000222002"), row("1100011000222000"))]
    found = determine_postprocessing(tables_of(pairs), TWO)
    assert [step.values for step in found.steps] == [(2,)]
    assert found.foreground_dice == pytest.approx(1)
    assert [(trial["values"], trial["accepted"]) for trial in found.trials] == [
        ([1, 2], False),
        ([1], False),
        ([2], True),
    ]
    assert found.trials[2]["before"]["b"] == pytest.approx(6 / 7)


def test_the_union_rule_comes_first_and_classes_go_on_from_it():
    # After the union rule the class b still has two pieces inside the large component; the smaller is wrong.
    pairs = [(row("2211122001"), row("2211111000")), (row("1122200000"), row("1122200000"))]
    found = determine_postprocessing(tables_of(pairs), TWO)
    assert found.steps[0].values == (1, 2)
    assert found.trials[0]["accepted"]


def test_equal_scores_are_not_an_improvement():
    pairs = [(row("1110022"), row("1110022"))]
    assert determine_postprocessing(tables_of(pairs), Labels(values={"a": (1,), "b": (2,)})).steps == ()


def test_a_class_that_gets_worse_blocks_the_union_rule():
    # Removing the far piece helps b a lot and costs a a little: not accepted as a union rule.
    pairs = [(row("22222001002"), row("22222001000"))]
    found = determine_postprocessing(tables_of(pairs), TWO)
    assert not found.trials[0]["accepted"]
    assert [step.values for step in found.steps] == [(2,)]


def test_names_that_are_not_annotated_do_not_count():
    pairs = [(row("1110001"), row("1110000"))]
    labels = Labels(values={"a": (1,), "b": (2,)})
    assert determine_postprocessing(tables_of(pairs), labels).steps
    assert not determine_postprocessing(tables_of(pairs), labels, annotated={"0": ("b",)}).steps


def test_empty_prediction():
    found = determine_postprocessing(tables_of([(row("000"), row("010"))]), TWO)
    assert found.steps == ()
    assert found.foreground_dice == 0
