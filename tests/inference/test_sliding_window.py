import itertools

import numpy as np
import pytest
import torch
from torch import nn

from autoseg.errors import UserError
from autoseg.inference import tile_pass
from autoseg.inference.sums import Sums
from autoseg.inference.tiles import gaussian_weights, padding, tile_starts
from autoseg.inference.window import sliding_window, sliding_window_logits


def random_network(channels: int = 2, outputs: int = 3, dims: int = 3) -> nn.Module:
    """A network that is neither local nor equivariant under flips, as real ones are."""
    torch.manual_seed(0)
    conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
    norm = (nn.InstanceNorm2d, nn.InstanceNorm3d)[dims - 2]
    layers = conv(channels, 6, 3, padding=1), norm(6), nn.LeakyReLU(), conv(6, outputs, 3, padding=1)
    return nn.Sequential(*layers).eval()


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def by_the_book(network, values, patch, mirror_axes, outputs):
    """The card's rule written plainly: one tile, one mirror at a time, weight volume accumulated."""
    flat = len(patch) == 2
    full = (1, *patch) if flat else patch
    pads = padding(values.shape[1:], patch)
    padded = torch.nn.functional.pad(values, [amount for pad in reversed(pads) for amount in pad])
    total = torch.zeros(outputs, *padded.shape[1:], dtype=torch.float64)
    weight = torch.zeros(padded.shape[1:], dtype=torch.float64)
    gaussian = torch.from_numpy(gaussian_weights(patch)).reshape(full)
    positions = [tile_starts(size, length, 0.5) for size, length in zip(padded.shape[1:], full, strict=True)]
    if flat:
        positions[0] = range(padded.shape[1])
    subsets = [s for n in range(len(mirror_axes) + 1) for s in itertools.combinations(mirror_axes, n)]
    for corner in itertools.product(*positions):
        where = tuple(slice(start, start + length) for start, length in zip(corner, full, strict=True))
        tile = padded[(slice(None), *where)].reshape(1, -1, *patch)
        logits = 0
        for axes in subsets:
            flips = [axis + 2 for axis in axes]
            with torch.no_grad():
                logits = logits + network(tile.flip(flips)).flip(flips).double() / len(subsets)
        total[(slice(None), *where)] += logits.reshape(outputs, *full) * gaussian
        weight[where] += gaussian
    inside = [slice(b, b + size) for (b, _), size in zip(pads, values.shape[1:], strict=True)]
    return (total / weight)[(slice(None), *inside)].float()


@pytest.mark.parametrize(
    ("shape", "patch", "mirror_axes"),
    [
        ((2, 13, 10, 17), (8, 6, 8), (0, 1, 2)),
        ((2, 5, 10, 3), (8, 6, 8), (1,)),
        ((2, 3, 11, 9), (8, 4), (0, 1)),
        ((2, 4, 5, 5), (8, 8), ()),
        ((2, 1, 20, 13), (8, 8), (0,)),
    ],
)
def test_equals_the_rule_written_plainly(shape, patch, mirror_axes):
    network = random_network(dims=len(patch))
    values = image(*shape)
    logits = sliding_window_logits(network, values, patch, num_outputs=3, mirror_axes=mirror_axes, precision="fp32")
    assert logits.dtype == torch.float32
    assert logits.shape == (3, *shape[1:])
    torch.testing.assert_close(
        logits, by_the_book(network, values, patch, mirror_axes, 3), rtol=1e-4, atol=1e-5
    )  # fmt: skip


@pytest.mark.parametrize("patch", [(6, 6, 6), (7, 5)])
@pytest.mark.parametrize("step_size", [0.3, 0.5, 1.0])
def test_a_constant_stays_a_constant(patch, step_size):
    def network(x):
        return torch.tensor([1.5, -2.0]).reshape(1, 2, *[1] * len(patch)).expand(len(x), 2, *x.shape[2:])

    axes = tuple(range(len(patch)))
    logits = sliding_window_logits(
        network, image(1, 4, 13, 17), patch, num_outputs=2, step_size=step_size, mirror_axes=axes
    )
    torch.testing.assert_close(logits[0], torch.full((4, 13, 17), 1.5))
    torch.testing.assert_close(logits[1], torch.full((4, 13, 17), -2.0))


