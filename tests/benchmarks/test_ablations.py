"""The controls of the trained checks differ from their networks in what is asked about; scores by hand."""

import json
from types import SimpleNamespace

import ablations
import pytest
import torch

from autoseg import plugins
from autoseg.plans import NetworkSpec

CONTROLS = ablations.CONTROLS
SPEC = NetworkSpec(
    dims=2, in_channels=1, num_outputs=3, patch_size=(32, 32), strides=((1, 1), (2, 2), (2, 2)),
    kernel_sizes=((3, 3),) * 3, features=(8, 16, 32), blocks_encoder=(2,) * 3, blocks_decoder=(2,) * 2,
    deep_supervision=False,
)  # fmt: skip
PAIRS = {  # a control, its network, and the start of the names of weights that the control leaves idle
    "hiformer_released": ("hiformer", ()),
    "resnet_unet": (f"{CONTROLS}:paratranscnn_96", ("embeddings", "transformers")),
    "transdae_space": ("transdae", ("encoder", "decoder")),
    "d_former_local": (f"{CONTROLS}:d_former_8", ()),
    "u_transformer_plain": ("u_transformer", ()),
    "meddinov3_last": ("meddinov3", ()),
    "medvisionllama_plain": ("medvisionllama", ()),
}


def build(reference, tmp_path, spec=SPEC):
    if reference in ("d_former_local", f"{CONTROLS}:d_former_8"):
        spec = spec.model_copy(
            update={
                "dims": 3, "patch_size": (16, 16, 16), "strides": ((1,) * 3, (2,) * 3, (2,) * 3),
                "kernel_sizes": ((3,) * 3,) * 3,
            }
        )  # fmt: skip
    reference = f"{CONTROLS}:{reference}" if f'"{reference}"' in CONTROLS.read_text() else reference
    kind = plugins.load("architecture", reference, tmp_path)
    torch.manual_seed(0)
    return kind(kind.adapt_spec(spec))


def logits(network):
    torch.manual_seed(1)
    x = torch.randn(2, 1, *network.spec.patch_size)
    torch.manual_seed(2)
    return network.train()(x)


@pytest.mark.parametrize("control", PAIRS)
def test_a_control_answers_otherwise_than_its_network(control, tmp_path):
    network, changed = build(PAIRS[control][0], tmp_path), build(control, tmp_path)
    own, weights = changed.state_dict(), network.state_dict()
    same = {name: weights[name] for name in own if name in weights and weights[name].shape == own[name].shape}
    changed.load_state_dict(own | same)  # those of other shapes are what the control changes
    given, other = logits(network), logits(changed)
    assert other.shape == given.shape
    assert not torch.allclose(given, other, atol=1e-4)


@pytest.mark.parametrize("control", [*PAIRS, "narrow_unet"])
def test_weights_of_a_control_are_trained_or_marked_idle(control, tmp_path):
    network = build(control, tmp_path)
    logits(network).square().mean().backward()
    unreached = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    if control == "hiformer_released":  # whose fusion is idle as published
        unreached = [name for name in unreached if not name.startswith("fusion.")]
    assert unreached == []
    idle = {name.split(".")[0] for name, p in network.named_parameters() if not p.requires_grad}
    assert idle >= set(PAIRS.get(control, ("", ()))[1])


def test_the_narrow_unet_is_as_wide_as_resunet_plus_plus(tmp_path):
    other = plugins.load("architecture", "resunet_plus_plus", tmp_path)
    assert build("narrow_unet", tmp_path).spec.features[0] == other.adapt_spec(SPEC).features[0] == 4


def test_recall_by_hand(tmp_path):
    cases = {
        "first": {"lesion": {"tp": 30, "fp": 5, "fn": 10}},
        "second": {"lesion": {"tp": 0, "fp": 1, "fn": 20}},
    }
    (tmp_path / "validation").mkdir()
    (tmp_path / "validation" / "summary.json").write_text(json.dumps({"cases": cases}))
    assert ablations.recall(tmp_path) == 0.5  # 30 of 60


@pytest.mark.parametrize(("losses", "expected"), [([4, 3, 2, 1], 0.0), ([4, 2, 3, 1], 3.0)])
def test_roughness_by_hand(tmp_path, losses, expected):
    """Slopes -2, 1, -2 differ by 3 twice."""
    run = tmp_path / "results" / "data" / "variants.unet.0__2d" / "fold_0"
    run.mkdir(parents=True)
    lines = [json.dumps({"step": 25 * i, "loss": loss}) for i, loss in enumerate(losses)]
    (run / ablations.CURVE).write_text("\n".join(lines))
    assert ablations.roughness(SimpleNamespace(workspace=tmp_path), "variants.unet.0") == expected


def test_predictions_before_attention_are_their_mean(tmp_path):
    network = build("ms_dual_guided", tmp_path, SPEC.model_copy(update={"deep_supervision": True}))
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    network.eval()
    features = network.encode(x)
    network.training = True  # all outputs, by layers that do not train
    outputs = network.decode(features)
    network.training = False
    ablations.by_early_heads(network)
    expected = torch.stack(outputs[len(outputs) // 2 :]).mean(0)
    torch.testing.assert_close(network(x), expected)
    assert not network.training
