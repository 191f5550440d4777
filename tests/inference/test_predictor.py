import numpy as np
import pytest
import torch
from scipy import ndimage

from autoseg.errors import UserError
from autoseg.inference import Predictor, logits_to_label_map, predict_preprocessed, previous_stage_label, tile_pass
from autoseg.model_folder import PostprocessingStep
from autoseg.preprocessing import preprocess_case

SPACING = (1.0, 1.0, 1.0)


def make_image(shape=(10, 20, 18), channels=1, seed=0):
    """Smooth blobs with an empty rim, so that there is something to crop."""
    noise = np.random.default_rng(seed).normal(size=(channels, *shape))
    image = ndimage.gaussian_filter(noise, (0, 1, 1.5, 1.5)).astype(np.float32)
    image[:, :1], image[:, :, -2:] = 0, 0
    return image


def load(folder, **settings):
    return Predictor.load(folder, device="cpu", precision="fp32", **settings)


def test_label_has_raw_values_and_the_shape_of_the_image(model_writer, tmp_path):
    predictor = load(model_writer(tmp_path))
    prediction = predictor.predict_array(make_image(), SPACING)
    assert prediction.label.shape == (10, 20, 18)
    assert prediction.label.dtype == np.uint8
    assert set(np.unique(prediction.label)) == {0, 3, 7}
    assert prediction.probabilities is None
    assert prediction.uncertainty is None


@pytest.mark.parametrize("plans", [
    {},
    {"spacing": (1.5, 0.9, 1.2)},
    {"spacing": (1.2, 0.8), "patch_size": (16, 8)},
    {"transpose": (1, 2, 0), "spacing": (1.3, 0.9, 1.2), "patch_size": (16, 8, 8)},
])  # fmt: skip
def test_probabilities_and_uncertainty_belong_to_the_label(model_writer, tmp_path, plans):
    predictor = load(model_writer(tmp_path, {"plans": plans, "folds": ("0", "1")}))
    prediction = predictor.predict_array(make_image(), SPACING, save_probabilities=True, uncertainty=True)
    assert prediction.probabilities.shape == (3, 10, 20, 18)
    np.testing.assert_allclose(prediction.probabilities.sum(0), 1, atol=1e-5)
    values = np.array([0, 3, 7])[prediction.probabilities.argmax(0)]
    assert (values == prediction.label).mean() > 0.9999
    outside = ~ndimage.binary_fill_holes(make_image()[0] != 0)
    assert np.all(prediction.label[:1] == 0)
    assert np.all(prediction.probabilities[0][:, -2:][outside[:, -2:]] == 1)
    assert prediction.uncertainty.dtype == np.float32
    assert np.all(prediction.uncertainty[:, -2:] == 0)
    assert 0 < prediction.uncertainty.max() <= 1


def test_a_flipped_image_gives_the_flipped_label(model_writer, tmp_path):
    """One tile and even margins: then tiles, padding and Gaussian are symmetric, too."""
    member = {"mirror_axes": (0, 1, 2), "plans": {"patch_size": (12, 20, 20)}}
    folder = model_writer(tmp_path, member, postprocessing=(PostprocessingStep(values=(1,)),))
    image = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=(1, 10, 20, 18)), (0, 1, 1, 1)) + 1
    for mirroring, follows in [(True, True), (False, False)]:
        predictor = load(folder, mirroring=mirroring)
        straight = predictor.predict_array(image, SPACING).label
        for axes in [(1,), (3,), (1, 2, 3)]:
            flipped = np.flip(predictor.predict_array(np.flip(image, axes), SPACING).label, [a - 1 for a in axes])
            differing = (flipped != straight).mean()
            assert (differing < 1e-3) == follows, (mirroring, axes, differing)


def test_networks_are_laid_out_for_the_cpu(model_writer, tmp_path):
    (network,) = load(model_writer(tmp_path)).members[0].networks
    kernels = [weight for weight in network.parameters() if weight.dim() == 5 and weight[0, 0].numel() > 1]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last_3d) for kernel in kernels)


def test_folds_are_averaged_and_can_be_chosen(model_writer, tmp_path):
    folder = model_writer(tmp_path, {"folds": ("0", "1", "all")})
    both, first, again = load(folder, folds=[0, "1"]), load(folder, folds=[0]), load(folder, folds=[0, 0])
    assert [len(p.members[0].networks) for p in (both, first, again, load(folder))] == [2, 1, 1, 3]
    assert len({p.identity for p in (both, first, load(folder), load(folder, step_size=0.7))}) == 4
    assert load(folder, folds=[0]).identity != load(folder, folds=[1]).identity
    with pytest.raises(UserError, match=r"no fold\(s\) 7"):
        load(folder, folds=[0, 7])


