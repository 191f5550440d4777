"""Bytes that operators read and write, as torch runs them uncompiled."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ALLOCATING = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")


class Traffic(TorchDispatchMode):
    """Sums the sizes of all tensors that go into and come out of operators, and those of convolutions by themselves.

    Kernels that are compiled together leave out what lies between them: they move fewer bytes than all operators, and
    no fewer than the convolutions, which are not compiled with others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.convolution_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in ALLOCATING:
            moved = sum(_bytes(leaf) for leaf in tree_leaves((args, kwargs, result)))
            self.bytes += moved
            self.convolution_bytes += moved if "convolution" in name else 0
        return result


def _bytes(value: Any) -> int:
    """Return what a tensor takes; of one that repeats itself, what it repeats."""
    if not isinstance(value, torch.Tensor):
        return 0
    return min(value.numel() * value.element_size(), value.untyped_storage().nbytes())
