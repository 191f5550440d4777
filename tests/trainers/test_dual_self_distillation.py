"""The checks of the card "dual-self-distillation"."""

import math
from dataclasses import replace

import pytest
import torch
from autoseg.trainers.dual_self_distillation import Heads, up_steps

from autoseg.errors import UserError
from autoseg.losses import soft_label_loss
from autoseg.plans import NetworkSpec
from autoseg.plugins import build_network


def five_levels(build, **settings):
    """The trainer on a network of five levels, strides 1, 2, 4, 8, 16."""
    trainer = build("dual_self_distillation", **settings)
    configuration = trainer.context.configuration
    network = NetworkSpec(
        dims=3, in_channels=1, num_outputs=3, patch_size=(32, 32, 32), strides=((1, 1, 1), *[(2, 2, 2)] * 4),
        kernel_sizes=((3, 3, 3),) * 5, features=(2, 3, 4, 5, 6), blocks_encoder=(1,) * 5, blocks_decoder=(1,) * 4,
    )  # fmt: skip
    changed = configuration.model_copy(update={"network": network, "patch_size": (32, 32, 32)})
    deeper = type(trainer)(replace(trainer.context, configuration=changed), trainer.settings)
    torch.manual_seed(0)
    deeper.prepare()
    return deeper


def batch_of(trainer):
    return {name: stream.batch(0) for name, stream in trainer.build_streams().items()}


