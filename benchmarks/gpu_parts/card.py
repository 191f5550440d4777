"""What the card gives: the rate of a large product in bf16, the bandwidth of a large copy."""

from __future__ import annotations

import sys

from gpu_parts.bench import Bench


def measure(bench: Bench) -> None:
    """Time both; a copy counts what it reads and what it writes."""
    import torch

    sizes, device = bench.sizes, bench.device
    lasting = 0.0 if bench.toy else 1.0
    a, b = (torch.randn(sizes.product, sizes.product, device=device).bfloat16() for _ in range(2))
    bench.seconds(lambda: a @ b, least=3)
    product = bench.seconds(lambda: a @ b, lasting, least=3)
    source = torch.zeros(sizes.copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bench.seconds(lambda: target.copy_(source), least=3)
    copy = bench.seconds(lambda: target.copy_(source), lasting, least=3)
    bench.tell(
        card=torch.cuda.get_device_name() if device.type == "cuda" else device.type, torch=torch.__version__,
        cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version(), python=sys.version.split()[0],
        bf16_flops=2 * sizes.product**3 / product, bytes_per_second=2 * sizes.copied / copy,
    )  # fmt: skip
