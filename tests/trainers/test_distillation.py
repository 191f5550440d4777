import math
import shutil

import pytest
import torch
from autoseg.trainers.distillation import attention, attention_loss
from safetensors.torch import save_file

from autoseg.errors import UserError
from autoseg.losses import full_resolution, soft_label_loss
from autoseg.model_folder import MODEL_FILE, Member, Model, checksums
from autoseg.plans import Plans
from autoseg.plugins import build_network
from autoseg.storage import read_json, write_json
from autoseg.training.checkpoint import load_weights
from autoseg.training.teachers import load_teachers

QUICK = {"steps": 1, "mirror": False, "observed_cases": 1}


def model_folder(folder, trainer, folds=2):
    """Write a model folder with random networks of the plan; returns the networks."""
    context = trainer.context
    configuration = context.configuration
    context.plans.write(folder / "plans.json")
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
        dataset_name=context.dataset.name, channel_names=("MRI",), labels=trainer.labels, file_ending=".nii.gz",
        members=(member,), checksums=checksums(folder),
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


def test_a_student_of_half_the_width_is_recorded_as_such_and_can_teach_in_turn(run, build):
    large = run("supervised", settings=QUICK)
    small = run("distillation", settings=QUICK | {"width": 0.5, "feature_weight": 1.0})
    assert read_json(small / "run.json")["parameters"] < 0.5 * read_json(large / "run.json")["parameters"]
    spec = Plans.read(small / "plans.json").configuration("3d_fullres").network
    assert spec.features == (2, 4, 4)
    assert load_weights(small / "weights.safetensors")["encoder.stages.0.0.convs.0.conv.weight"].shape[0] == 2
    (again,) = load_teachers(small, build("supervised").context.configuration, torch.device("cpu"))
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
    with pytest.raises(UserError, match=r"data_identifier|dims"):
        build("distillation", teacher=str(flat))


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
