import pytest

from autoseg.errors import UserError
from autoseg.training.folds import parse_folds
from autoseg.training.starting import choose_labelled


@pytest.mark.parametrize(
    ("text", "folds"),
    [
        ("0", ["0"]),
        ("0,2", ["0", "2"]),
        ("0-4", ["0", "1", "2", "3", "4"]),
        ("1-2,1", ["1", "2"]),
        ("cv", ["0", "1", "2", "3", "4"]),
        ("all", ["all"]),
        ("3,7", ["3", "7"]),  # beyond the split: a random 80:20 split of its own
    ],
)
def test_folds_as_a_user_writes_them(text, folds):
    assert parse_folds(text, 5) == folds


def test_folds_beyond_those_there_are_are_told(caplog):
    parse_folds("0-1", 2)
    assert not caplog.records
    parse_folds("1,4,3", 2)
    assert "fold 3, 4: this data set has 2 fold(s), 0 to 1" in caplog.text


def test_cv_of_a_single_case_is_all_and_it_has_no_other_fold():
    assert parse_folds("cv", 0) == ["all"]
    with pytest.raises(UserError, match="fold 0: this data set has one case, or one group of cases, and no folds"):
        parse_folds("0", 0)


@pytest.mark.parametrize("text", ["0-", "x", "", "1;2"])
def test_wrong_folds_are_told(text):
    with pytest.raises(UserError, match="not understood"):
        parse_folds(text, 5)


def test_labelled_cases_are_chosen_by_seed_and_not_by_order():
    cases = tuple(f"case{i:02d}" for i in range(20))
    chosen, rest = choose_labelled(cases, 5, seed=3)
    assert len(chosen) == 5
    assert sorted((*chosen, *rest)) == sorted(cases)
    assert choose_labelled(tuple(reversed(cases)), 5, seed=3) == (chosen, rest)
    assert choose_labelled(cases, 5, seed=4)[0] != chosen
    with pytest.raises(UserError, match="20"):
        choose_labelled(cases, 21, seed=0)


def test_a_range_that_ends_before_it_begins_is_told_and_a_number_is_a_fold():
    with pytest.raises(UserError, match="end before they begin"):
        parse_folds("5-2", 5)
    assert parse_folds(0, 5) == ["0"]
