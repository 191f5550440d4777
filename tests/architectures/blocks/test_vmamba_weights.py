"""VMamba's published names, both generations, to those of the networks here."""

import pytest
import torch
from autoseg.architectures.blocks.vmamba_weights import is_vmamba, numbered, vmamba_block
from network_specs import make, make_spec

from autoseg.training.pretrained import load_pretrained

BLOCK = {
    "mix.in_proj.weight": "in_proj.weight", "mix.conv.weight": "conv2d.weight", "mix.conv.bias": "conv2d.bias",
    "mix.scans.x_proj": "x_proj_weight", "mix.scans.dt_proj": "dt_projs_weight", "mix.scans.dt_bias": "dt_projs_bias",
    "mix.scans.A_log": "A_logs", "mix.scans.D": "Ds", "mix.norm.weight": "out_norm.weight",
    "mix.norm.bias": "out_norm.bias", "mix.out_proj.weight": "out_proj.weight",
}  # fmt: skip
NORMS = {"norm": ("ln_1", "norm"), "mlp_norm": ("norm2", "norm2")}


def published(stages, generation):
    """Return the tensors of the stages under VMamba's names."""
    weights = {}
    for number, stage in enumerate(stages):
        for name, tensor in stage.state_dict().items():
            block, _, rest = name.partition(".")
            part, _, end = rest.partition(".")
            if rest in BLOCK:
                theirs = f"{('self_attention', 'op')[generation]}.{BLOCK[rest]}"
                tensor = tensor.flatten(0, 1) if rest.endswith(("A_log", "D")) else tensor
                if generation and "proj.weight" in rest:
                    tensor = tensor[:, :, None, None]  # 1x1 convolutions there
            else:
                theirs = f"{NORMS[part][generation]}.{end}" if part in NORMS else rest
            weights[f"layers.{number}.blocks.{block}.{theirs}"] = tensor
    return weights


def loaded(network, weights, folder):
    torch.save({"model": weights | {"head.weight": torch.zeros(3, 3), "norm.weight": torch.ones(2)}}, folder / "v.pth")
    return {row.name for row in load_pretrained(network, folder / "v.pth") if row.status == "loaded"}


def test_vm_unet_starts_its_encoder_and_its_decoder(tmp_path):
    torch.manual_seed(0)
    source, network = (make("vm_unet", make_spec(2, 5, patch=(32, 32), base=4, channels=3)) for _ in range(2))
    weights = published(source.encoder, 0)
    for name, tensor in source.embed.state_dict().items():
        weights[f"patch_embed.proj.{name}"] = tensor
    for name, tensor in source.embed_norm.state_dict().items():
        weights[f"patch_embed.norm.{name}"] = tensor + 1
    for number, merge in enumerate(source.merges):
        weights |= {f"layers.{number}.downsample.{name}": tensor for name, tensor in merge.state_dict().items()}
    assert is_vmamba(weights)
    names = loaded(network, weights, tmp_path)
    parts = ("embed.", "embed_norm.", "encoder.", "merges.", "decoder.")
    assert names == {name for name in network.state_dict() if name.startswith(parts)}
    torch.testing.assert_close(network.embed_norm.weight, source.embed_norm.weight + 1)
    for stage in range(3):
        for ours, theirs in ((network.encoder[stage], source.encoder[stage]),):
            assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
        block = network.decoder[2 - stage][0].mix
        assert torch.equal(block.scans.A_log, source.encoder[stage][0].mix.scans.A_log)
        assert torch.equal(block.in_proj.weight, source.encoder[stage][0].mix.in_proj.weight)


def test_msvm_unet_starts_its_encoder(tmp_path):
    torch.manual_seed(0)
    spec = make_spec(2, 5, patch=(32, 32), base=4, channels=3, depths=[1, 2, 1])
    source, network = make("msvm_unet", spec), make("msvm_unet", spec)
    weights = published(source.stages, 1)
    for ours, theirs in {0: 0, 1: 2, 3: 5, 4: 7}.items():  # permutations stand between
        weights |= {f"patch_embed.{theirs}.{name}": tensor for name, tensor in source.stem[ours].state_dict().items()}
    for number, down in enumerate(source.downs):
        for ours, theirs in {0: 1, 1: 3}.items():
            for name, tensor in down[ours].state_dict().items():
                weights[f"layers.{number}.downsample.{theirs}.{name}"] = tensor
    names = loaded(network, weights, tmp_path)
    assert names == {name for name in network.state_dict() if name.startswith(("stem.", "stages.", "downs."))}
    for name in names:
        assert torch.equal(network.state_dict()[name], source.state_dict()[name])


@pytest.mark.parametrize("name", ["layers.0.blocks.0.other.weight", "head.weight", "layers.0.blocks.0.op.new.weight"])
def test_other_tensors_are_none_of_a_block(name):
    assert vmamba_block(name, torch.zeros(1)) is None
    assert not is_vmamba({name: torch.zeros(1)})


def test_layers_are_numbered_in_their_order():
    weights = {f"stem.{place}.weight": torch.tensor(place) for place in (10, 2, 0)}
    assert {name: int(t) for name, t in numbered(weights, "stem.", (0, 1, 3)).items()} == {
        "0.weight": 0, "1.weight": 2, "3.weight": 10,
    }  # fmt: skip
