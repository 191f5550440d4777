import math
import shutil
from pathlib import Path

import pytest
import torch
from autoseg.trainers.distillation import attention, attention_loss, settled
from safetensors.torch import save_file

from autoseg.errors import UserError
from autoseg.labels import Labels
from autoseg.losses import full_resolution, soft_label_loss
from autoseg.model_folder import MODEL_FILE, Member, Model, checksums
from autoseg.plans import Configuration, Plans
from autoseg.plugins import build_network
from autoseg.storage import read_json, write_json
from autoseg.training import train
from autoseg.training.checkpoint import load_weights
from autoseg.training.log import write_run
from autoseg.training.same_data import Sight, difference
from autoseg.training.teachers import load_teachers

NAME = "Dataset004_Hippocampus"
QUICK = {"steps": 1, "mirror": False, "observed_cases": 1}


def model_folder(folder, trainer, folds=2, *, plans=None, labels=None):
    """Write a model folder with random networks of the plan, or of other plans and labels; returns the networks."""
    context = trainer.context
    plans = plans or context.plans
    configuration = plans.configuration("3d_fullres")
    plans.write(folder / "plans.json")
    networks = []
    for fold in range(folds):
        torch.manual_seed(fold)
        networks.append(build_network(configuration.architecture, configuration.network).eval())
        save_file(networks[-1].state_dict(), folder / f"fold_{fold}.safetensors")
    member = Member(
        name="3d_fullres", plans_file="plans.json", configuration="3d_fullres", architecture=configuration.architecture,
        trainer="supervised", folds={str(fold): f"fold_{fold}.safetensors" for fold in range(folds)}, mirror_axes=(),
    )  # fmt: skip
    model = Model(
        dataset_name=context.dataset.name, channel_names=("MRI",), labels=labels or trainer.labels,
        file_ending=".nii.gz", members=(member,), checksums=checksums(folder),
    )  # fmt: skip
    write_json(folder / MODEL_FILE, model.model_dump(mode="json"))
    return networks


def test_the_soft_labels_are_the_mean_of_the_folds(build, tmp_path):
    networks = model_folder(tmp_path, build("supervised"))
    trainer = build("distillation", teacher=str(tmp_path), temperature=2.0, soft_weight=0.5)
    batch = {name: stream.batch(0) for name, stream in trainer.build_streams().items()}
    ((_, loss),) = trainer.training_step(batch, 0.5)
    image, student = batch["labelled"].image, trainer.modules["network"]
    with torch.no_grad():
        taught = (networks[0](image) + networks[1](image)) / 2
    logits = student(image)
    soft = soft_label_loss(full_resolution(logits), taught, 2.0)
    torch.testing.assert_close(loss, trainer.supervised_loss(logits, batch["labelled"]) + 0.5 * soft)
    loss.backward()
    assert all(not p.requires_grad and p.grad is None for teacher in trainer._teachers for p in teacher.parameters())
    assert set(trainer.modules) == {"network"}  # checkpoints hold the student alone


@pytest.mark.parametrize("width", ["inf", 1e9, 0])
def test_widths_without_bounds_are_refused(run, width):
    with pytest.raises(UserError, match="width"):
        run("distillation", settings=QUICK | {"width": width})


def test_a_student_of_half_the_width_is_recorded_as_such_and_can_teach_in_turn(run, build):
    large = run("supervised", settings=QUICK)
    small = run("distillation", settings=QUICK | {"width": 0.5, "feature_weight": 1.0})
    assert read_json(small / "run.json")["parameters"] < 0.5 * read_json(large / "run.json")["parameters"]
    spec = Plans.read(small / "plans.json").configuration("3d_fullres").network
    assert spec.features == (2, 4, 4)
    assert load_weights(small / "weights.safetensors")["encoder.stages.0.0.convs.0.conv.weight"].shape[0] == 2
    (again,) = load_teachers(small, build("supervised").context)
    assert again.spec.features == (2, 4, 4)
    assert not again.training


def test_a_width_that_changes_nothing_is_told(build, tmp_path):
    model_folder(tmp_path, build("supervised"))
    fixed = tmp_path / "fixed.py"
    fixed.write_text(
        "from autoseg import Architecture, register\n"
        "from autoseg.architectures.plain_unet import PlainUNet\n"
        "@register.architecture('fixed')\n"
        "class Fixed(PlainUNet):\n"
        "    def __init__(self, spec):\n"
        "        super().__init__(spec.model_copy(update={'features': (4,) * len(spec.features)}))\n"
    )
    build("distillation", teacher=str(tmp_path), architecture=str(fixed))
    with pytest.raises(UserError, match=r"width=0.5 changes nothing in .*fixed"):
        build("distillation", teacher=str(tmp_path), architecture=str(fixed), width=0.5)


