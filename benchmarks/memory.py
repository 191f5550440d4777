"""Compare the traced memory estimate of a training step with the measured peak, for every architecture at three sizes.

    python benchmarks/memory.py [--device auto] [--only NAME ...] [--json FILE]

On a GPU the peak is `torch.cuda.max_memory_allocated` over two steps in bf16. On a CPU it is the rise of the peak
resident memory of a process of its own over two steps in fp32; that includes the work space of oneDNN and what the
allocator keeps, which no trace sees. Two steps, since the optimiser's state comes into being in the first.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

MIB = 2**20
SIZES = {  # (dims, patch, batch, features of the first stage, stages)
    "small": (3, (32, 64, 32), 2, 8, 4),
    "middle": (3, (64, 64, 64), 2, 16, 4),
    "2d": (2, (256, 256), 8, 32, 5),
}
GPU_SIZES = {
    "small": (3, (64, 64, 64), 2, 32, 5),
    "middle": (3, (96, 96, 96), 2, 32, 5),
    "large": (3, (128, 128, 128), 2, 32, 6),
}


def make_spec(architecture, dims, patch, features, stages):
    """Return the spec of a planned U-Net of this size, adapted to the architecture; the patch as it asks for."""
    from autoseg.planning.topology import pad_to_multiple
    from autoseg.plans import NetworkSpec

    spec = NetworkSpec(
        dims=dims, in_channels=1, num_outputs=3, patch_size=patch, strides=((1,) * dims, *[(2,) * dims] * (stages - 1)),
        kernel_sizes=((3,) * dims,) * stages, features=tuple(min(320, features * 2**stage) for stage in range(stages)),
        blocks_encoder=(2,) * stages, blocks_decoder=(2,) * (stages - 1),
    )  # fmt: skip
    spec = architecture.adapt_spec(spec)
    multiple = architecture.patch_multiple(spec)
    patch = tuple(pad_to_multiple(edge, step) for edge, step in zip(spec.patch_size, multiple, strict=True))
    return spec.model_copy(update={"patch_size": patch})


def measure(name: str, size: str, device: str) -> dict:
    """Return estimate and measured peak in bytes, in this process."""
    import torch

    from autoseg import plugins
    from autoseg.devices import lay_out_for_cpu
    from autoseg.planning.memory import trace_training
    from autoseg.training.bare_step import DTYPES, make_optimizer, training_loss

    dims, patch, batch, features, stages = (GPU_SIZES if device == "cuda" else SIZES)[size]
    architecture = plugins.load("architecture", name)
    spec = make_spec(architecture, dims, patch, features, stages)
    precision = "bf16" if device == "cuda" else "fp32"
    conv = (torch.nn.Conv2d, torch.nn.Conv3d)[dims - 2](1, 3, 3)  # what a first step loads is loaded before
    training_loss(conv(torch.zeros(1, 1, *(8,) * dims)), torch.zeros(1, *(6,) * dims, dtype=torch.long)).backward()
    make_optimizer("adamw", list(conv.parameters())).step()
    before = _resident() if device == "cpu" else 0
    network = architecture(spec).to(device).train()
    if device == "cpu":
        lay_out_for_cpu(network, dims)
    else:
        torch.cuda.reset_peak_memory_stats()
    optimizer = make_optimizer("adamw", list(network.parameters()))
    image = torch.randn(batch, 1, *spec.patch_size, device=device)
    target = torch.randint(0, 3, (batch, *spec.patch_size), device=device)
    for _ in range(2):
        with torch.autocast(device, DTYPES[precision], enabled=precision != "fp32"):
            logits = network(image)
        training_loss(logits, target).backward()
        del logits
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else _peak_resident() - before
    estimate = trace_training(architecture, spec, batch, precision=precision, optimizer="adamw").peak  # after measuring
    return {"architecture": name, "size": size, "patch": spec.patch_size, "batch": batch, "precision": precision,
            "estimate": estimate, "measured": peak}  # fmt: skip


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _peak_resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measure each pair in a process of its own and print the table."""
    from autoseg.devices import choose_device
    from autoseg.plugins import list_plugins

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("NAME", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = choose_device(options.device).type
    if options.one:
        print(json.dumps(measure(*options.one, device)))
        return
    names = options.only or [found.name for found in list_plugins("architecture")]
    rows = []
    print(f"{'architecture':24}{'size':8}{'estimate MiB':>14}{'measured MiB':>14}{'estimate / measured':>22}")
    for name in names:
        for size in GPU_SIZES if device == "cuda" else SIZES:
            command = [sys.executable, __file__, "--device", device, "--one", name, size]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{name:24}{size:8} failed: {done.stderr.strip().splitlines()[-1:]}")
                continue
            row = json.loads(done.stdout.strip().splitlines()[-1])
            rows.append(row)
            print(f"{name:24}{size:8}{row['estimate'] / MIB:14.0f}{row['measured'] / MIB:14.0f}"
                  f"{row['estimate'] / row['measured']:22.2f}", flush=True)  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
