import logging
import threading
import time

import pytest
import torch

from autoseg import waiting
from autoseg.batches import Batch, BatchError, PatchStream, Prefetcher, StreamSettings


class Slow:
    """Later steps are faster, so that threads finish out of order."""

    def __init__(self, fail_at=None):
        self.made = []
        self.fail_at = fail_at

    def batch(self, step, device="cpu"):
        time.sleep(0.02 if step % 3 == 0 else 0.001)
        if step == self.fail_at:
            raise ValueError("broken voxel")
        self.made.append(step)
        return Batch(torch.full((1, 1, 2, 2), step), torch.zeros(1, 2, 2, dtype=torch.int16), ("a",), step=step)

    def cases_of(self, step):
        return (f"case_{step}",)


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_order_is_that_of_steps(threads):
    with Prefetcher(Slow(), start=7, device="cpu", threads=threads, depth=5) as prefetcher:
        assert [prefetcher.next().step for _ in range(12)] == list(range(7, 19))
        assert prefetcher.waited > 0


def test_depth_is_bounded():
    stream = Slow()
    with Prefetcher(stream, start=0, device="cpu", threads=3, depth=4) as prefetcher:
        prefetcher.next()
        time.sleep(0.2)
        assert sorted(stream.made) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_names_step_and_cases_and_comes_in_its_place(threads):
    with Prefetcher(Slow(fail_at=2), start=0, device="cpu", threads=threads, depth=4) as prefetcher:
        assert [prefetcher.next().step for _ in range(2)] == [0, 1]
        with pytest.raises(BatchError, match=r"batch of step 2 \(cases case_2\): ValueError: broken voxel") as caught:
            prefetcher.next()
        assert caught.value.step == 2
        assert prefetcher.next().step == 3


def test_a_long_wait_tells_what_every_thread_is_doing(monkeypatch, caplog):
    monkeypatch.setattr(waiting, "SILENCE_SECONDS", 0.01)
    told = threading.Event()

    class Stuck(Slow):
        def batch(self, step, device="cpu"):
            assert told.wait(20)
            return super().batch(step, device)

    class Seen(logging.Handler):
        def emit(self, record):
            told.set()

    handler = Seen()
    logging.getLogger("autoseg.waiting").addHandler(handler)
    try:
        with Prefetcher(Stuck(), start=0, device="cpu", threads=1, depth=2) as prefetcher:
            assert prefetcher.next().step == 0
    finally:
        logging.getLogger("autoseg.waiting").removeHandler(handler)
    assert caplog.messages[0].startswith(
        "training data: no batch was finished for 0 s; at work: batch of step 0 (cases"
    )
    assert "case_0" in caplog.messages[0]


def test_close_ends_all_threads():
    before = threading.active_count()
    prefetcher = Prefetcher(Slow(), start=0, device="cpu", threads=3, depth=6)
    prefetcher.next()
    assert threading.active_count() > before
    prefetcher.close()
    prefetcher.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        prefetcher.next()


def test_threads_do_not_change_the_batches(memory_store, labels):
    stream = PatchStream(memory_store, memory_store.cases, labels, StreamSettings((12, 14, 10), 3), seed=1, name="t")
    expected = [stream.batch(step) for step in range(6)]
    with Prefetcher(stream, start=0, device="cpu", threads=3, depth=4) as prefetcher:
        for batch in expected:
            found = prefetcher.next()
            assert torch.equal(found.image, batch.image)
            assert torch.equal(found.segmentation, batch.segmentation)
