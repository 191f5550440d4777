"""The checks of the card "revisiting-mae" (Spark3D), on the published network and on real data."""

import numpy as np
import pytest
import torch
from autoseg.trainers.masked_autoencoder import lattice, random_blocks, reconstruction_loss
from autoseg.trainers.pictures import picture
from autoseg.trainers.sparse_autoencoder import SparseAutoencoder, Visible, enlarge, make_sparse, visible_norm
from PIL import Image
from torch import nn

from autoseg.batches import HiddenLabels
from autoseg.errors import UserError
from autoseg.plans import NetworkSpec
from autoseg.plugins import build_network
from autoseg.training.checkpoint import load_weights
from autoseg.training.log import read_events, read_run
from autoseg.training.pretrained import head_tensors, load_pretrained
from autoseg.training.repeating import mend_by_training

SHRINKING = ((1, 1, 1), *[(2, 2, 2)] * 5)


def make_spec(features, strides, patch, channels=1):
    stages = len(features)
    return NetworkSpec(
        dims=len(patch), in_channels=channels, num_outputs=channels, patch_size=patch, strides=strides,
        features=features, kernel_sizes=((3,) * len(patch),) * stages, blocks_encoder=(1, 3, 4, 6, 6, 6)[:stages],
        blocks_decoder=(1,) * (stages - 1), deep_supervision=False,
    )  # fmt: skip


def small(dims=3, channels=2):
    patch = (16,) * dims
    strides = ((1,) * dims, (2,) * dims, (2,) * dims)
    torch.manual_seed(0)
    return build_network("residual_encoder_unet", make_spec((4, 6, 8), strides, patch, channels))