@pytest.mark.parametrize("tile_batch", [1, 2, 3, 8, 20, 1000])
def test_the_batch_size_does_not_change_the_result(tile_batch):
    network, values = random_network(), image(2, 9, 12, 11)
    settings = {"num_outputs": 3, "mirror_axes": (0, 2), "precision": "fp32"}
    reference = sliding_window_logits(network, values, (6, 6, 6), **settings)
    logits = sliding_window_logits(network, values, (6, 6, 6), tile_batch=tile_batch, **settings)
    torch.testing.assert_close(logits, reference, rtol=1e-4, atol=1e-5)


def test_mirroring_makes_the_result_follow_a_flip():
    network = random_network()
    for shape, patch in [((2, 8, 6, 8), (8, 6, 8)), ((2, 9, 15, 5), (5, 5, 5))]:
        values = image(*shape)
        settings = {"num_outputs": 3, "mirror_axes": (0, 1, 2), "precision": "fp32", "step_size": 0.4}
        straight = sliding_window_logits(network, values, patch, **settings)
        for axes in [(1,), (2, 3), (1, 2, 3)]:
            flipped = sliding_window_logits(network, values.flip(axes), patch, **settings)
            torch.testing.assert_close(flipped.flip(axes), straight, rtol=1e-4, atol=1e-5)
    no_mirror = {"num_outputs": 3, "precision": "fp32"}
    straight = sliding_window_logits(network, values, patch, **no_mirror)
    flipped = sliding_window_logits(network, values.flip(1), patch, **no_mirror).flip(1)
    assert (flipped - straight).abs().max() > 1e-2, "without mirroring this network does not follow"


