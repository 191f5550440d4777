"""Rows of a sliding-window mean that are handed out as they are finished."""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from autoseg.errors import UserError
from autoseg.inference import Rows, Window, sliding_window_logits, stream_windows, tile_pass, window
from autoseg.inference.sums import Sums
from autoseg.inference.tiles import make_tiles

OUTPUTS = 3


@pytest.fixture(autouse=True)
def every_row_is_worth_it(monkeypatch):
    monkeypatch.setattr(tile_pass, "VALUES_WORTH_HANDING_OUT", 1)


@pytest.fixture
def depths(monkeypatch):
    """How many rows every sum holds, in the order in which sums were made."""
    found = []

    class Spied(Sums):
        def __init__(self, *arguments, **fields):
            super().__init__(*arguments, **fields)
            found.append(self.totals[0].shape[fields["along"] + 1])

    monkeypatch.setattr(tile_pass, "Sums", Spied)
    return found


def network_of(dims: int) -> nn.Module:
    torch.manual_seed(0)
    conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
    return nn.Sequential(conv(2, 4, 3, padding=1), nn.LeakyReLU(), conv(4, OUTPUTS, 3, padding=1)).eval()


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def stream_window(networks, values, patch, consume, *, num_outputs, **fields):
    window = Window(networks, values, patch, num_outputs, **fields)
    return stream_windows([window], lambda streams: consume(streams[0]))


def copied(parts):
    """Keep what was handed out: rows are views that change."""
    return [Rows(part.first, part.fresh, tuple(mean.clone() for mean in part.means)) for part in parts]


def joined(parts, along):
    return torch.cat(
        [part.means[0].narrow(along + 1, part.fresh - part.first, part.means[0].shape[along + 1] - part.fresh
                              + part.first) for part in parts], along + 1,
    )  # fmt: skip


