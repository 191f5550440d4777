"""A student of every architecture at any width: the nearest that can be built, or a message that names the width."""

import pytest
from autoseg.trainers.student_width import BUILDING, FARTHEST, fault, scaled, shares, student_of, weights

from autoseg import plugins
from autoseg.conformance.architecture import example_spec
from autoseg.errors import UserError

ARCHITECTURES = [found.name for found in plugins.list_plugins("architecture")]
OWN_SIZE = {"meddinov3", "medvisionllama", "paratranscnn", "primus", "swin_bob", "swin_unetr"}


def spec_of(kind, dims):
    """Return a spec of channels that leave room for students."""
    spec = example_spec(kind, dims)
    return spec.model_copy(update={"features": tuple(4 * each for each in spec.features)})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_a_student_that_can_be_built(name):
    kind = plugins.load("architecture", name)
    for dims in kind.dims:
        planned = example_spec(kind, dims) if name in OWN_SIZE else spec_of(kind, dims)
        if name in OWN_SIZE:
            with pytest.raises(UserError, match=f"width=0.3 changes nothing in {name}"):
                student_of(kind, planned, 0.3, name)
            continue
        student = student_of(kind, planned, 0.3, name)
        assert 0.3 / FARTHEST <= student.width <= 0.3 * FARTHEST
        assert student.spec == scaled(planned, student.width)
        assert (
            (student.reason is None) == (student.width == 0.3) == (fault(kind, scaled(planned, 0.3), BUILDING) is None)
        )
        assert weights(kind, student.spec, BUILDING) < weights(kind, planned, BUILDING)


@pytest.mark.parametrize(
    ("name", "features", "width", "nearest", "reason"),
    [
        ("swin_unet", (96, 96, 192), 0.3, (30, 30, 60), "3 heads do not divide the width 29"),
        ("pct_net", (24, 48, 128), 0.3, (8, 15, 40), "4 heads do not divide the width 38"),
        ("lightm_unet", (32, 64, 128), 0.3, (8, 16, 32), "8 groups do not divide the width 10"),
        ("swin_unet", (96, 96, 192), 0.5, (48, 48, 96), None),
    ],
)
def test_the_nearest_width_keeps_the_proportions(name, features, width, nearest, reason):
    kind = plugins.load("architecture", name)
    planned = example_spec(kind, 2).model_copy(update={"features": features})
    student = student_of(kind, planned, width, name)
    assert (student.spec.features, student.reason) == (nearest, reason)


def test_no_width_near_is_told_with_the_reason():
    kind = plugins.load("architecture", "swin_unet")
    planned = example_spec(kind, 3)
    with pytest.raises(UserError, match=r"width=0.01 makes features of .* and swin_unet .*: 3 heads do not") as error:
        student_of(kind, planned, 0.01, "swin_unet")
    assert "--set width" in error.value.mend


def test_shares_come_by_distance_and_of_two_as_near_the_narrower_first():
    found = list(shares((4, 8), 0.5))
    assert found[:4] == [0.5, 0.375, 0.625, 0.25]
    assert (min(found), max(found)) == (0.25, 1.0)
    assert list(shares((4,), 0.01)) == []