def test_an_ensemble_is_the_mean_of_the_probabilities(model_writer, tmp_path):
    two = {"name": "flat", "plans": {"spacing": (1.2, 0.8), "patch_size": (16, 8)}}
    three = {"name": "deep", "plans": {"transpose": (2, 0, 1), "spacing": (1.1, 1.4, 0.9)}}
    predictor = load(model_writer(tmp_path, two, three))
    image = make_image()
    mean = predictor.predict_array(image, SPACING, save_probabilities=True, uncertainty=True)
    assert mean.uncertainty.shape == image.shape[1:]
    separate = []
    for position in range(2):
        alone = Predictor(predictor.model, predictor.members[position : position + 1], predictor.settings, "cpu")
        alone.device = predictor.device
        separate.append(alone.predict_array(image, SPACING, save_probabilities=True).probabilities)
    np.testing.assert_allclose(mean.probabilities, (separate[0] + separate[1]) / 2, atol=1e-5)
    values = np.array([0, 3, 7])[mean.probabilities.argmax(0)]
    assert (values == mean.label).mean() > 0.9999


def test_a_cascade_sees_the_label_map_of_the_stage_before(model_writer, tmp_path):
    full = {"name": "full", "previous_stage": "low", "plans": {"in_channels": 3, "spacing": (1.0, 0.8, 1.1)}}
    low = {"name": "low", "in_ensemble": False, "plans": {"spacing": (2.0, 2.0, 2.0)}}
    predictor = load(model_writer(tmp_path, full, low))
    assert [loaded.member.name for loaded in predictor.members] == ["low", "full"]
    image = make_image()
    stage, top = predictor.members

    def logits(member, previous=None):
        case = preprocess_case(image, None, SPACING, plans=member.plans, configuration=member.configuration)
        below = None
        if previous is not None:
            below = previous_stage_label(previous, case.properties, member.plans, member.configuration)
            assert below.shape == case.data.shape[1:]
        found = predict_preprocessed(
            member.networks, torch.from_numpy(case.data), member.configuration, mirror_axes=(0, 1),
            precision="fp32", previous_label=below,
        )  # fmt: skip
        place = (case.properties, member.plans, member.configuration, predictor.model.labels)
        return logits_to_label_map(found, *place)

    low_label = logits(stage)
    assert low_label.max() == 2
    expected = logits(top, low_label)
    found = predictor.predict_array(image, SPACING).label
    np.testing.assert_array_equal(found, np.array([0, 3, 7])[expected])
    assert (logits(top, np.zeros_like(low_label)) != expected).any(), "the stage before matters"


ENSEMBLES = {
    "two": (
        {"name": "flat", "plans": {"spacing": (1.2, 0.8), "patch_size": (16, 8)}},
        {"name": "deep", "plans": {"transpose": (2, 0, 1), "spacing": (1.1, 1.4, 0.9)}},
    ),
    "a stage that is in the ensemble, too": (
        {"name": "low", "plans": {"spacing": (1.5, 1.5, 1.5)}},
        {"name": "full", "previous_stage": "low", "plans": {"in_channels": 3, "spacing": (1.0, 0.8, 1.1)}},
    ),
}


@pytest.mark.parametrize("name", ENSEMBLES)
def test_outputs_of_an_ensemble_are_decided_row_by_row(model_writer, tmp_path, name, monkeypatch):
    """Whatever is wanted comes out as from whole outputs, which nothing keeps but what serves two purposes."""
    predictor = load(model_writer(tmp_path, *ENSEMBLES[name]))
    image, wanted = make_image(), {"save_probabilities": True, "uncertainty": True}
    at_once = predictor.predict_array(image, SPACING, **wanted)
    rows, handed = tile_pass.Pass.rows, []

    def counted(self):
        for part in rows(self):
            handed.append(self.window.along)
            yield part

    monkeypatch.setattr(tile_pass.Pass, "rows", counted)
    monkeypatch.setattr(tile_pass, "VALUES_WORTH_HANDING_OUT", 1)
    monkeypatch.setattr(tile_pass, "VOXELS_PER_CALL", {"cpu": 1})
    found = predictor.predict_array(image, SPACING, **wanted)
    assert handed.count(None) == (name != "two")
    assert len(handed) > 2
    np.testing.assert_allclose(found.probabilities, at_once.probabilities, atol=1e-5)
    np.testing.assert_allclose(found.uncertainty, at_once.uncertainty, atol=1e-5)
    assert (found.label == at_once.label).mean() > 0.9999


def test_previous_stage_label_on_the_same_grid_is_cropped_and_transposed(model_writer, tmp_path):
    predictor = load(model_writer(tmp_path, {"plans": {"transpose": (2, 0, 1)}}))
    member = predictor.members[0]
    image = make_image()
    case = preprocess_case(image, None, SPACING, plans=member.plans, configuration=member.configuration)
    label = np.random.default_rng(0).integers(0, 3, image.shape[1:]).astype(np.int16)
    found = previous_stage_label(label, case.properties, member.plans, member.configuration)
    np.testing.assert_array_equal(found, label[1:, :-2].transpose(2, 0, 1))


