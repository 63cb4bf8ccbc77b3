"""Tensors that collectives hold, until the end of the program if need be.

A collective of gloo is over for whoever waits for it before gloo's own thread lets go of the
tensors. Letting go of the last C++ reference to a tensor that Python knows takes the GIL, and a
thread that asks for the GIL while the interpreter shuts down ends the process in std::terminate.
So collectives get tensors of their own, which share the memory, and a program that leaves its
process groups open waits at its end until these are gone.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref

import torch

#: How long the end of the program waits for a collective that may never end: a rank is lost.
LIMIT_SECONDS = 1.0

_lent: list[weakref.ref[torch.Tensor]] = []
_lock = threading.Lock()


def lend(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a tensor that is to be handed to a collective and kept by no one else."""
    alias = tensor.detach()
    with _lock:
        _lent[:] = [lent for lent in _lent if lent() is not None]
        _lent.append(weakref.ref(alias))
    return alias


def held() -> int:
    """How many lent tensors are still held by someone."""
    with _lock:
        return sum(lent() is not None for lent in _lent)


@atexit.register
def wait(seconds: float = LIMIT_SECONDS) -> bool:
    """Until none is held, or so long: whether none is."""
    end = time.monotonic() + seconds
    while (left := held()) and time.monotonic() < end:
        time.sleep(1e-3)
    return not left
