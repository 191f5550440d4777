import pytest
import torch
from torch.nn import functional

from autoseg.labels import Labels
from autoseg.losses import DeepSupervisionLoss, SegmentationLoss, deep_supervision_weights, downsample


def test_weights_of_the_card():
    assert deep_supervision_weights(3) == pytest.approx([2 / 3, 1 / 3, 0])
    assert deep_supervision_weights(5) == pytest.approx([0.5333, 0.2667, 0.1333, 0.0667, 0], abs=1e-4)
    assert deep_supervision_weights(2) == [1, 0]
    assert deep_supervision_weights(1) == [1]


@pytest.mark.parametrize("shape", [(20, 28, 20), (10, 14, 5), (40, 7, 40), (13, 56, 17)])
def test_downsampling_is_nearest_exact(shape):
    segmentation = torch.randint(-1, 5, (2, 40, 56, 40), generator=torch.Generator().manual_seed(0)).short()
    expected = functional.interpolate(segmentation[:, None].float(), shape, mode="nearest-exact")[:, 0]
    assert torch.equal(downsample(segmentation, shape).float(), expected)


def test_weighted_sum_and_no_gradient_for_the_lowest_resolution():
    labels = Labels(values={"a": (1,)})
    loss = SegmentationLoss(labels, batch_dice=True)
    target = torch.randint(0, 2, (2, 16, 8), generator=torch.Generator().manual_seed(0))
    outputs = [torch.randn(2, 2, 16 // 2**i, 8 // 2**i, requires_grad=True) for i in range(3)]
    value = DeepSupervisionLoss(loss, 3)(outputs, target)
    expected = 2 / 3 * loss(outputs[0], target) + 1 / 3 * loss(outputs[1], target[:, 1::2, 1::2])
    assert torch.allclose(value, expected)
    value.backward()
    assert outputs[0].grad is not None
    assert outputs[2].grad is None


def test_a_single_tensor_is_one_output():
    loss = SegmentationLoss(Labels(values={"a": (1,)}), batch_dice=True)
    logits, target = torch.randn(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int16)
    assert torch.equal(DeepSupervisionLoss(loss, 3)(logits, target), loss(logits, target))
    assert torch.equal(DeepSupervisionLoss(loss, 1)([logits], target), loss(logits, target))
    with pytest.raises(ValueError, match="expected 3 outputs, the network gave 2"):
        DeepSupervisionLoss(loss, 3)([logits, logits], target)
