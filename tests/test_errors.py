"""The error family: one message, and it survives the way back from a worker process."""

import pickle

from autoseg.errors import AutosegError, CaseError, CasesFailed, Interrupted, UserError


def test_user_error_names_place_and_mend():
    error = UserError("voxel 3 is NaN", where="a.nii.gz", mend="replace it")
    assert str(error) == "a.nii.gz: voxel 3 is NaN\nTo mend it: replace it"
    assert (error.what, error.where, error.mend) == ("voxel 3 is NaN", "a.nii.gz", "replace it")
    assert str(UserError("only this")) == "only this"


def test_errors_survive_pickling():
    case = CaseError("liver_3", "preprocessing", "out of memory")
    several = CasesFailed([case, CaseError("liver_4", "preprocessing", "truncated")])
    user = UserError("bad", where="file", mend="mend")
    for error in (case, several, user, Interrupted("stopped")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
    assert pickle.loads(pickle.dumps(several)).failures[1].case == "liver_4"
    none_left = pickle.loads(pickle.dumps(CasesFailed([case], all_failed=True)))
    assert str(none_left).startswith("1 case(s) failed; there is no other case:")
    assert none_left.all_failed
    assert pickle.loads(pickle.dumps(user)).mend == "mend"


def test_one_family_and_a_list_of_every_failure():
    several = CasesFailed([CaseError("a", "reading", "x"), CaseError("b", "reading", "y")])
    assert all(issubclass(kind, AutosegError) for kind in (UserError, CaseError, CasesFailed, Interrupted))
    assert str(several).splitlines() == [
        "2 case(s) failed; the others are complete:",
        "  case a, reading: x",
        "  case b, reading: y",
    ]
