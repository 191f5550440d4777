"""The selective scan against the loop over positions, forward and backward, at growing lengths on one CPU core.

    python benchmarks/selective_scan.py

Takes about a minute.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from autoseg.architectures.blocks.selective_scan import selective_scan
from torch import Tensor


def loop(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return y by the definition of the scan."""
    state, outputs = u.new_zeros(u.shape[0], *a.shape), []
    for t in range(u.shape[1]):
        state = torch.exp(delta[:, t, :, None] * a) * state + (delta[:, t] * u[:, t])[..., None] * b[:, t, None]
        outputs.append((state @ c[:, t, :, None])[..., 0])
    return torch.stack(outputs, 1)


def seconds(function: Callable[..., Tensor], inputs: Sequence[Tensor], repeats: int) -> float:
    """Return the least time of a forward and backward pass."""
    times = []
    for _ in range(repeats):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        start = time.perf_counter()
        function(*leaves).square().sum().backward()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(1)
    print("channels  states  length    scan s    loop s   ratio")
    for channels, length in ((16, 1024), (16, 4096), (16, 16384), (16, 65536), (96, 4096)):
        delta = torch.rand(1, length, channels) * 0.1
        b, c = torch.randn(2, 1, length, 16)
        inputs = (torch.randn(1, length, channels), delta, -torch.rand(channels, 16) * 16, b, c)
        ours = seconds(selective_scan, inputs, 4)
        theirs = seconds(loop, inputs, 1) if length <= 4096 else float("nan")
        print(f"{channels:8d}  {16:6d}  {length:6d}  {ours:8.4f}  {theirs:8.3f}  {theirs / ours:6.0f}")


if __name__ == "__main__":
    main()
