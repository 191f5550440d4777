"""Timed steps: real, positive, and leaving no trace."""

import pytest
import torch

from autoseg import plugins
from autoseg.plans import NetworkSpec
from autoseg.training import probe


def make_spec(features, patch):
    return NetworkSpec(
        dims=2, in_channels=1, num_outputs=3, patch_size=patch, strides=((1, 1), (2, 2)), kernel_sizes=((3, 3),) * 2,
        features=features, blocks_encoder=(2, 2), blocks_decoder=(2,),
    )  # fmt: skip


@pytest.fixture
def network():
    return plugins.load("architecture", "plain_unet")


def test_a_step_takes_time_and_more_voxels_take_more(network):
    small = probe.time_step(network, make_spec((4, 8), (16, 16)), 1)
    large = probe.time_step(network, make_spec((4, 8), (256, 256)), 4)
    assert 0 < small.seconds < large.seconds
    assert large.precision in ("fp32", "bf16")


@pytest.mark.parametrize("busy", [True, False])
def test_the_world_is_left_as_it_was(network, busy, monkeypatch):
    monkeypatch.setattr(probe, "_is_busy", lambda: busy)
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    probe.time_step(network, make_spec((4, 8), (16, 16)), 1)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_fastest_step_counts_and_patience_ends():
    moments = iter([0.0, 5.0, 5.0, 6.0, 6.0, 9.0, 9.0, 11.0, 11.0, 12.5, 12.5, 20.0, 20.0])
    assert probe._fastest(lambda: None, lambda: next(moments), patience=60) == 1.0
    calls = []
    probe._fastest(lambda: calls.append(1), lambda: float(len(calls)), patience=-1)
    assert len(calls) == 2  # one to warm up, one that counts


def test_a_busy_cpu_is_timed_on_one_thread(monkeypatch):
    monkeypatch.setattr(probe, "_is_busy", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(probe, "_fastest", lambda step, clock, patience: 1.0)
    assert probe._seconds(lambda: None, "cpu", 1.0) == pytest.approx(4**-0.7)
