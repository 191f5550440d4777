"""Splits: nnU-Net's numbers, groups, the user's own."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.errors import UserError
from autoseg.labels import Labels
from autoseg.raw import Case, Dataset, make_splits, open_dataset, split_of
from autoseg.workspace import Workspace


def dataset(cases, folder=Path("nowhere")):
    labels = Labels(values={"x": (1,)})
    return Dataset("D", folder, ("CT",), labels, ".nii.gz", tuple(cases), (), (), {})


def named(count, **fields):
    return [Case(f"c{number:03d}", (), None, **fields) for number in range(count)]


def test_splits_of_a_real_nnunet_run(shared):
    reference = json.loads((shared / "models/nnunet_hippocampus/splits_final.json").read_text())
    assert make_splits(open_dataset(shared / "data" / "Dataset004_Hippocampus")) == reference


def test_nnunets_rule_for_uneven_counts():
    # What scikit-learn 1.9's KFold(5, shuffle=True, random_state=12345) gives for 13 cases.
    expected = [[0, 7, 9], [3, 6, 10], [8, 11, 12], [1, 4], [2, 5]]
    splits = make_splits(dataset(named(13)[::-1]))
    assert [split["val"] for split in splits] == [[f"c{index:03d}" for index in part] for part in expected]
    for split in splits:
        assert sorted(split["train"] + split["val"]) == [case.id for case in named(13)]
        assert split["train"] == sorted(split["train"])


def test_few_cases():
    assert make_splits(dataset(named(1))) == []
    three = make_splits(dataset(named(3)))
    assert sorted(split["val"][0] for split in three) == ["c000", "c001", "c002"]
    assert all(len(split["train"]) == 2 for split in three)


@given(st.lists(st.integers(0, 7), min_size=2, max_size=40), st.integers(2, 6))
def test_groups_stay_together_and_every_case_is_validated_once(groups, folds):
    cases = [Case(f"c{i:02d}", (), None, group=f"p{g}" if g else None) for i, g in enumerate(groups)]
    splits = make_splits(dataset(cases), folds)
    if not splits:
        assert len({case.group or case.id for case in cases}) == 1
        return
    assert sorted(name for split in splits for name in split["val"]) == [case.id for case in cases]
    group = {case.id: case.group or case.id for case in cases}
    for split in splits:
        assert sorted(split["train"] + split["val"]) == [case.id for case in cases]
        assert split["train"]
        assert split["val"]
        assert not {group[name] for name in split["train"]} & {group[name] for name in split["val"]}


def test_patients_of_a_real_data_set(shared):
    splits = make_splits(open_dataset(shared / "data" / "Dataset112_CardiacACDC"))
    assert [len(split["val"]) for split in splits] == [4] * 5
    for split in splits:
        assert {name[:10] for name in split["val"]}.isdisjoint(name[:10] for name in split["train"])


def test_split_column():
    cases = [replace(case, split="val" if number == 2 else "train") for number, case in enumerate(named(4))]
    assert make_splits(dataset(cases)) == [{"train": ["c000", "c001", "c003"], "val": ["c002"]}]
    assert len(make_splits(dataset(named(6, split="train")))) == 5  # no validation part: not a split


def test_the_users_file_wins(tmp_path):
    own = [{"train": ["c000"], "val": ["c001"]}]
    workspace = Workspace.open(tmp_path / "w")
    (tmp_path / "w/preprocessed/D").mkdir(parents=True)
    (tmp_path / "w/preprocessed/D/splits_final.json").write_text(json.dumps(own))
    cases = dataset(named(6), tmp_path)
    assert make_splits(cases, workspace=workspace) == own
    assert len(make_splits(cases)) == 5
    beside = [{"train": ["c003"], "val": ["c004"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(beside))
    assert make_splits(cases, workspace=workspace) == beside


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must be a list"),
        ({}, "must be a list"),
        ([{"train": ["c000"]}], "fold 0 must have"),
        ([{"train": ["c000"], "val": []}], "fold 0 must have"),
        ([{"train": ["c000"], "val": ["zzz"]}], "does not have: zzz"),
        ([{"train": ["c000"], "val": ["c000"]}], "trains and validates on c000"),
    ],
)
def test_faulty_files(tmp_path, content, message):
    (tmp_path / "splits_final.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        make_splits(dataset(named(6), tmp_path))


def test_folds_beyond_the_splits():
    names = [case.id for case in named(10)]
    splits = make_splits(dataset(named(10)))
    assert split_of(splits, names, 2) == split_of(splits, names, "2") == splits[2]
    assert split_of(splits, names, "all") == {"train": names, "val": names}
    extra = split_of(splits, names, 7)
    assert (len(extra["train"]), len(extra["val"])) == (8, 2)
    assert sorted(extra["train"] + extra["val"]) == names
    assert extra != split_of(splits, names, 8)
    with pytest.raises(UserError, match='fold "all"'):
        split_of([], ["only"], 0)