def numbers(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_of_the_published_network():
    spec = make_spec((32, 64, 128, 256, 320, 320), SHRINKING, (160, 160, 160))
    with torch.device("meta"):
        autoencoder = SparseAutoencoder(build_network("residual_encoder_unet", spec))
    assert numbers(autoencoder.network) == 102_348_965
    assert numbers(autoencoder.network.encoder) == 90_296_576
    assert numbers(autoencoder.densify) == 7_853_120
    assert numbers(autoencoder.tokens) == 1_120
    assert numbers(autoencoder) == 110_203_205  # no second copy of the encoder anywhere
    assert lattice(spec, None) == (10, 10, 10)
    features = autoencoder.network.encode(torch.zeros(1, 1, 64, 64, 64, device="meta"))
    assert [tuple(feature.shape[1:3]) for feature in features] == [
        (32, 64), (64, 32), (128, 16), (256, 8), (320, 4), (320, 2),
    ]  # fmt: skip


@pytest.mark.parametrize("dims", [2, 3])
def test_output_has_the_shape_of_the_input_in_2d_and_3d(dims):
    autoencoder = SparseAutoencoder(small(dims))
    image = torch.randn(2, 2, *[16] * dims)
    assert autoencoder(image, torch.ones(2, 1, *[4] * dims)).shape == image.shape


def test_with_everything_visible_the_sparse_encoder_is_the_dense_one():
    network, dense = small(), small()
    visible = Visible()
    make_sparse(network.encoder, visible)
    image = torch.randn(2, 2, 16, 16, 16)
    visible.show(torch.ones(2, 1, 4, 4, 4))
    for one, other in zip(network.encode(image), dense.encode(image), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    visible.show(None)
    assert all(torch.equal(a, b) for a, b in zip(network.encode(image), dense.encode(image), strict=True))


def test_statistics_come_from_visible_voxels_only():
    visible = enlarge(random_blocks(2, (4, 4, 4), 0.5, np.random.default_rng(0)), torch.Size((8, 8, 8)))
    x = torch.randn(2, 3, 8, 8, 8) * 3 + 5
    normed = visible_norm(x, visible)
    for sample in range(2):
        seen = normed[sample][:, visible[sample, 0] > 0]
        torch.testing.assert_close(seen.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(seen.var(1, correction=0), torch.ones(3), atol=1e-4, rtol=0)
    assert (normed * (1 - visible) == 0).all()
    gathered = torch.stack([x[0][:, visible[0, 0] > 0]])
    torch.testing.assert_close(
        normed[:1][:, :, visible[0, 0] > 0], nn.functional.instance_norm(gathered), atol=1e-5, rtol=1e-5
    )


def test_masked_voxels_are_zero_after_every_layer_but_in_a_stage_coarser_than_the_blocks():
    autoencoder = SparseAutoencoder(small())
    blocks = random_blocks(2, (8, 8, 8), 0.75, np.random.default_rng(1))  # blocks of 2: the last stage is dense
    fine, coarse = [], []

    def check(_layer, _inputs, output):
        mask = enlarge(blocks, output.shape[2:])
        (coarse if mask is None else fine).append(1.0 if mask is None else float((output * (1 - mask)).abs().max()))

    for layer in autoencoder.network.encoder.modules():
        if not any(layer.children()):
            layer.register_forward_hook(check)
    with torch.no_grad():
        autoencoder(torch.randn(2, 2, 16, 16, 16), blocks)
    assert len(fine) > 20
    assert max(fine) == 0
    assert coarse


def test_what_is_masked_never_reaches_the_prediction():
    autoencoder = SparseAutoencoder(small())
    blocks = random_blocks(1, (4, 4, 4), 0.75, np.random.default_rng(2))
    hidden = 1 - enlarge(blocks, torch.Size((16, 16, 16)))
    image = torch.randn(1, 2, 16, 16, 16)
    other = image + 100 * torch.randn_like(image) * hidden
    assert torch.equal(autoencoder(image, blocks), autoencoder(other, blocks))
    assert reconstruction_loss(autoencoder(image, blocks), image, blocks) < reconstruction_loss(
        autoencoder(other, blocks), other, blocks
    )


def test_every_mask_token_that_can_be_seen_learns():
    autoencoder = SparseAutoencoder(small())
    blocks = random_blocks(2, (4, 4, 4), 0.75, np.random.default_rng(3))
    image = torch.randn(2, 2, 16, 16, 16)
    reconstruction_loss(autoencoder(image, blocks), image, blocks).backward()
    assert all(token.grad.abs().max() > 0 for token in autoencoder.tokens)
    assert autoencoder.tokens[0].abs().max() <= 0.02


def test_blocks_are_counted_exactly_and_differ_between_samples():
    blocks = random_blocks(3, (10, 10, 10), 0.75, np.random.default_rng(0))
    assert (blocks == 0).flatten(1).sum(1).tolist() == [750, 750, 750]
    assert not torch.equal(blocks[0], blocks[1])


def test_the_loss_is_four_for_a_constant_two():
    for seed in range(3):
        blocks = random_blocks(2, (4, 4, 4), 0.75, np.random.default_rng(seed))
        image = torch.full((2, 3, 8, 8, 8), 2.0)
        assert reconstruction_loss(torch.zeros_like(image), image, blocks) == 4


def test_the_loss_has_no_gradient_where_the_image_was_seen():
    blocks = random_blocks(2, (4, 4, 4), 0.75, np.random.default_rng(0))
    image, prediction = torch.randn(2, 1, 8, 8, 8), torch.randn(2, 1, 8, 8, 8, requires_grad=True)
    reconstruction_loss(prediction, image, blocks).backward()
    seen = enlarge(blocks, image.shape[2:])
    assert (prediction.grad[seen > 0] == 0).all()
    hidden = prediction.grad[seen == 0]
    expected = 2 * (prediction - image).detach()[seen == 0] / (seen == 0).sum()
    torch.testing.assert_close(hidden, expected)


def test_blocks_follow_the_plan():
    shallow = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert lattice(make_spec((4,) * 4, shallow, (40, 56, 40)), None) == (5, 7, 5)  # 8: 4 would be too easy a task
    flat = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
    assert lattice(make_spec((4,) * 6, flat, (32, 256, 256)), None) == (4, 16, 16)
    assert lattice(make_spec((4,) * 4, shallow, (40, 56, 40)), 4) == (10, 14, 10)
    with pytest.raises(UserError, match="do not fill the patch"):
        lattice(make_spec((4,) * 4, shallow, (40, 56, 40)), 16)


def test_the_variable_form_draws_one_ratio_per_batch_within_bounds(build):
    trainer = build("masked_autoencoder", mask_ratio_spread=0.15)
    counts = [(trainer.draw_blocks(2, step) == 0).flatten(1).float().mean(1) for step in range(40)]
    assert all(count[0] == count[1] for count in counts)
    assert 0.55 < min(counts, key=lambda c: c[0])[0] < 0.65
    assert 0.85 < max(counts, key=lambda c: c[0])[0] <= 0.9


def test_networks_without_a_sparse_form_are_told():
    with pytest.raises(UserError, match="has no sparse form"):
        make_sparse(nn.Sequential(nn.Linear(2, 2)), Visible())


def test_it_sees_every_image_and_no_label(build):
    trainer = build("masked_autoencoder")
    stream = trainer.build_streams()["images"]
    assert set(stream.cases) == {*trainer.context.training_cases, *trainer.context.unlabelled_cases}
    assert isinstance(stream.store, HiddenLabels)
    assert stream.settings.foreground_fraction == 0
    assert stream.settings.augmentation == "spatial"
    assert all((stream.batch(step).segmentation == 0).all() for step in range(4))


def test_pretraining_lowers_the_error_leaves_a_picture_and_starts_a_training(run):
    settings = {"steps": 40, "learning_rate": 6e-3, "mirror": False}
    pretrained = run("masked_autoencoder", architecture="residual_encoder_unet", settings=settings)
    losses = [event["loss"] for event in read_events(pretrained / "log.jsonl") if event["event"] == "step"]
    assert losses[-1] < 0.8  # the variance of z-scored images is 1
    shown = np.asarray(Image.open(pretrained / "reconstruction.png"))
    assert shown.ndim == 2
    assert shown.std() > 10

    weights = load_weights(pretrained / "weights.safetensors")
    assert all(name.startswith("encoder.") for name in weights)
    short = {"steps": 2, "mirror": False, "observed_cases": 1}
    options = {"architecture": "residual_encoder_unet", "pretrained": pretrained, "settings": short}
    folder = run("fine_tuning", labelled=2, **options)
    (table,) = [e["text"] for e in read_events(folder / "log.jsonl") if e["event"] == "note" and "loaded" in e["text"]]
    assert table.startswith(f"{len(weights)} tensors loaded, 0 tensors adapted, ")
    assert "encoder." not in table
    assert "fresh    decoder.seg_layers.1.weight" in table
    told = mend_by_training(folder, read_run(folder), restart=True)  # a run that can be repeated as it was started
    assert told.endswith(f" --labelled 2 --pretrained {pretrained} --deterministic --restart")


def test_the_encoder_loads_strictly_into_the_ordinary_network(build):
    trainer = build("masked_autoencoder", architecture="residual_encoder_unet")
    spec = trainer.network_spec().model_copy(update={"num_outputs": 7})
    network = build_network("residual_encoder_unet", spec)
    state = trainer.inference_module().state_dict()
    inner = {name.removeprefix("encoder."): value for name, value in state.items()}
    own = {name.removeprefix("encoder."): value for name, value in network.state_dict().items() if "encoder." in name}
    assert inner.keys() == own.keys()
    assert [inner[name].shape for name in inner] == [own[name].shape for name in inner]


@pytest.mark.parametrize("architecture", ["unet_plus_plus", "medvisionllama"])
def test_no_head_is_given_out_where_no_tensor_is_named_encoder(build, architecture):
    trainer = build("masked_autoencoder", architecture=architecture, sparse=False)
    network = trainer.modules["network"].network
    other = build_network(architecture, network.spec.model_copy(update={"num_outputs": 7})).state_dict()
    heads = {name for name, value in network.state_dict().items() if value.shape != other[name].shape}
    assert heads
    assert not any(name.startswith("encoder.") for name in other)
    assert trainer.inference_module().state_dict().keys() == network.state_dict().keys() - heads


def test_a_head_for_images_does_not_become_one_for_labels(build, run):
    """One channel, one output: the head would fit."""
    short = {"steps": 1, "sparse": False, "mirror": False}
    pretrained = run("masked_autoencoder", architecture="unet_plus_plus", settings=short)
    trainer = build("masked_autoencoder", architecture="unet_plus_plus", sparse=False)
    network = trainer.modules["network"].network  # with as many outputs as channels
    table = {row.name: row.status for row in load_pretrained(network, pretrained, labels=("liver",))}
    fresh = {name for name, status in table.items() if status == "fresh"}
    assert fresh == head_tensors(network) & table.keys()
    assert fresh


def test_the_picture_has_a_row_per_sample_and_three_columns():
    rows = np.stack([np.stack([np.full((4, 6, 8), float(column)) for column in range(3)])] * 2)
    rows[:, 0, 2, 0, 0] = 1
    shown = picture(rows)
    assert shown.shape == (2 * 8 * 32, 3 * 10 * 32)
    assert shown.dtype == np.uint8