@pytest.mark.parametrize("along", [0, 1, 2])
@pytest.mark.parametrize(
    ("shape", "patch", "tile_batch"),
    [((21, 9, 17), (8, 4, 6), None), ((21, 9, 17), (8, 4, 6), 8), ((5, 18, 3), (8, 6, 8), 2),
     ((7, 11, 9), (8, 4), None), ((7, 11, 9), (8, 4), 16), ((4, 5, 5), (8, 8), None)],
)  # fmt: skip
def test_rows_make_up_the_whole(shape, patch, tile_batch, along):
    network, values = network_of(len(patch)), image(2, *shape)
    settings = {"num_outputs": OUTPUTS, "mirror_axes": (0,), "precision": "fp32", "tile_batch": tile_batch}
    whole = sliding_window_logits(network, values, patch, **settings)
    parts = stream_window([network], values, patch, copied, along=along, **settings)
    torch.testing.assert_close(joined(parts, along), whole, rtol=1e-5, atol=1e-6)
    stops = [part.first + part.means[0].shape[along + 1] for part in parts]
    assert [part.fresh for part in parts] == [0, *stops[:-1]], "every row once, in order"
    assert [part.first for part in parts] == [0, *(stop - 1 for stop in stops[:-1])], "and the last one again"
    assert stops[-1] == shape[along]
    for part in parts:
        expected = whole.narrow(along + 1, part.first, part.means[0].shape[along + 1])
        torch.testing.assert_close(part.means[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("patch", "least"), [((8, 6, 6), 8), ((6, 6), 1)])
def test_sums_do_not_grow_with_the_length_of_the_volume(depths, patch, least):
    network = network_of(len(patch))
    for length in (24, 60):
        stream_window(
            [network], image(2, length, 9, 9), patch, copied, along=0, num_outputs=OUTPUTS, precision="fp32",
            tile_batch=1,
        )  # fmt: skip
    assert depths[0] == depths[1] < 24
    assert depths[0] >= least + 1


def test_few_values_are_handed_out_at_once(monkeypatch):
    """A small volume needs no parts, whose decision has a cost of its own."""
    monkeypatch.setattr(tile_pass, "VALUES_WORTH_HANDING_OUT", OUTPUTS * 21 * 9 * 9)
    parts = stream_window([network_of(3)], image(2, 21, 9, 9), (8, 6, 6), copied, along=0, num_outputs=OUTPUTS)
    assert len(parts) == 1


def test_what_overflows_late_is_computed_again_from_the_first_row(monkeypatch, caplog):
    inner, values, begun = network_of(3), image(2, 24, 6, 6), []
    values[0, -1] = 100.0  # in the last tiles alone
    expected = sliding_window_logits(
        inner, values, (8, 6, 6), num_outputs=OUTPUTS, precision="fp32", tile_batch=1
    )  # fmt: skip
    monkeypatch.setattr("autoseg.inference.window.choose_precision", lambda precision, device: "bf16")

    def overflowing(x):
        lost = torch.is_autocast_enabled("cpu") and bool((x > 50).any())
        return inner(x) * (torch.inf if lost else 1)

    def consume(parts):
        begun.append(0)
        kept = []
        for part in parts:
            begun[-1] += 1
            kept.append(part.means[0][:, part.fresh - part.first :].clone())
        return torch.cat(kept, 1)

    with caplog.at_level(logging.WARNING):
        found = stream_window([overflowing], values, (8, 6, 6), consume, along=0, num_outputs=OUTPUTS, tile_batch=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert len(begun) == 2
    assert 0 < begun[0] < begun[1], "some rows had been handed out in bf16"
    assert "computed again in fp32" in caplog.text


def test_of_two_windows_the_one_that_overflows_is_computed_in_fp32_and_both_begin_again(monkeypatch):
    inner, values, seen = network_of(3), image(2, 24, 6, 6), []
    monkeypatch.setattr("autoseg.inference.window.choose_precision", lambda precision, device: "bf16")

    def steady(x):
        seen.append(("steady", torch.is_autocast_enabled("cpu")))
        return inner(x)

    def overflowing(x):
        seen.append(("overflowing", torch.is_autocast_enabled("cpu")))
        return inner(x) * (torch.inf if seen[-1][1] else 1)

    windows = [Window([one], values, (8, 6, 6), OUTPUTS, tile_batch=1, along=0) for one in (steady, overflowing)]
    begun = []

    def consume(streams):
        begun.append(len(seen))
        return [joined(copied(stream), 0) for stream in streams]

    first, second = stream_windows(windows, consume)
    assert len(begun) == 2
    assert set(seen[: begun[1]]) == {("steady", True), ("overflowing", True)}
    assert set(seen[begun[1] :]) == {("steady", True), ("overflowing", False)}
    torch.testing.assert_close(first, second, rtol=0.1, atol=0.02)
    assert not torch.equal(first, second)


def test_output_that_stays_not_finite_is_told():
    with pytest.raises(UserError, match="not finite"):
        stream_window([lambda x: x * torch.nan], image(1, 4, 4, 4), (4, 4, 4), copied, along=0, num_outputs=1)


def test_what_the_consumer_raises_ends_the_pass():
    seen = []

    def stop(parts):
        seen.append(next(parts).first)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream_window([network_of(3)], image(2, 24, 6, 6), (8, 6, 6), stop, along=0, num_outputs=OUTPUTS)
    assert seen == [0]


def test_autocast_is_over_while_rows_are_consumed(monkeypatch):
    monkeypatch.setattr("autoseg.inference.window.choose_precision", lambda precision, device: "bf16")
    found = stream_window(
        [network_of(3)], image(2, 24, 6, 6), (8, 6, 6),
        lambda parts: [torch.is_autocast_enabled("cpu") for _ in parts], along=0, num_outputs=OUTPUTS,
        tile_batch=1,
    )  # fmt: skip
    assert len(found) > 2
    assert not any(found)


def test_released_rows_are_gone_and_the_others_keep_their_place():
    sums = Sums(1, (10, 2, 2), torch.device("cpu"), count=1, along=0, depth=7)
    (first, *_, last) = make_tiles((10, 2, 2), (4, 2, 2), 0.5)
    ones = torch.ones(1, 1, 4, 2, 2)
    sums.add([first], [ones])
    sums.release(3)
    (rows,) = sums.rows(6)
    assert rows.shape[1] == 3
    weight = torch.from_numpy(first.weights[0])[3]
    torch.testing.assert_close(rows[0, 0, 0, 0], weight)
    assert not rows[0, 1:].any()
    sums.release(3)
    sums.add([last], [ones])  # rows 6 to 9 lie at 3 to 6
    (rows,) = sums.rows(10)
    torch.testing.assert_close(rows[0, 3:, 0, 0], torch.from_numpy(last.weights[0]))
    sums.release(9)
    torch.testing.assert_close(sums.rows(10)[0][0, 0, 0, 0], torch.from_numpy(last.weights[0])[3])
    assert not sums.totals[0][0, 1:].any()


class Storage:
    """Stands for the memory of a sum on a GPU."""

    def __init__(self):
        self.bytes = 96

    def resize_(self, size):
        self.bytes = size


class OnGpu:
    """Stands for a sum on a GPU."""

    def __init__(self, total):
        self._total, self.storage = total, Storage()
        self.shape, self.device = total.shape, torch.device("cuda")

    def cpu(self):
        return self._total.clone()

    def untyped_storage(self):
        return self.storage


def test_sums_that_leave_a_full_gpu_leave_nothing_there_and_go_on_at_their_row():
    """Rows that were handed out are still held by whoever consumed them: their views must not keep the memory."""
    sums = Sums(1, (10, 2, 2), torch.device("cpu"), count=1, along=0, depth=7)
    first, second, *_ = make_tiles((10, 2, 2), (4, 2, 2), 0.5)
    ones = torch.ones(1, 1, 4, 2, 2)
    sums.add([first], [ones])
    sums.release(second.index[0].start)
    there = OnGpu(sums.totals[0])
    sums.totals = [there]
    assert sums.move_to_cpu()
    assert there.storage.bytes == 0
    sums.add([second], [ones])
    expected = torch.from_numpy(second.weights[0]).clone()
    overlap = first.index[0].stop - second.index[0].start
    expected[:overlap] += torch.from_numpy(first.weights[0])[-overlap:]
    torch.testing.assert_close(sums.rows(second.index[0].stop)[0][0, :, 0, 0], expected)
    assert not sums.move_to_cpu(), "they are there"


@pytest.mark.parametrize(("memory", "place"), [(10**9, "cuda"), (10**4, "cpu")])
def test_sums_of_several_windows_do_not_crowd_a_gpu(monkeypatch, memory, place):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=memory))
    windows = [Window([None], image(2, 24, 6, 6), (8, 6, 6), OUTPUTS, tile_batch=1, along=0)] * 2
    passes = [tile_pass.Pass(one, torch.float32) for one in windows]
    for one in passes:
        one.device = one.sums_device = torch.device("cuda")
    depth = passes[0].layout().depth
    assert passes[0].layout().bytes == 4 * OUTPUTS * depth * 36
    window._place_sums(passes)
    assert [one.sums_device.type for one in passes] == [place] * 2
    passes[0].sums_device = torch.device("cuda")
    window._place_sums(passes[:1])
    assert passes[0].sums_device.type == "cuda", "alone it moves its own"