def heads_of(tmp_path, heads):
    """Write an architecture whose number of heads must divide all its channels; returns its file."""
    file = tmp_path / f"heads_{heads}.py"
    file.write_text(
        "from autoseg import Architecture, register\n"
        "from autoseg.architectures.plain_unet import PlainUNet\n"
        "@register.architecture('heads')\n"
        "class Heads(PlainUNet):\n"
        "    def __init__(self, spec):\n"
        f"        if any(width % {heads} for width in spec.features):\n"
        f"            raise ValueError('{heads} heads do not divide all widths')\n"
        "        super().__init__(spec)\n"
    )
    return file


def test_a_width_that_cannot_be_built_gives_way_to_the_nearest_and_is_told_once(run, build, tmp_path, caplog):
    model_folder(tmp_path, build("supervised"))
    settings = QUICK | {"teacher": str(tmp_path), "width": 0.4}  # features (2, 3, 3) of (4, 8, 8)
    with caplog.at_level("INFO", "autoseg.training"):
        folder = run("distillation", settings=settings, architecture=str(heads_of(tmp_path, 2)))
    told = [line for line in caplog.messages if "with width=0.4 (2 heads do not divide all widths)" in line]
    assert [line.partition("built with, ")[2] for line in told] == ["0.5, which makes its features (2, 4, 4)"]
    assert Plans.read(folder / "plans.json").configuration("3d_fullres").network.features == (2, 4, 4)


def test_a_width_that_serves_nowhere_near_is_told_before_a_run_folder_is_made(run, scratch, build, tmp_path):
    model_folder(tmp_path, build("supervised"))
    settings = QUICK | {"teacher": str(tmp_path), "width": 0.25}
    told = r"width=0.25 makes features of \(1, 2, 2\), .*4 heads do not divide all widths"
    with pytest.raises(UserError, match=told) as error:
        run("distillation", settings=settings, architecture=str(heads_of(tmp_path, 4)))
    assert "--set width" in error.value.mend
    assert not list(scratch.results.rglob("fold_*"))


def test_all_folds_of_an_experiment_teach_or_only_the_same_one(run, build):
    folder = run("supervised", settings=QUICK)
    shutil.copytree(folder, folder.parent / "fold_7")
    assert len(build("distillation")._teachers) == 2
    assert len(build("distillation", teacher_folds="same")._teachers) == 1
    assert len(build("distillation", teacher=str(folder))._teachers) == 1


def test_a_missing_teacher_and_one_of_other_data_are_told(run, build, tmp_path):
    with pytest.raises(UserError, match="train the teacher first"):
        build("distillation")
    flat = run("supervised", "2d", settings=QUICK)
    with pytest.raises(
        UserError, match=r"its dims is 2, that of this run 3\n.*a teacher of the same dims, or train one"
    ):
        build("distillation", teacher=str(flat))


def changed(plans, *, network=None, **fields):
    """Return plans with other fields, those of the plans themselves or of their 3d_fullres."""
    own = {name: fields.pop(name) for name in list(fields) if name in Plans.model_fields}
    old = plans.configurations["3d_fullres"]
    spec = {**old.network.model_dump(), **(network or {}), "patch_size": fields.get("patch_size", old.patch_size)}
    new = Configuration.model_validate({**old.model_dump(), **fields, "network": spec})
    return plans.model_copy(update={"configurations": {**plans.configurations, "3d_fullres": new}, **own})


def ct(plans, mean):
    statistics = plans.intensities[0].model_copy(update={"mean": mean, "std": 2.0})
    return changed(plans, normalization=("ct",), intensities=(statistics,))


def test_a_teacher_of_other_plans_that_sees_the_same_teaches(build, tmp_path):
    plain = build("supervised")
    wider = changed(
        plain.context.plans, data_identifier="large_3d_fullres", patch_size=(32, 32, 32), batch_size=4,
        spacing=tuple(1.0001 * edge for edge in plain.context.configuration.spacing), network={"features": (6, 8, 8)},
    )  # fmt: skip
    networks = model_folder(tmp_path, plain, plans=wider)
    trainer = build("distillation", teacher=str(tmp_path))
    assert [teacher.spec.features for teacher in trainer._teachers] == [(6, 8, 8)] * len(networks)
    batch = {name: stream.batch(0) for name, stream in trainer.build_streams().items()}
    ((_, loss),) = trainer.training_step(batch, 0.5)
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"spacing": (2.0, 1.0, 1.0)}, r"its spacing is \(2.0, 1.0, 1.0\), that of this run \(1.0, 1.0, 1.0\)"),
        (
            {"transpose_forward": (2, 1, 0), "transpose_backward": (2, 1, 0)},
            r"its transpose_forward is \(2, 1, 0\), that of this run \(0, 1, 2\)",
        ),
        ({"channel_names": ("CT",)}, r"its channel_names is \('CT',\), that of this run \('MRI',\)"),
        ({"normalization": ("none",)}, r"its normalization is \('none',\), that of this run \('zscore',\)"),
        ({"use_mask": (True,)}, r"its use_mask is \(True,\), that of this run \(False,\)"),
        ({"network": {"in_channels": 3}}, r"its network.in_channels is 3, that of this run 1"),
    ],
)
def test_a_teacher_that_sees_other_data_is_told_with_the_field(build, tmp_path, fields, told):
    plain = build("supervised")
    model_folder(tmp_path, plain, plans=changed(plain.context.plans, **fields))
    with pytest.raises(UserError, match=told) as error:
        build("distillation", teacher=str(tmp_path))
    # The results of this workspace are elsewhere, which no option names.
    assert error.value.mend.endswith(f"autoseg train {plain.context.dataset.folder} 3d_fullres cv --plans tiny")


