"""The decoder's maps of networks of several kinds, found by one pass."""

import pytest
import torch

from autoseg import plugins
from autoseg.plans import NetworkSpec
from autoseg.training.decoder_features import DecoderFeatures

EDGE = 64


def maps_of(name):
    """Return (stride, channels) of the decoder's and of the encoder's maps, and the decoder's maps themselves."""
    spec = NetworkSpec(
        dims=2, in_channels=1, num_outputs=3, patch_size=(EDGE, EDGE), strides=((1, 1), *[(2, 2)] * 4),
        kernel_sizes=((3, 3),) * 5, features=(8, 16, 32, 64, 64), blocks_encoder=(1,) * 5, blocks_decoder=(1,) * 4,
        deep_supervision=True,
    )  # fmt: skip
    torch.manual_seed(0)
    network = plugins.build_network(name, plugins.load("architecture", name).adapt_spec(spec)).train()
    found = DecoderFeatures(network)
    encoder = network.encode(torch.randn(1, 1, EDGE, EDGE))
    network.decode(encoder)
    return [[(EDGE // each.shape[2], each.shape[1]) for each in maps] for maps in (found.maps, encoder)], found.maps


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain_unet", [(2, 16), (4, 32), (8, 64)]),  # what goes into the heads
        ("unet_plus_plus", [(2, 16), (4, 32), (8, 64)]),  # whose heads are all at full resolution
        ("attention_unet", [(2, 32), (4, 64), (8, 128)]),  # whose heads are given logits; not its gates' maps
        ("mpu_net", [(2, 16), (4, 32), (8, 64)]),  # whose outputs come from no module; gated maps, not the gates'
        ("transdae", [(2, 16), (4, 32), (8, 80)]),  # one output; not the wider maps inside of its upsampling
    ],
)
def test_one_map_per_resolution_below_the_last(name, expected):
    (decoder, _), maps = maps_of(name)
    assert decoder == expected
    assert all(each.requires_grad for each in maps)


def test_swin_unetr_has_maps_of_its_up_blocks():
    pytest.importorskip("monai")
    (decoder, encoder), _ = maps_of("swin_unetr")
    assert decoder == [(2, 12), (4, 24), (8, 48), (16, 96)]
    assert encoder == [(1, 12), (2, 12), (4, 24), (8, 48), (16, 96), (32, 192)]


def test_a_decoder_without_lower_maps_has_none():
    (decoder, _), _ = maps_of("primus")
    assert decoder == []


def test_maps_are_those_of_the_last_pass():
    network = plugins.build_network("plain_unet", plain := _plain_spec())
    found = DecoderFeatures(network.train())
    network(torch.zeros(2, 1, *plain.patch_size))
    first = found.maps
    network(torch.ones(3, 1, *plain.patch_size))
    assert [each.shape[0] for each in first] == [2]
    assert [each.shape[0] for each in found.maps] == [3]


def _plain_spec():
    return NetworkSpec(
        dims=2, in_channels=1, num_outputs=2, patch_size=(16, 16), strides=((1, 1), (2, 2), (2, 2)),
        kernel_sizes=((3, 3),) * 3, features=(4, 8, 8), blocks_encoder=(1,) * 3, blocks_decoder=(1,) * 2,
        deep_supervision=True,
    )  # fmt: skip
