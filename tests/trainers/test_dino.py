"""Self-distillation of a vision transformer: what it sees, what learns, what it leaves, the way to a segmentation."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from autoseg.architectures.blocks import map_channels
from autoseg.architectures.blocks.attention_maps import load_vit, normalised, scaled
from autoseg.architectures.blocks.dino_vit import ViTSize
from autoseg.trainers.dino_loss import distinction
from autoseg.trainers.dino_network import ProjectionHead
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from autoseg.batches import Batch, HiddenLabels
from autoseg.cli.running import run as command
from autoseg.errors import UserError
from autoseg.training.log import read_events

TINY = {"width": 24, "depth": 2, "heads": 2, "patch": 4, "out_dim": 32, "head_width": 32, "bottleneck": 16,
        "local_crops": 2, "batch_size": 4}  # fmt: skip
PLANNER = '''"""Tiny."""
from autoseg import Planner, register


@register.planner("smallest")
class Smallest(Planner):
    """Networks of four channels."""

    base_features: int = 4
    max_features_2d: int = 8
'''


@pytest.fixture
def trainer(build):
    """A set-up trainer with its optimiser."""
    built = build("dino", "2d", **TINY)
    built.build_optimizers(built.modules)
    return built


def step_of(trainer, progress=0.5, number=0):
    """Return the loss of one step, with gradients."""
    batches = {"images": trainer.build_streams()["images"].batch(number)}
    ((name, loss),) = trainer.training_step(batches, progress)
    assert name == "network"
    loss.backward()
    return loss


def test_it_sees_every_image_as_it_is_and_no_label(trainer):
    stream = trainer.build_streams()["images"]
    assert set(stream.cases) == {*trainer.context.training_cases, *trainer.context.unlabelled_cases}
    assert isinstance(stream.store, HiddenLabels)
    assert not trainer.needs_labels
    assert (stream.settings.augmentation, stream.settings.mirror_axes) == ("none", ())
    assert all((stream.batch(step).segmentation == 0).all() for step in range(3))


def test_pictures_are_scaled_as_for_attention_maps(trainer):
    batch = trainer.build_streams()["images"].batch(0)
    assert torch.equal(trainer.pictures(batch), scaled(batch.image))
    stacks = trainer.crops(trainer.pictures(batch), 0)
    assert [stack.shape for stack in stacks] == [(8, 3, 24, 24), (8, 3, 12, 12)]  # the patch is (32, 24)
    low, high = (normalised(torch.full((1, 3, 1, 1), value)) for value in (0.0, 1.0))
    assert all(((stack >= low - 1e-6) & (stack <= high + 1e-6)).all() for stack in stacks)


def test_slices_of_volumes_lie_across_the_first_axis(build):
    trainer = build("dino", "3d_fullres", **TINY, slices=3)
    image = torch.arange(8.0).view(1, 1, 8, 1, 1) + torch.linspace(0, 0.9, 40).view(5, 8)
    batch = Batch(image.expand(2, -1, -1, -1, -1), torch.zeros(2, 8, 5, 8), ("a", "b"), step=4)
    slices = torch.cat([trainer._slices(patch, 4, number) for number, patch in enumerate(batch.image)])
    assert slices.shape == (6, 1, 5, 8)
    chosen = slices.floor().flatten(1)
    assert (chosen == chosen[:, :1]).all()  # one slice each
    assert len(set(chosen[:3, 0].tolist())) == 3
    assert trainer.pictures(batch).shape == (6, 3, 5, 8)
    few = batch.image[0, :, :2]
    assert len(trainer._slices(few, 4, 0)) == 3  # of two slices one comes twice


def test_crops_are_those_of_seed_step_and_sample(build):
    pictures = torch.rand(3, 3, 32, 24)
    one, same, other = (build("dino", "2d", **TINY) for _ in range(3))
    other.context = type(other.context)(**{**vars(other.context), "seed": 1})
    first = one.crops(pictures, 7)
    assert all(torch.equal(a, b) for a, b in zip(first, same.crops(pictures, 7), strict=True))
    assert not torch.equal(first[0], one.crops(pictures, 8)[0])
    assert not torch.equal(first[0], other.crops(pictures, 7)[0])
    part = one.crops(pictures[:2], 7)  # a sample's crops do not depend on the others
    assert torch.equal(part[0][:2], first[0][:2])


def test_the_teacher_sees_large_crops_only_and_every_weight_of_the_student_learns(trainer):
    shapes = []
    teacher = trainer.modules["teacher"].backbone
    teacher.register_forward_hook(lambda _module, given, _output: shapes.append(tuple(given[0].shape)))
    loss = step_of(trainer)
    assert 0 < loss.item() < 30
    assert shapes == [(8, 3, 24, 24)]
    student = trainer.modules["network"]
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in student.parameters())
    assert not any(parameter.requires_grad for parameter in trainer.modules["teacher"].parameters())


def test_the_last_layer_waits_with_a_gradient_of_0(trainer):
    step_of(trainer, progress=0.0)
    gradients = {name: parameter.grad for name, parameter in trainer.modules["network"].named_parameters()}
    assert (gradients["head.last.weight"] == 0).all()
    assert gradients["head.mlp.0.weight"].abs().sum() > 0


def test_scores_are_cosines():
    torch.manual_seed(0)
    head = ProjectionHead(6, 8, 5, 7)
    features = torch.randn(3, 6)
    before, rows = head.mlp(features), head.last.weight
    expected = before @ rows.T / before.norm(dim=1, keepdim=True) / rows.norm(dim=1)
    torch.testing.assert_close(head(features), expected)
    rows.data *= 3  # the magnitude is fixed
    torch.testing.assert_close(head(features), expected)
    assert torch.equal(head(features, last_learns=False), head(features))


def test_the_teacher_is_a_moving_average(trainer):
    before = {name: value.clone() for name, value in trainer.modules["teacher"].state_dict().items()}
    with torch.no_grad():
        for parameter in trainer.modules["network"].parameters():
            parameter += 1
    trainer.after_step(0.5)
    for name, value in trainer.modules["teacher"].state_dict().items():
        torch.testing.assert_close(value, before[name] + 0.002, atol=1e-6, rtol=0)
    trainer.after_step(1.0)  # the decay is 1 then
    torch.testing.assert_close(trainer.modules["teacher"].head.last.weight, before["head.last.weight"] + 0.002)


def test_weight_decay_rises_and_spares_biases_and_norms(trainer):
    decaying, spared = trainer._optimizer.param_groups
    names = {id(parameter): name for name, parameter in trainer.modules["network"].named_parameters()}
    assert all(names[id(each)].endswith("bias") or "norm" in names[id(each)] for each in spared["params"])
    assert not any(names[id(each)].endswith("bias") or "norm" in names[id(each)] for each in decaying["params"])
    assert len(decaying["params"]) + len(spared["params"]) == len(names)
    for progress, expected in ((0.0, 0.04), (0.5, 0.22), (1.0, 0.4)):
        step_of(trainer, progress)
        assert (decaying["weight_decay"], spared["weight_decay"]) == (pytest.approx(expected), 0)
    assert [trainer.schedule(each) for each in (0, 0.5, 1)] == pytest.approx([1, 0.501, 0.002])


def test_published_sizes_are_settings(build):
    published = {"width": 384, "depth": 12, "patch": 16, "global_size": 224, "local_size": 96, "local_crops": 10}
    with torch.device("meta"):
        trainer = build("dino", "2d", **published)
    assert trainer.vit_size() == ViTSize(384, 12, 6, 16, 14)
    assert sum(each.numel() for each in trainer.modules["network"].backbone.parameters()) == 21_665_664
    assert [view.edge for view in trainer.views()] == [224, 224, *[96] * 10]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 5}, "5 heads do not divide the width 24"),
        ({"global_size": 22}, "global_size=22 is no multiple of patch=4"),
        ({"local_size": 10}, "local_size=10 is no multiple of patch=4"),
        ({"global_size": 12, "local_size": 16}, "larger than large ones"),
        ({"crop_boundary": 1.5}, "setting crop_boundary cannot be"),
        ({"out_dim": 1}, "setting out_dim cannot be"),
    ],
)
def test_settings_that_do_not_fit_are_refused(build, settings, message):
    with pytest.raises(UserError, match=message):
        build("dino", "2d", **(TINY | settings))


def test_training_on_real_images_neither_collapses_nor_stays_even(build):
    sizes = {"width": 48, "out_dim": 64, "head_width": 64, "bottleneck": 32, "batch_size": 8}
    short = {"learning_rate": 1e-3, "teacher_decay": 0.99, "teacher_temperature": 0.04}
    trainer = build("dino", "2d", **TINY | sizes | short)
    optimizer = trainer.build_optimizers(trainer.modules)["network"]
    for step in range(30):
        step_of(trainer, step / 30, step)
        optimizer.step()
        optimizer.zero_grad()
        trainer.after_step(step / 30)
    stream, scores = trainer.build_streams()["images"], []
    for step in range(100, 103):
        scores.append(trainer.teach(trainer.crops(trainer.pictures(stream.batch(step)), step)))
    entropy, divergence = distinction(trainer.modules["loss"].targets(torch.cat(scores), 0.04))
    assert 0.1 < entropy < math.log(64) - 0.1
    assert divergence > 0.05  # a collapsed one has 0


def test_a_collapsed_teacher_is_told(build, caplog):
    trainer = build("dino", "2d", **TINY)
    trainer.context.folder.mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        trainer.finish()
    assert "same output" not in caplog.text
    for parameter in trainer.modules["teacher"].head.mlp[-1].parameters():
        torch.nn.init.zeros_(parameter)
    with caplog.at_level(logging.WARNING):
        trainer.finish()
    assert "the teacher gives all images the same output" in caplog.text


def test_the_run_leaves_a_transformer_that_loads_strictly_and_a_picture(run, tmp_path):
    folder = run("dino", "2d", settings=TINY | {"steps": 3})
    file = folder / "weights.safetensors"
    vit = load_vit(file)
    assert vit.size == ViTSize(24, 2, 2, 4, 6)  # 2 heads: the file tells, no shape does
    state, weights = torch.load(_state(folder), weights_only=True)["modules"], load_file(file)
    assert set(state) == {"network", "teacher", "loss"}
    assert all(torch.equal(value, state["teacher"][f"backbone.{name}"]) for name, value in weights.items())
    assert not any(torch.equal(value, state["network"][f"backbone.{name}"]) for name, value in weights.items())
    shown = np.asarray(Image.open(folder / "attention_maps.png"))
    assert shown.shape[0] / 34 == 4 * (192 // 32)  # four rows of slices
    assert shown.shape[1] / 26 == 3 * (192 // 32)  # the slice and two heads
    assert shown.std() > 10

    with safe_open(file, "pt") as content:
        assert content.metadata() == {"heads": "2"}
    save_file(weights, tmp_path / "untold.safetensors")
    with pytest.raises(UserError, match="width 24 with heads of 64"):
        load_vit(tmp_path / "untold.safetensors")
    save_file(weights, tmp_path / "wrong.safetensors", {"heads": "7"})
    with pytest.raises(UserError, match="no ViT has 2 blocks of width 24"):
        load_vit(tmp_path / "wrong.safetensors")


def _state(folder):
    import io

    return io.BytesIO((folder / "state.pt").read_bytes()[len(b"autoseg-state-1\n") + 32 :])


def test_volumes_train_it_slice_by_slice(run):
    folder = run("dino", settings={**TINY, "batch_size": 2, "steps": 2})
    losses = [event["loss"] for event in read_events(folder / "log.jsonl") if event["event"] == "step"]
    assert all(math.isfinite(loss) for loss in losses)
    assert load_vit(folder / "weights.safetensors").size.heads == 2


def test_from_images_to_a_segmentation_by_commands(scratch, tmp_path, monkeypatch, capsys):
    """Pretrain, write the maps into the data set, plan for them, train."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smallest.py").write_text(PLANNER)
    name, place = "Dataset004_Hippocampus", ["--workspace", str(scratch.root)]
    # Its images lie in another folder than its results.
    monkeypatch.setattr("autoseg.workspace.Workspace.open", lambda _given=None: scratch)
    settings = [f"{key}={value}" for key, value in {**TINY, "steps": 2}.items()]
    pretrain = ["pretrain", name, "2d", "--trainer", "dino", "--plans", "tiny", "--device", "cpu", "--json"]
    assert command([*pretrain, "--set", *settings, *place]) == 0
    capsys.readouterr()
    (folder,) = scratch.results.glob("*/dino__tiny__2d/fold_all")
    with_maps = tmp_path / "Dataset905_Maps"
    map_channels.main([str(scratch.raw / name), str(with_maps), "--vit-file", str(folder / "weights.safetensors")])
    described = json.loads((with_maps / "dataset.json").read_text())["channel_names"]
    assert list(described.values())[1:] == ["attention_map"] * 2
    plan = ["plan-and-preprocess", str(with_maps), "-c", "2d", "--planner", "smallest.py", "--plans-name", "maps"]
    diamant = ["--architecture", "diamant", "--network-option", "maps=2"]
    assert command([*plan, *diamant, "--device", "cpu", "--workers", "1", *place]) == 0
    train = ["train", str(with_maps), "2d", "0", "--plans", "maps", "--device", "cpu", "--workers", "1"]
    short = ["--set", "steps=2", "batch_size=2", "observed_cases=1", "mirror=false"]
    assert command([*train, *short, *place]) == 0
    assert list(scratch.results.glob("*/supervised__maps__2d/fold_0/validation/summary.json"))