def test_statistics_count_where_the_normalisation_takes_them(build):
    context = build("supervised").context
    sights = [
        Sight(ct(context.plans, mean), ct(context.plans, mean).configuration("3d_fullres"), None) for mean in (5, 6)
    ]
    field, *values = difference(*sights)
    assert field.startswith("intensities.0 (mean")
    assert [value[0] for value in values] == [5, 6]
    other = changed(context.plans, intensities=ct(context.plans, 5).intensities)
    assert difference(*(Sight(p, p.configuration("3d_fullres"), None) for p in (other, context.plans))) is None


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"Posterior": (1,), "Anterior": (2,)}, "its label 1 is Posterior = 1, that of this run Anterior = 1"),
        ({"Anterior": (1,), "Posterior": (3,)}, "its label 2 is Posterior = 3, that of this run Posterior = 2"),
    ],
)
def test_a_teacher_of_other_labels_is_told_though_they_are_as_many(build, tmp_path, values, told):
    plain = build("supervised")
    model_folder(tmp_path, plain, labels=Labels(values=values))
    with pytest.raises(UserError, match=told):
        build("distillation", teacher=str(tmp_path))


def test_the_labels_of_a_run_count_too(run, build):
    folder = run("supervised", settings=QUICK)
    record = read_json(folder / "run.json")
    assert record["labels"]["values"] == {"Anterior": [1], "Posterior": [2]}
    record["labels"]["values"] = {"Anterior": [1], "Middle": [2]}
    write_run(folder, labels=record["labels"])
    with pytest.raises(UserError, match="its label 2 is Middle = 2, that of this run Posterior = 2"):
        build("distillation")


def test_a_teacher_that_does_not_take_the_patch_is_told(build, tmp_path):
    plain = build("supervised")
    strides = ((1, 1, 1), (4, 4, 4), (4, 4, 4))
    deep = changed(plain.context.plans, patch_size=(32, 32, 32), network={"strides": strides})
    model_folder(tmp_path, plain, plans=deep)
    told = r"plain_unet for patches of \(32, 32, 32\), does not take those of this run, \(24, 32, 24\)"
    with pytest.raises(UserError, match=told) as error:
        build("distillation", teacher=str(tmp_path))
    assert "plan this run for multiples of (16, 16, 16)" in error.value.mend


@pytest.fixture
def narrow(scratch):
    """Return the name of plans of their own, with a smaller patch and a store that is called otherwise."""
    plans = Plans.read(scratch.plans_file(NAME, "tiny"))
    new = changed(plans, patch_size=(16, 16, 16), data_identifier="narrow_3d_fullres")
    file, store = scratch.plans_file(NAME, "narrow"), scratch.store_folder(NAME, "narrow_3d_fullres")
    old = plans.configuration("3d_fullres").data_identifier
    shutil.copytree(scratch.store_folder(NAME, old), store)
    new.model_copy(update={"plans_name": "narrow"}).write(file)
    yield "narrow"
    file.unlink()
    shutil.rmtree(store)


def test_a_student_with_plans_of_its_own_is_taught(run, narrow):
    large = run("supervised", settings=QUICK)
    with pytest.raises(UserError, match="supervised__narrow__3d_fullres: there is no finished network") as error:
        run("distillation", settings=QUICK, plans_name=narrow)
    assert error.value.mend.endswith(f"take that of other plans: --set teacher={large.parent}")
    small = run("distillation", settings=QUICK | {"teacher": str(large.parent)}, plans_name=narrow)
    assert read_json(small / "run.json")["status"] == "finished"


def test_another_teacher_makes_it_another_run(run):
    run("supervised", settings=QUICK)
    student = run("distillation", settings=QUICK)
    weights = student / "weights.safetensors"
    before = weights.stat().st_mtime_ns
    run("supervised", settings=QUICK, seed=1, restart=True)
    for status in ("finished", "interrupted"):
        write_run(student, status=status)
        with pytest.raises(UserError, match="a run with other input files, such as teachers") as error:
            run("distillation", settings=QUICK)
        assert "--restart" in error.value.mend
    assert weights.stat().st_mtime_ns == before
    run("distillation", settings=QUICK, restart=True)
    assert weights.stat().st_mtime_ns > before


