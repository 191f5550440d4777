"""Batches on a GPU: made in a stream of their own, handed out in order, no copy waits; all with stand-ins."""

import contextlib
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from autoseg.batches import Batch, PatchStream, Prefetcher, StreamSettings, moving

CPU, META = torch.device("cpu"), torch.device("meta")  # stands for a GPU: the operations of one, without numbers


class OnDevice(torch.Tensor):
    """Stands for a tensor on a GPU; notes the streams that it is said to be used in."""

    is_cuda = True

    def record_stream(self, stream):
        self.__dict__.setdefault("streams", []).append(stream)


def on_device(value):
    return torch.full((1, 1, 2, 2), value).as_subclass(OnDevice)


class FakeStream:
    """Stands for a CUDA stream; writes down what is put into it."""

    def __init__(self, name="side"):
        self.name, self.queue = name, []

    def wait_stream(self, other):
        self.queue.append(("wait for", other.name))

    def wait_event(self, event):
        self.queue.append(("wait for", event))

    def record_event(self):
        event = f"event of batch {here.step}"
        self.queue.append(("event", event))
        return event


here = threading.local()  # the stream that is current in a thread, as CUDA has it, and the step that it is at


@dataclass
class Gpu:
    default: FakeStream = field(default_factory=lambda: FakeStream("default"))
    streams: list = field(default_factory=list)

    def make(self, device):
        assert device == torch.device("cuda", 1)
        self.streams.append(FakeStream())
        return self.streams[-1]

    def current(self, device):
        assert device == torch.device("cuda", 1)
        return getattr(here, "stream", self.default)

    @contextlib.contextmanager
    def use(self, stream):
        assert getattr(here, "device", None) == torch.device("cuda", 1), "or a context of GPU 0 is made on the way back"
        here.stream = stream
        yield
        del here.stream

    @contextlib.contextmanager
    def on(self, device):
        here.device = device
        yield
        del here.device


@pytest.fixture
def gpu(monkeypatch):
    found = Gpu()
    monkeypatch.setattr(torch.cuda, "Stream", found.make)
    monkeypatch.setattr(torch.cuda, "stream", found.use)
    monkeypatch.setattr(torch.cuda, "device", found.on)
    monkeypatch.setattr(torch.cuda, "current_stream", found.current)
    return found


@dataclass(frozen=True)
class UsersBatch(Batch):
    extra: tuple = ()


class Source:
    """Makes batches of tensors on the device, and of some that stay on the CPU, in whatever stream is current."""

    def __init__(self, gpu):
        self.gpu, self.meeting = gpu, threading.Barrier(2)

    def batch(self, step, device):
        here.step = step
        if step < 2:
            self.meeting.wait(20)  # both threads are at work
        self.gpu.current(device).queue.append(("batch", step))
        extra = ({"weights": on_device(step)}, torch.zeros(1))
        return UsersBatch(on_device(step), on_device(step), ("a",), annotated=on_device(step), step=step, extra=extra)


def test_batches_are_made_in_one_stream_beside_and_awaited_by_the_training_step(gpu):
    with Prefetcher(Source(gpu), start=0, device=torch.device("cuda", 1), threads=2, depth=2) as prefetcher:
        (side,) = gpu.streams
        assert side.queue[0] == ("wait for", "default"), "what was on the device before is complete"
        for step in range(4):
            batch = prefetcher.next()
            assert batch.step == step
            assert gpu.default.queue == [("wait for", f"event of batch {each}") for each in range(step + 1)]
            used = [batch.image, batch.segmentation, batch.annotated, batch.extra[0]["weights"]]
            assert [tensor.streams for tensor in used] == [[gpu.default]] * 4
    for step in range(4):
        made = side.queue.index(("batch", step))
        assert made < side.queue.index(("event", f"event of batch {step}"))


def test_without_threads_batches_are_made_in_the_stream_of_the_training_step(gpu):
    source = Source(gpu)
    with Prefetcher(source, start=2, device=torch.device("cuda", 1), threads=0, depth=2) as prefetcher:
        batch = prefetcher.next()
    assert gpu.streams == []
    assert gpu.default.queue == [("batch", 2)]
    assert not hasattr(batch.image, "streams")


