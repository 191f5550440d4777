import numpy as np
import pytest

from autoseg.errors import UserError
from autoseg.training import pretrain, train
from autoseg.training.asked import checked_seed
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


@pytest.mark.parametrize("text", ["9" * 23, "9" * 5000, "0-99999999999", "0,10000", "5-10000"])
def test_folds_beyond_all_bounds_are_refused_before_a_list_is_built(text):
    with pytest.raises(UserError, match=r"there is no fold [19][09]{4,39}\S*, their numbers are 0 to 9999") as error:
        parse_folds(text, 5)
    assert "To mend it: " in str(error.value)
    assert len(str(error.value)) < 300


def test_the_last_fold_there_can_be_and_more_where_the_split_has_more():
    assert parse_folds("9999,00009999", 5) == ["9999"]
    assert parse_folds("10000", 10001) == ["10000"]
    with pytest.raises(UserError, match="0 to 10000"):
        parse_folds("10001", 10001)


@pytest.mark.parametrize("seed", [-1, 2**32, 10**22, 1.5, True, "1"])
def test_a_seed_that_is_none_is_told(seed):
    with pytest.raises(UserError, match=rf"--seed {seed} is no integer within 0 and 4294967295\nTo mend it: "):
        checked_seed(seed)


def test_the_first_and_the_last_seed_are_taken_as_integers():
    assert [checked_seed(seed) for seed in (0, 2**32 - 1, np.int64(7))] == [0, 2**32 - 1, 7]
    assert type(checked_seed(np.int64(7))) is int  # which run.json can hold


@pytest.mark.parametrize("start", [train, pretrain])
def test_a_seed_is_told_before_anything_is_looked_at(start, tmp_path):
    with pytest.raises(UserError, match="--seed 4294967296 is no integer"):
        start("no data set", "3d_fullres", seed=2**32, workspace=tmp_path / "w")
    assert not (tmp_path / "w").exists()


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