def test_mirroring_a_local_network_changes_nothing():
    network = nn.Conv3d(2, 3, 1).eval()
    values = image(2, 9, 7, 8)
    plain = sliding_window_logits(network, values, (4, 4, 4), num_outputs=3, precision="fp32")
    mirrored = sliding_window_logits(
        network, values, (4, 4, 4), num_outputs=3, precision="fp32", mirror_axes=(0, 1, 2)
    )  # fmt: skip
    torch.testing.assert_close(plain, mirrored, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(plain, network(values[None])[0], rtol=1e-5, atol=1e-6)


def test_folds_are_averaged_as_logits_and_probabilities_over_everything():
    first, second = nn.Conv3d(1, 2, 1).eval(), nn.Conv3d(1, 2, 1).eval()
    values = image(1, 5, 6, 7)
    mean = sliding_window(
        [first, second], values, (4, 4, 4), num_outputs=2, mirror_axes=(0,), precision="fp32", activation="softmax"
    )
    with torch.no_grad():
        a, b = first(values[None])[0], second(values[None])[0]
    torch.testing.assert_close(mean.logits, (a + b) / 2, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mean.probabilities, (a.softmax(0) + b.softmax(0)) / 2, rtol=1e-5, atol=1e-6)
    assert (mean.probabilities - mean.logits.softmax(0)).abs().max() > 1e-4


class FullDevice(nn.Module):
    """Runs out of memory for more than `most` patches at a time, and counts the patches it has seen."""

    def __init__(self, most: int, error: RuntimeError | None = None):
        super().__init__()
        self.most, self.seen, self.inner = most, 0, nn.Conv3d(1, 2, 3, padding=1)
        self.error = error or torch.OutOfMemoryError("out of memory")

    def forward(self, x):
        if len(x) > self.most:
            raise self.error
        self.seen += len(x)
        return self.inner(x)


@pytest.mark.parametrize(
    "error", [None, RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling a function")]
)
def test_a_full_device_halves_the_batch_and_goes_on_from_the_same_tile(caplog, error):
    network, values = FullDevice(3, error).eval(), image(1, 8, 8, 8)
    settings = {"num_outputs": 2, "precision": "fp32", "mirror_axes": (0,)}
    reference = sliding_window_logits(network.inner, values, (4, 4, 4), **settings)
    logits = sliding_window_logits(network, values, (4, 4, 4), tile_batch=16, **settings)
    torch.testing.assert_close(logits, reference, rtol=1e-4, atol=1e-5)
    assert network.seen == 27 * 2, "no tile was computed twice"
    assert [record.args for record in caplog.records] == [(8,), (4,), (2,)]


FULL = [torch.OutOfMemoryError("full"), RuntimeError("CUDA error: out of memory")]


@pytest.mark.parametrize("error", FULL)
def test_an_image_that_does_not_fit_on_the_device_stays_where_it_is(error):
    class Stays:
        def to(self, device):
            raise error

    values = Stays()
    assert tile_pass._to_device(values, torch.device("cuda")) is values


@pytest.mark.parametrize("error", FULL)
def test_sums_that_do_not_fit_on_the_device_are_kept_in_main_memory(error, monkeypatch):
    zeros = torch.zeros

    def full(*size, device=None, **options):
        if device is not None:
            raise error
        return zeros(*size, **options)

    monkeypatch.setattr(torch, "zeros", full)
    sums = Sums(2, (3, 4, 5), torch.device("cuda"), count=2)
    assert [tuple(total.shape) for total in sums.totals] == [(2, 3, 4, 5)] * 2
    assert {total.device.type for total in sums.totals} == {"cpu"}


def test_other_errors_of_a_device_are_raised():
    with pytest.raises(RuntimeError, match="illegal memory access"):
        sliding_window_logits(
            FullDevice(0, RuntimeError("an illegal memory access")).eval(), image(1, 4, 4, 4), (4, 4, 4), num_outputs=2
        )


def test_a_patch_that_does_not_fit_is_told():
    with pytest.raises(UserError, match="too small for one patch"):
        sliding_window_logits(FullDevice(0), image(1, 4, 4, 4), (4, 4, 4), num_outputs=2)


def test_not_a_number_is_told_not_segmented():
    with pytest.raises(UserError, match="not finite"):
        sliding_window_logits(lambda x: x * torch.nan, image(1, 4, 4, 4), (4, 4, 4), num_outputs=1)


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_what_overflows_in_reduced_precision_is_computed_again(precision, monkeypatch, caplog):
    """Also where the precision was named, as plans with a time budget do."""
    monkeypatch.setattr("autoseg.inference.window.choose_precision", lambda precision, device: "bf16")

    def overflowing(x):
        return x / (0.0 if torch.is_autocast_enabled("cpu") else 1.0)

    values = image(1, 4, 4, 4)
    logits = sliding_window_logits(overflowing, values, (4, 4, 4), num_outputs=1, precision=precision)
    torch.testing.assert_close(logits, values)
    assert caplog.messages == ["the network's output is not finite in bf16: computed again in fp32"]


def test_an_image_that_is_not_finite_is_not_computed_again(caplog):
    with pytest.raises(UserError, match="not finite"):
        sliding_window_logits(lambda x: x, image(1, 4, 4, 4) * torch.nan, (4, 4, 4), num_outputs=1, precision="bf16")
    assert caplog.messages == []


def test_bf16_is_close_to_fp32():
    network, values = random_network(), image(2, 8, 8, 8)
    exact = sliding_window_logits(network, values, (8, 8, 8), num_outputs=3, precision="fp32")
    rough = sliding_window_logits(network, values, (8, 8, 8), num_outputs=3, precision="bf16")
    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 0.1


def test_step_size_is_checked():
    with pytest.raises(UserError, match="step_size"):
        sliding_window_logits(nn.Identity(), image(1, 4, 4, 4), (4, 4, 4), num_outputs=1, step_size=0)


def test_the_image_is_left_as_it_was():
    values = image(1, 3, 6, 6)
    before = values.clone()
    sliding_window_logits(lambda x: x.mul_(2), values, (4, 4), num_outputs=1, mirror_axes=(0, 1))
    np.testing.assert_array_equal(values, before)
