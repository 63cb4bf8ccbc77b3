"""Memory for messages, kept from step to step as long as a budget lasts."""

from __future__ import annotations

import threading

import torch

from ..errors import StateError


class Scratch:
    """Flat tensors by bucket and name.

    What does not fit into `budget` bytes any more is made when it is needed and freed after its
    bucket: slower, and never wrong.
    """

    def __init__(self, budget: int | None = None) -> None:
        if budget is not None and (type(budget) is not int or budget < 0):
            raise StateError(f"scratch_bytes must be None or an integer from 0, not {budget!r}")
        self.budget = budget
        self.kept_bytes = 0
        self._kept: dict[tuple[int, str], torch.Tensor] = {}
        self._lock = threading.Lock()

    def take(
        self, bucket: int, name: str, n: int, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """`n` entries of any value."""
        with self._lock:
            kept = self._kept.get((bucket, name))
            if kept is not None and (kept.numel(), kept.dtype, kept.device) == (n, dtype, device):
                return kept
            self._drop(bucket, name)
            tensor = torch.zeros(n, dtype=dtype, device=device)
            size = n * tensor.element_size()
            if self.budget is None or self.kept_bytes + size <= self.budget:
                self._kept[bucket, name] = tensor
                self.kept_bytes += size
            return tensor

    def drop(self, bucket: int) -> None:
        """Forget what a bucket had."""
        with self._lock:
            for number, name in list(self._kept):
                if number == bucket:
                    self._drop(number, name)

    def _drop(self, bucket: int, name: str) -> None:
        tensor = self._kept.pop((bucket, name), None)
        if tensor is not None:
            self.kept_bytes -= tensor.numel() * tensor.element_size()

    def __reduce__(self) -> tuple[type[Scratch], tuple[int | None]]:
        return Scratch, (self.budget,)
