"""Batch Dice over two processes equals batch Dice of the joined batch, value and gradient."""

import os

import pytest
import torch
from torch import distributed, multiprocessing

from autoseg.labels import Labels
from autoseg.losses import SegmentationLoss

LABELS = Labels(values={"a": (1,), "b": (2,)})


def data():
    random = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 5, 6, generator=random), torch.randint(0, 3, (4, 5, 6), generator=random)


def one_process(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    logits, target = (part[2 * rank : 2 * rank + 2] for part in data())
    logits = logits.clone().requires_grad_()
    loss = SegmentationLoss(LABELS, batch_dice=True, ce_weight=0)(logits, target)
    loss.backward()
    torch.save((loss.detach(), logits.grad), f"{folder}/{rank}.pt")
    distributed.barrier()
    os._exit(0)  # gloo's threads, taken down at the end of a process, now and then abort it


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="torch was built without gloo")
def test_batch_dice_over_two_processes(tmp_path):
    multiprocessing.spawn(one_process, args=(str(tmp_path),), nprocs=2)
    logits, target = data()
    logits.requires_grad_()
    expected = SegmentationLoss(LABELS, batch_dice=True, ce_weight=0)(logits, target)
    expected.backward()
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    gradient = torch.cat([gradient for _, gradient in results]) / 2  # data-parallel training averages over processes
    assert all(torch.allclose(loss, expected) for loss, _ in results)
    assert torch.allclose(gradient, logits.grad, atol=1e-7)