def test_a_run_that_recorded_no_teachers_is_taken_as_it_is(run):
    run("supervised", settings=QUICK)
    student = run("distillation", settings=QUICK)
    record = read_json(student / "run.json")
    del record["identity"]["input files"]
    write_json(student / "run.json", record)
    assert run("distillation", settings=QUICK) == student


def test_a_finished_student_needs_its_teachers_no_more(run, caplog, tmp_path):
    teacher = run("supervised", settings=QUICK)
    shutil.copytree(teacher, teacher.parent / "fold_7")
    student = run("distillation", settings=QUICK)
    before = (student / "weights.safetensors").stat().st_mtime_ns
    for gone in (teacher.parent / "fold_7", teacher.parent):  # one of them, then all
        shutil.move(gone, tmp_path / f"moved_{gone.name}")
        caplog.clear()
        with caplog.at_level("INFO", "autoseg.training"):
            assert run("distillation", settings=QUICK) == student
        assert "fold 0 is finished already" in caplog.text
    with pytest.raises(UserError, match=r"settings soft_weight 1\.0, not 2\.0"):
        run("distillation", settings=QUICK | {"soft_weight": 2.0})
    with pytest.raises(UserError, match="there is no finished network to learn from"):
        run("distillation", settings=QUICK, restart=True)
    assert (student / "weights.safetensors").stat().st_mtime_ns == before
    record = read_json(student / "run.json")
    del record["identity"]["input files"]  # as earlier versions, which recorded none
    write_json(student / "run.json", record)
    assert run("distillation", settings=QUICK) == student
    write_run(student, status="interrupted")
    with pytest.raises(UserError, match="there is no finished network to learn from"):
        run("distillation", settings=QUICK)


def test_a_continued_cross_validation_asks_only_for_the_teachers_that_it_needs(run, scratch, tmp_path):
    options = {"plans_name": "tiny", "device": "cpu", "workers": 1, "workspace": scratch}
    asked = {"trainer": "distillation", "settings": QUICK | {"teacher_folds": "same"}}
    teachers = train(NAME, "3d_fullres", "0,1", settings=QUICK, **options)
    (first,) = train(NAME, "3d_fullres", "0", **asked, **options)
    shutil.move(teachers[0], tmp_path / "moved")
    students = train(NAME, "3d_fullres", "0,1", **asked, **options)
    assert students[0] == first
    assert [read_json(student / "run.json")["status"] for student in students] == ["finished", "finished"]


def test_a_folder_is_recorded_as_an_absolute_path_and_a_name_as_it_is(build, tmp_path, monkeypatch):
    model_folder(tmp_path / "teachers" / "one", build("supervised"))
    monkeypatch.chdir(tmp_path / "teachers")
    for given in ("one", "./one", "../teachers/one", str(tmp_path / "teachers" / "one")):
        assert build("distillation", teacher=given).teacher == str(tmp_path / "teachers" / "one")
    assert settled("supervised") == "supervised"


def test_a_folder_that_does_not_exist_is_told_as_such(build, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="the teacher's folder does not exist") as error:
        build("distillation", teacher="runs/best")
    assert Path(error.value.where) == tmp_path / "runs" / "best"
    assert "--set teacher=FOLDER" in error.value.mend
    (tmp_path / "best.safetensors").touch()
    with pytest.raises(UserError, match="the teacher is a file, no folder"):
        build("distillation", teacher="./best.safetensors")


def test_attention_by_hand():
    student = torch.tensor([[[1.0, 1.0], [1.0, 1.0]]]).view(1, 2, 1, 2)  # energies 1, 1: attention 1, 1
    teacher = torch.tensor([[[0.0, math.sqrt(2)]]]).view(1, 1, 1, 2)  # energies 0, 2: attention 0, sqrt 2
    torch.testing.assert_close(attention(teacher), torch.tensor([[0.0, math.sqrt(2)]]))
    expected = (1 + (1 - math.sqrt(2)) ** 2) / 2
    assert attention_loss([student], [[teacher]]).item() == pytest.approx(expected)
    assert attention_loss([student], [[3 * student]]) == 0
    halved = attention_loss([student], [[teacher], [student]])  # teachers are averaged: 1/2, (1 + sqrt 2) / 2
    assert halved.item() == pytest.approx((0.25 + ((math.sqrt(2) - 1) / 2) ** 2) / 2)
    assert attention_loss([student], [[torch.zeros(1, 4, 3, 3)]]) == 0  # no map of equal size