def test_regions_and_postprocessing(model_writer, tmp_path):
    image = np.random.default_rng(0).normal(size=(1, 10, 20, 18))
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    plain = load(model_writer(tmp_path / "plain", labels=labels)).predict_array(
        image, SPACING, save_probabilities=True, uncertainty=True
    )
    whole, core = plain.probabilities > 0.5
    np.testing.assert_array_equal(plain.label, np.where(core, 2, whole))
    assert 0 < plain.uncertainty.max() <= 1
    steps = (PostprocessingStep(values=(2,)),)
    cleaned = load(model_writer(tmp_path / "steps", labels=labels, postprocessing=steps))
    label = cleaned.predict_array(image, SPACING).label
    assert ndimage.label(plain.label == 2, np.ones((3, 3, 3)))[1] > 1
    assert ndimage.label(label == 2, np.ones((3, 3, 3)))[1] == 1
    np.testing.assert_array_equal(label[label > 0], plain.label[label > 0])


def test_two_dimensional_images(model_writer, tmp_path):
    predictor = load(model_writer(tmp_path, {"plans": {"spacing": (1.0, 1.0)}}, channels=3))
    image = np.random.default_rng(0).normal(size=(3, 1, 37, 21))
    prediction = predictor.predict_array(image, (999, 1, 1), save_probabilities=True)
    assert prediction.label.shape == (1, 37, 21)
    assert len(np.unique(prediction.label)) > 1


@pytest.mark.parametrize("shape", [(10, 20, 18), (2, 10, 20, 18), (1, 20, 18)])
def test_images_of_other_channels_are_told(model_writer, tmp_path, shape):
    with pytest.raises(UserError, match=r"1 channel\(s\) \(channel0\)"):
        load(model_writer(tmp_path)).predict_array(np.zeros(shape), SPACING)


@pytest.mark.parametrize(
    "settings", [{"step_size": 0}, {"step_size": 1.5}, {"precision": "int4"}, {"device": "quantum"}]
)
def test_wrong_settings_are_told(model_writer, tmp_path, settings):
    with pytest.raises(UserError):
        Predictor.load(model_writer(tmp_path), **{"device": "cpu", **settings})


def test_changed_weights_are_refused(model_writer, tmp_path):
    weights = model_writer(tmp_path) / "members" / "member0" / "fold_0.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"\xff" * 100])
def test_weights_that_are_no_safetensors_are_refused(model_writer, model_editor, tmp_path, content):
    model_writer(tmp_path)
    (tmp_path / "members" / "member0" / "fold_0.safetensors").write_bytes(content)
    model_editor(tmp_path)
    with pytest.raises(UserError, match=r"fold_0\.safetensors"):
        load(tmp_path)


EVIL = """
from pathlib import Path
from autoseg.plugins import register
from autoseg.architectures.plain_unet import PlainUNet
(Path(__file__).parent / "was_run").touch()

@register.architecture("mine")
class Mine(PlainUNet):
    pass
"""


def test_source_in_the_model_runs_only_if_trusted(model_writer, model_editor, tmp_path):
    folder = model_writer(tmp_path / "model")
    (folder / "mine.py").write_text(EVIL)
    model_editor(folder, architecture="mine", plugin_source="mine.py")
    with pytest.raises(UserError, match="--trust-plugins"):
        load(folder)
    assert not (folder / "was_run").exists()
    predictor = load(folder, trust_plugins=True)
    assert (folder / "was_run").exists()
    assert type(predictor.members[0].networks[0]).__name__ == "Mine"


@pytest.mark.parametrize("reference", ["mine.py", "mine.py:mine", "members/../mine.py:mine"])
def test_a_path_as_architecture_is_never_run(model_writer, model_editor, tmp_path, monkeypatch, reference):
    folder = model_writer(tmp_path / "model")
    (folder / "mine.py").write_text(EVIL)
    model_editor(folder, architecture=reference)
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="names a file as its architecture"):
        load(folder, trust_plugins=True)
    assert not (folder / "was_run").exists()


def test_previous_stages_must_exist_and_not_go_round(model_writer, model_editor, tmp_path):
    folder = model_writer(tmp_path)
    model_editor(folder, previous_stage="nobody")
    with pytest.raises(UserError, match="nobody"):
        load(folder)
    model_editor(folder, previous_stage="member0")
    with pytest.raises(UserError, match="previous stages of one another"):
        load(folder)
    model_editor(folder, previous_stage=None, in_ensemble=False)
    with pytest.raises(UserError, match="no member that predicts"):
        load(folder)


def test_options_of_the_network_may_change_in_prediction(model_writer, tmp_path):
    folder = model_writer(tmp_path, {"architecture": "unet_plus_plus"})
    usual, pruned = load(folder), load(folder, network_options={"inference": "prune:1"})
    assert [load(folder, network_options={"inference": "last"}).members[0].networks[0].depth] == [1]
    assert usual.identity != pruned.identity  # finished predictions of one are not those of the other
    assert pruned.members[0].networks[0].options["inference"] == "prune:1"
    for options in ({"inference": "prune:2"}, {"inference": "prune"}, {"size": "L"}):
        with pytest.raises(UserError, match=r"UNetPlusPlus|unet_plus_plus"):
            load(folder, network_options=options)
