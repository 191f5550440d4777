"""Counts what torch does and writes: work that depends on the code alone, not on how busy a machine is."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Work(TorchDispatchMode):
    """Counts the operations, and the elements and bytes that they write."""

    def __init__(self):
        super().__init__()
        self.operations = self.elements = self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.operations += 1
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    self.elements += leaf.numel()
                    self.bytes += leaf.numel() * leaf.element_size()
        return result
