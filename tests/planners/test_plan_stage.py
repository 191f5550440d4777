"""The stage `plan`: finds planners by name or file, writes the plans, refuses what it cannot do."""

import pytest
from planning_factory import make_dataset, make_fingerprint

import autoseg
from autoseg.errors import UserError
from autoseg.plans import Plans
from autoseg.workspace import Workspace

FINGERPRINT = make_fingerprint((1, 1, 1), (36, 50, 35), cases=260)


@pytest.fixture
def make_plan(tmp_path):
    def make(**options):
        workspace = Workspace.open(tmp_path)
        plans = autoseg.plan(make_dataset(), FINGERPRINT, workspace, **{"planner": "nnunet", **options})
        return plans, workspace.plans_file("Dataset001_Test", plans.plans_name)

    return make


def test_plans_are_written_and_read_back(make_plan):
    plans, path = make_plan()
    assert path.name == "nnunet.json"
    assert Plans.read(path) == plans
    assert (plans.planner, plans.dataset_name) == ("nnunet", "Dataset001_Test")


def test_plans_name_and_memory(make_plan):
    plans, path = make_plan(plans_name="small", gpu_memory=1.0)
    assert path.name == "small.json"
    full = plans.configuration("3d_fullres")
    assert (full.batch_size, full.data_identifier) == (7, "small_3d_fullres")
    assert plans.resources["memory_gib"] == 1.0
    with pytest.raises(UserError, match="cannot be a file name"):
        make_plan(plans_name="../x")


@pytest.mark.parametrize("planner", ["nnunet", "auto"])
def test_no_patch_has_a_single_voxel_since_instance_norm_takes_none(tmp_path, planner):
    fingerprint = make_fingerprint((1, 1, 1), (5, 1, 1), cases=6)
    plans = autoseg.plan(make_dataset(), fingerprint, Workspace.open(tmp_path), planner=planner)
    assert plans.configuration("2d").patch_size == (2, 2)
    assert plans.configuration("3d_fullres").patch_size == (5, 1, 1)


def test_a_time_budget_is_shared_by_the_folds(make_plan):
    plans, _ = make_plan(time_budget=1000.0)
    assert plans.configuration("2d").training.time_budget == 200


def test_a_planner_of_ones_own(make_plan, tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(
        '"""Small."""\n'
        "from autoseg import Planner, register\n\n\n"
        '@register.planner("tiny")\n'
        "class Tiny(Planner):\n"
        '    """Four channels."""\n\n'
        "    base_features: int = 4\n"
    )
    plans, _ = make_plan(planner=str(path), configurations=["3d_fullres"])
    assert plans.planner == plans.plans_name == "tiny"
    assert plans.configuration("3d_fullres").network.features == (4, 8, 16, 32)
    assert list(plans.configurations) == ["3d_fullres"]


def test_a_loose_architecture_is_found_from_any_folder(make_plan, tmp_path, monkeypatch):
    path = tmp_path / "loose.py"
    path.write_text(
        "from autoseg import Architecture, register\n\n\n"
        '@register.architecture("loose")\n'
        "class Loose(Architecture):\n"
        '    """Nothing."""\n'
    )
    monkeypatch.chdir(tmp_path)
    plans, _ = make_plan(architecture="loose.py")
    assert plans.configuration("2d").architecture == f"{path.resolve()}:loose"
    plans, _ = make_plan(architecture="residual_encoder_unet")
    assert plans.configuration("2d").architecture == "residual_encoder_unet"


def test_unknown_names_are_refused(make_plan):
    with pytest.raises(UserError, match="did you mean nnunet"):
        make_plan(planner="nnunett")
    with pytest.raises(UserError, match="no architecture called"):
        make_plan(architecture="no_such_network")
    with pytest.raises(UserError, match="no configuration '4d'"):
        make_plan(configurations=["4d"])