def test_heads_have_the_parameters_of_the_published_ones():
    widths = (32, 64, 128, 256, 320)
    maps = [torch.zeros(1, width, *[32 // 2**level] * 3) for level, width in enumerate(widths)]
    heads = Heads({"encoder": maps[:4], "decoder": maps[1:]}, (32, 32, 32), 8, shared=True)
    counts = sorted(sum(p.numel() for p in head.parameters()) for head in heads.heads.values())
    assert counts == [336, 1040, 1552, 2576, 3088]
    assert sum(counts) == 8592
    apart = Heads({"encoder": maps[:4], "decoder": maps[1:]}, (32, 32, 32), 8, shared=False)
    assert len(apart.heads) == 8


def test_one_layer_is_applied_again_and_strides_follow_the_plan():
    assert up_steps((8, 8, 8)) == [(2, 2, 2)] * 3
    assert up_steps((1, 1)) == [(1, 1)]
    assert up_steps((2, 8, 8)) == [(2, 2, 2), (1, 2, 2), (1, 2, 2)]
    assert up_steps((1, 3)) == [(1, 3)]


def test_nine_outputs_at_full_resolution_and_the_right_teachers(build):
    trainer = five_levels(build)
    main, encoder, decoder = trainer.all_logits(torch.randn(2, 1, 32, 32, 32))
    assert [tuple(logits.shape) for logits in (main, *encoder, *decoder)] == [(2, 3, 32, 32, 32)] * 9
    features = trainer.modules["network"].encode(torch.randn(1, 1, 32, 32, 32))
    trainer.modules["network"].decode(features)
    of_encoder, of_decoder = trainer.levels(features, trainer._decoder.maps)
    assert [each.shape[2] for each in of_encoder] == [32, 16, 8, 4]  # the teacher last: stride 8
    assert [each.shape[2] for each in of_decoder] == [2, 4, 8, 16]  # the teacher last: stride 2
    assert of_decoder[0] is features[-1]
    limited = five_levels(build, max_heads=2)
    assert [each.shape[2] for each in limited.levels(features, limited_maps(limited))[0]] == [32, 16]
    assert [each.shape[2] for each in limited.levels(features, limited_maps(limited))[1]] == [8, 16]


def limited_maps(trainer):
    network = trainer.modules["network"]
    network(torch.zeros(1, 1, 32, 32, 32))
    return trainer._decoder.maps


def test_prediction_is_that_of_the_network_alone(build):
    trainer = build("dual_self_distillation")
    network = trainer.inference_module().eval()
    plain = build_network(trainer.context.configuration.architecture, trainer.context.configuration.network)
    plain.load_state_dict(network.state_dict())
    image = torch.randn(1, 1, *trainer.context.configuration.patch_size)
    assert torch.equal(network(image), plain.eval()(image))


def test_the_divergence_of_the_card():
    teacher = torch.zeros(1, 2, 1)
    student = torch.tensor([[[math.log(0.9)], [math.log(0.1)]]])
    assert soft_label_loss(student, teacher, 1.0).item() == pytest.approx(0.5108, abs=1e-4)
    assert soft_label_loss(3 * student, teacher, 3.0).item() == pytest.approx(9 * 0.5108, abs=1e-3)
    assert soft_label_loss(student, student, 3.0) == 0
    one_region = soft_label_loss(torch.tensor([[[math.log(9.0)]]]), torch.zeros(1, 1, 1), 1.0, regions=True)
    assert one_region.item() == pytest.approx(0.5108, abs=1e-4)


def test_equal_logits_have_no_divergence_and_students_are_summed(build):
    trainer = build("dual_self_distillation", temperature=1.0)
    even = torch.zeros(1, 2, 1)
    student = torch.tensor([[[math.log(0.9)], [math.log(0.1)]]])
    assert trainer.path_loss([even, even, even]) == 0
    assert trainer.path_loss([student, student, even]).item() == pytest.approx(2 * 0.5108, abs=1e-4)


@pytest.mark.parametrize("detach", [True, False])
def test_the_teacher_can_be_detached(build, detach):
    trainer = build("dual_self_distillation", detach_teacher=detach)
    teacher, student = (torch.randn(1, 3, 4, 4, requires_grad=True) for _ in range(2))
    trainer.path_loss([student, teacher]).backward()
    assert student.grad.abs().max() > 0
    assert (teacher.grad is None) == detach


@pytest.mark.parametrize("shared", [True, False])
def test_a_teacher_that_no_label_reaches_keeps_its_gradients(build, shared):
    trainer = five_levels(build, shared_heads=shared, detach_teacher=True)
    student, teacher = (torch.randn(1, 3, 4, 4, requires_grad=True) for _ in range(2))
    trainer.path_loss([student, teacher], "encoder").backward()
    assert (teacher.grad is None) == shared


def test_with_nothing_but_the_main_output_it_is_plain_training_bit_for_bit(build):
    options = {"distillation": 0.0, "supervise_decoder": False}
    trainer, plain = build("dual_self_distillation", **options), build("supervised", deep_supervision=False)
    plain.modules["network"].load_state_dict(trainer.modules["network"].state_dict())
    gradients = []
    for each in (trainer, plain):
        ((_, loss),) = each.training_step(batch_of(each), 0.5)
        loss.backward()
        gradients.append((loss, [p.grad for p in each.modules["network"].parameters() if p.grad is not None]))
    (one, first), (other, second) = gradients
    assert torch.equal(one, other)
    assert len(first) == len(second) > 10
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_label_losses_are_summed_or_averaged(build):
    batch = batch_of(build("supervised"))
    total, mean = (
        float(next(five_levels(build, normalize=n, distillation=0.0).training_step(cropped(batch), 0.5))[1].detach())
        for n in (False, True)
    )
    assert total == pytest.approx(5 * mean, rel=1e-5)


def cropped(batches):
    batch = batches["labelled"]
    wide = torch.nn.functional.pad(batch.image, (0, 32, 0, 32, 0, 32))[..., :32, :32, :32]
    label = torch.nn.functional.pad(batch.segmentation, (0, 32, 0, 32, 0, 32))[..., :32, :32, :32]
    return {"labelled": replace(batch, image=wide, segmentation=label)}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("detach", [True, False])
def test_every_head_learns(build, shared, detach):
    trainer = five_levels(build, shared_heads=shared, detach_teacher=detach)
    ((_, loss),) = trainer.training_step(cropped(batch_of(build("supervised"))), 0.5)
    loss.backward()
    assert all(parameter.grad is not None for parameter in trainer.modules["heads"].parameters())


def test_the_published_heads_of_swin_unetr(build):
    """Card: encoder strides 1, 2, 4, 8 (the teacher), decoder strides 16, 8, 4, 2 (the teacher)."""
    trainer = build("dual_self_distillation", max_heads=4)
    encoder, decoder = (
        [torch.zeros(1, 1, 64 // s) for s in strides] for strides in ((1, 2, 4, 8, 16, 32), (2, 4, 8, 16))
    )
    of_encoder, of_decoder = trainer.levels(encoder, decoder)
    assert [64 // each.shape[2] for each in of_encoder] == [1, 2, 4, 8]
    assert [64 // each.shape[2] for each in of_decoder] == [16, 8, 4, 2]


def test_networks_with_one_decoder_map_are_told(build):
    with pytest.raises(UserError, match="maps of several resolutions from encoder and decoder; of primus it finds"):
        build("dual_self_distillation", architecture="primus")


def test_monais_network_and_its_heads_have_the_published_parameters():
    networks = pytest.importorskip("monai.networks.nets")
    network = networks.DynUNet(
        spatial_dims=3, in_channels=1, out_channels=8, kernel_size=[3] * 5, strides=[1, 2, 2, 2, 2],
        upsample_kernel_size=[2] * 4, filters=[32, 64, 128, 256, 320], res_block=True, norm_name="instance",
    )  # fmt: skip
    parameters = sum(each.numel() for each in network.parameters())
    assert parameters == 16_663_688
    assert parameters + 8_592 == 16_672_280


def test_networks_without_decoder_maps_are_told(build, tmp_path):
    plugin = tmp_path / "flat.py"
    plugin.write_text(
        "from torch import nn\n"
        "from autoseg import Architecture, register\n"
        '@register.architecture("flat")\n'
        "class Flat(Architecture):\n"
        '    """One convolution."""\n'
        "    def __init__(self, spec):\n"
        "        super().__init__(spec)\n"
        "        self.head = nn.Conv3d(spec.in_channels, spec.num_outputs, 1)\n"
        "    def encode(self, x):\n"
        "        return [x]\n"
        "    def decode(self, features):\n"
        "        return self.head(features[-1])\n"
    )
    with pytest.raises(UserError, match="maps of several resolutions"):
        build("dual_self_distillation", architecture=str(plugin))
