"""Bytes of the tensors that are alive, counted operation by operation: what arithmetic about memory is compared with."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Ledger(TorchDispatchMode):
    """Counts every storage that an operation hands out, until it is freed; views count once.

    Attributes:
        alive, peak: bytes now, and the most since ``reset``. Working memory inside one kernel is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.know(result)
        return result

    def know(self, tensors: Any) -> None:
        """Count what was made before (in any nesting of lists and dictionaries)."""
        for leaf in tree_leaves(tensors):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf.untyped_storage())

    def _note(self, storage: Any) -> None:
        place = storage._cdata
        if place in self._known or storage.nbytes() == 0:
            return
        self._known[place] = storage.nbytes()
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, place)

    def _forget(self, place: int) -> None:
        self.alive -= self._known.pop(place, 0)

    def reset(self) -> None:
        """Take the peak from here."""
        self.peak = self.alive
