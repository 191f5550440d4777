"""nnU-Net's memory measure: the card's numbers and a sum by hand."""

from autoseg.planning.estimate import plain_feature_map_sum, residual_feature_map_sum
from autoseg.plans import NetworkSpec


def make_spec(features, patch, blocks=2, decoder=2):
    dims, stages = len(patch), len(features)
    return NetworkSpec(
        dims=dims,
        in_channels=1,
        num_outputs=2,
        patch_size=patch,
        strides=((1,) * dims, *[(2,) * dims] * (stages - 1)),
        kernel_sizes=((3,) * dims,) * stages,
        features=features,
        blocks_encoder=blocks if isinstance(blocks, tuple) else (blocks,) * stages,
        blocks_decoder=(decoder,) * (stages - 1),
    )


SIX = (32, 64, 128, 256, 320, 320)


def test_small_2d_network():
    # encoder 2*(4*256 + 8*64 + 16*16) = 3584, decoder 3*(4*256 + 8*64) = 4608, head 2*256 = 512
    assert plain_feature_map_sum(make_spec((4, 8, 16), (16, 16)), 2) == 3584 + 4608 + 512 == 8704


def test_published_3d_networks():
    assert plain_feature_map_sum(make_spec(SIX, (128,) * 3), 3) == 452_796_416
    residual = make_spec(SIX, (128,) * 3, blocks=(1, 3, 4, 6, 6, 6), decoder=1)
    assert residual_feature_map_sum(residual, 3) == 557_420_544


def test_a_network_of_one_stage_has_its_encoder_only():
    assert plain_feature_map_sum(make_spec((4,), (5, 5)), 3) == 2 * 4 * 25
