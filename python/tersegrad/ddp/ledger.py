"""What happened to the steps of a model whose gradients lie on a device, kept there until the host asks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from ..device.backend import Backend
from ..errors import StateError

if TYPE_CHECKING:
    from .memory import Kept

SPOILED, NONFINITE, WRONG, SKIPPED = range(4)


class Ledger:
    """Four counts on the device.

    Parameters of the open step that were not finite on some rank; such of all steps; messages that did not fit; steps undone.
    """

    def __init__(self, backend: Backend, device: torch.device) -> None:
        self._backend = backend
        self._counts = torch.zeros(4, dtype=torch.int32, device=device)
        self._seen = torch.zeros(4, dtype=torch.int32, pin_memory=backend.is_cuda)
        self._copied: Any = None

    @property
    def spoiled(self) -> torch.Tensor:
        """Not zero if the open step met a number that is not finite: int32, one entry."""
        return self._counts[SPOILED : SPOILED + 1]

    def note(self, verdict: torch.Tensor) -> None:
        """A bucket is done: the words of `Backend.judge` say which parameters are lost, and whether a message did not fit."""
        self._backend.note(verdict, self._counts)

    def settle(self, touched: Iterable[Kept], counted: bool) -> None:
        """Close the step: put `touched` back if it is spoiled. `counted` if the host knows that it is."""
        for kept in touched:
            if kept.before is not None:
                self._backend.copy_if(self.spoiled, kept.before, kept.now)
        self._backend.close_step(self._counts, counted)
        self._seen.copy_(self._counts, non_blocking=True)
        if self._backend.is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def poll(self) -> None:
        """Raise if it is known by now that a message did not fit; waits for nothing."""
        if self._copied is None or self._copied.query():
            _check(self._seen.tolist())

    def check(self) -> None:
        """Raise if a message did not fit; waits for the device."""
        _check(self._counts.tolist())

    def read(self, which: int) -> int:
        """A count; waits for the device."""
        return int(self._counts[which])

    def reset(self, which: int) -> None:
        self._counts[which] = 0


def _check(counts: list[int]) -> None:
    if counts[WRONG]:
        raise StateError(
            "a rank failed, or sent a message of another layout or step; the gradients of that step were set to NaN. If no rank says "
            "why: give every rank the same codec and the checkpoint of the same step"
        )
