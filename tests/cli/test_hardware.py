"""What `doctor` tells of processors, GPUs and shared memory, on machines that are made up."""

import shutil
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch

from autoseg.cli.hardware import (
    GIB,
    cpu_instructions,
    describe_gpus,
    free_shared_memory,
    small_shared_memory,
    unused_gpu,
)

Disk = namedtuple("Disk", "total used free")


def test_instructions_are_those_of_the_first_processor(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("model name\t: x\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16\nbugs\t: amx_fp16\n")
    assert cpu_instructions(file) == ["AVX2", "AVX-512", "AVX-512 BF16", "AMX BF16"]
    file.write_text("flags\t\t: fpu avx2 avx512_bf16x\n")
    assert cpu_instructions(file) == ["AVX2"]
    assert cpu_instructions(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("major", "minor", "formats"),
    [(9, 0, "fp32, fp16, bf16, tf32"), (7, 5, "fp32, fp16"), (6, 1, "fp32")],
)
def test_a_gpu_is_told_with_free_memory_and_formats(major, minor, formats, monkeypatch):
    card = SimpleNamespace(name="Card", total_memory=24 * GIB, major=major, minor=minor)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (int(20.5 * GIB), 24 * GIB))
    capability = f"compute capability {major}.{minor} ({formats})"
    assert describe_gpus() == [f"Card, 24 GiB, 20.5 GiB free, {capability}"]

    def broken(index):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    assert describe_gpus() == [f"Card, 24 GiB, {capability}"]


@pytest.fixture
def nvidia(tmp_path, monkeypatch):
    """Return a function that makes up a machine and returns its root."""

    def make(*, driver=False, tool=None, usable=False, cuda=None):
        if driver:
            (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
        monkeypatch.setattr(shutil, "which", lambda name: tool if name == "nvidia-smi" else None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        return tmp_path

    return make


@pytest.mark.parametrize("seen", [{"driver": True}, {"tool": "/usr/bin/nvidia-smi"}])
def test_a_gpu_that_torch_cannot_use_is_told_with_the_mend(seen, nvidia, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "is built without CUDA; install one that has CUDA" in unused_gpu(nvidia(**seen))


def test_a_gpu_that_the_driver_or_the_container_hides_is_told(nvidia, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    told = unused_gpu(nvidia(driver=True, cuda="12.6"))
    assert "built for CUDA 12.6" in told
    assert "--gpus all" in told


def test_a_gpu_that_is_hidden_on_purpose_is_not_told(nvidia, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert unused_gpu(nvidia(driver=True)) is None


@pytest.mark.parametrize("machine", [{}, {"driver": True, "usable": True, "cuda": "12.6"}, {"cuda": "12.6"}])
def test_without_a_gpu_or_with_one_in_use_nothing_is_told(machine, nvidia):
    assert unused_gpu(nvidia(**machine)) is None


@pytest.mark.parametrize(("gpus", "free", "told"), [(0, 0.06, False), (1, 0.06, False), (2, 0.06, True), (2, 8, False)])
def test_a_small_shared_memory_is_told_where_several_gpus_need_it(gpus, free, told, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Disk(0, 0, int(free * GIB)))
    assert bool(small_shared_memory(gpus, tmp_path)) == told
    assert small_shared_memory(gpus, tmp_path / "none") is None
    assert free_shared_memory(tmp_path) == free
    assert free_shared_memory(tmp_path / "none") is None
