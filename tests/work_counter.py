"""Counts what torch does, writes and holds: work that depends on the code alone, not on how busy a machine is."""

from __future__ import annotations

import torch
from torch.multiprocessing.reductions import StorageWeakRef
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


class Held(TorchDispatchMode):
    """Tells the most bytes that tensors made within it held at a time."""

    def __init__(self):
        super().__init__()
        self.most = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self._held = {key: each for key, each in self._held.items() if not each[0].expired()}
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self._held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.most = max(self.most, sum(size for _, size in self._held.values()))
        return result