@dataclass
class Host:
    """Stands for a tensor; notes how it came where it is."""

    device: torch.device = CPU
    way: tuple = ()

    def is_pinned(self):
        return "pinned" in self.way

    def pin_memory(self):
        return Host(self.device, (*self.way, "pinned"))

    def to(self, device, non_blocking=False):
        return Host(device, (*self.way, "without waiting" if non_blocking else "moved"))


@pytest.mark.parametrize(
    ("tensor", "target", "way"),
    [
        (Host(), "cuda:1", ("pinned", "without waiting")),
        (Host(way=("pinned",)), "cuda:1", ("pinned", "without waiting")),
        (Host(torch.device("cuda:1")), "cuda:1", ("moved",)),
        (Host(), "cpu", ("moved",)),
        (Host(), "mps", ("moved",)),
    ],
)
def test_only_pinned_memory_is_copied_to_cuda(tensor, target, way):
    assert moving.to_device(tensor, torch.device(target)).way == way


class Copies(TorchFunctionMode):
    """Notes what brings numbers from the CPU to the device and waits for it, and counts what does not wait."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.waiting, self.right, self.inside = [], 0, False
        genuine = moving.to_device

        def to_device(tensor, device):
            self.inside = True
            try:
                return genuine(tensor, device)
            finally:
                self.inside = False

        for module in ("moving", "batch", "augmentation.warp"):
            monkeypatch.setattr(f"autoseg.batches.{module}.to_device", to_device)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in (torch.tensor, torch.as_tensor) and result.device == META:
            self.waiting.append(function)
        elif function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and args[0].device == META:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, (list, np.ndarray)) or getattr(part, "device", META) != META for part in index):
                self.waiting.append(function)
        elif function is torch.Tensor.to and args[0].device != META and result.device == META:
            self.right += self.inside
            self.waiting += [] if self.inside else [function]
        return result


def test_what_waits_for_a_gpu_is_seen(monkeypatch):
    image = torch.zeros(2, 3, device=META)
    with Copies(monkeypatch) as copies:
        torch.tensor([1], device=META)
        image[:, [0]] = image[:, [0]]
        image[torch.tensor([1]), 0] = 1.0
        torch.zeros(1).to(META)
        moving.numbers_on(META, [1], torch.int64)
    assert (len(copies.waiting), copies.right) == (5, 1)


@pytest.mark.parametrize("patch", [(16, 20, 12), (24, 20), (6, 32, 32)])
def test_augmentation_brings_nothing_to_the_device_that_waits(patch, build_case, build_store, labels, monkeypatch):
    store = build_store({"a": build_case(channels=2)})
    settings = StreamSettings(patch, 6, computed_channels=(1,))
    stream = PatchStream(store, store.cases, labels, settings, seed=1, name="train", use_mask=(True, True))
    cuts = [stream.cut(step, META) for step in range(6)]
    assert any(len(group().positions) > 1 for cut in cuts for group in cut.warps)
    with Copies(monkeypatch) as copies:
        for cut in cuts:
            batch = stream.augment(cut, cut.step, META)
            assert batch.image.device == META
    assert copies.waiting == []
    assert copies.right > 5 * len(cuts)


def test_patches_for_a_gpu_are_cut_into_pinned_memory(memory_store, labels, monkeypatch):
    pinned, genuine, alike = [], torch.empty, torch.empty_like

    def empty(*size, pin_memory=False, **options):
        pinned.append(pin_memory)
        return genuine(*size, **options)

    def empty_like(tensor, pin_memory=False, **options):
        pinned.append(pin_memory)
        return alike(tensor, **options)

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch, "empty_like", empty_like)
    for case in memory_store.cases:
        memory_store.read(case).stages["low"] = memory_store.read(case).labels
    stream = PatchStream(
        memory_store, memory_store.cases, labels, StreamSettings((16, 20, 12), 6), seed=5, name="train",
        previous_stage="low",
    )  # fmt: skip
    monkeypatch.setattr(stream, "augment", lambda cut, step, device: [group() for group in cut.warps])
    warped = [len(stream.batch(step, "cuda")) for step in range(3)]
    assert any(warped)
    assert pinned == [True] * 3 * (3 + sum(warped))
    pinned.clear()
    stream.batch(0, "cpu")
    assert pinned
    assert not any(pinned)
