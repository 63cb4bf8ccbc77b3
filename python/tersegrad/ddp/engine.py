"""Who runs the codecs of a bucket, and where it is known how each parameter fared: on the host, or on a device.

On the host a mark is a number as soon as an encoder returns. On a device it stays there: nothing here waits for it. What a mark decides
on the host by a branch, it decides there by arithmetic and by kernels that return at once:

* a parameter that is not sent (its gradient is zero, or not finite) has the body of zeros in the message, so that all bodies are added;
* the sum of a parameter that is not finite on some rank begins with NaN instead of 0;
* a residual is put back by a copy that happens if a number on the device says so.

Both have the same methods, and `coding` and `exchange` do not ask which one they have.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from .. import _core
from ..buffers import View, bytes_view, view
from ..codec import encode
from ..device import of
from ..errors import InputError
from .message import ABSENT, NON_FINITE, SENT, read_heads, write_head

if TYPE_CHECKING:
    from .coding import Task
    from .layout import Layout, Piece, Slot
    from .memory import Kept, Memory

_T = TypeVar("_T")


class Host:
    """Codecs on the host."""

    alignment = 1

    def prepare(self, layout: Layout) -> None:
        """Refuse a layout with codecs that cannot run here, and get ready for it."""

    def entries(self, tensor: torch.Tensor) -> Any:
        """A flat tensor as codecs take it."""
        return view(tensor).array

    def bytes(self, message: torch.Tensor) -> Any:
        return bytes_view(message, "message")

    # --- This rank's message. ---

    def new_marks(self, layout: Layout, name: str, verdict: Any = None) -> HostMarks:
        """Where it is written how the parameters of a bucket fare, in the message or in the mean."""
        return HostMarks(len(layout.slots))

    def decode(
        self, slot: Slot, body: Any, task: Task, out: Any, accumulate: bool, scale: float
    ) -> None:
        slot.codec._decompress(
            body, task.layout.dtype, task.random_step, out, accumulate, scale, False
        )

    def fence(self, device: torch.device) -> Any:
        """A context for the part of a bucket's work that the hook does."""
        return contextlib.nullcontext()

    def fenced(self, device: torch.device, job: Callable[[], _T]) -> Callable[[], _T]:
        """A job that follows it."""
        return job

    # --- All ranks' messages. ---

    def judge(self, task: Task, messages: torch.Tensor, before: Any = None) -> HostVerdict:
        """How every parameter fared on every rank; `StateError` if the messages do not fit."""
        layout = task.layout
        count = len(layout.slots)
        marks = read_heads(list(messages), count, layout.checksum, task.step, task.failure)
        return HostVerdict(layout, marks, before)

    def find_lost(self, task: Task) -> HostVerdict:
        """The verdict on a bucket that was summed as it is."""
        verdict = HostVerdict(task.layout, [], None)
        if not _all_finite(task.buffer):
            slots = task.layout.slots
            verdict.lost = [s for s in slots if not _all_finite(task.buffer[s.entries])]
        return verdict


class HostMarks:
    """One byte for each parameter."""

    def __init__(self, slots: int) -> None:
        self._marks = bytearray([ABSENT]) * slots

    def is_absent(self, slot: Slot, gradient: Any, tensor: torch.Tensor) -> bool:
        """Whether a gradient is zero everywhere, so that the parameter is not sent."""
        return _is_zero(gradient, tensor)

    def put(self, slot: Slot, mark: int) -> None:
        self._marks[slot.index] = mark

    def settle_velocity(self, slot: Slot, velocity: Kept) -> None:
        """Undo the step of a velocity whose parameter is not sent."""

    def encode(
        self,
        slot: Slot,
        piece: Piece,
        values: Any,
        body: Any,
        residual: Any,
        task: Task,
        careless: bool,
        gradient: Any,
    ) -> bool:
        """Encode a piece of a parameter, whose gradient is `gradient`, and mark it; False if it is not finite.

        `careless`: the residual may be spoiled by numbers that are not finite, since what the step does can be undone.
        """
        piece.call.step = task.random_step
        source = View(values, task.layout.dtype, (), "torch")
        finite = encode(source, slot.encoder, body, residual, piece.call, checked=careless)
        self._marks[slot.index] = SENT if finite else NON_FINITE
        if not finite and residual is not None and _core.all_finite(gradient):
            raise InputError(
                "a gradient is finite but with its residual or velocity it is not: call state.reset()"
            )
        return finite

    def encode_mean(
        self,
        slot: Slot,
        piece: Piece,
        mean: Any,
        body: Any,
        residual: Any,
        task: Task,
        careless: bool,
    ) -> None:
        piece.second_call.step = task.random_step
        source = View(mean, task.layout.dtype, (), "torch")
        finite = encode(source, slot.second_encoder, body, residual, piece.second_call, careless)
        self._marks[slot.index] = SENT if finite else NON_FINITE

    def write_head(self, message: torch.Tensor, task: Task) -> None:
        failed = task.failure is not None
        write_head(message, task.layout.checksum, task.step, bytes(self._marks), failed)


class HostVerdict:
    """What the heads of all ranks say."""

    def __init__(self, layout: Layout, marks: list[bytes], before: HostVerdict | None) -> None:
        self._marks = marks
        self.lost: list[Slot] = [] if before is None else list(before.lost)
        for slot in layout.slots:
            if slot not in self.lost and any(mark[slot.index] == NON_FINITE for mark in marks):
                self.lost.append(slot)

    def skips(self, slot: Slot) -> bool:
        """Whether there is nothing to add up, because a parameter is not finite."""
        return slot in self.lost

    def skips_mean(self, slot: Slot) -> bool:
        """Whether the owner has nothing to send on."""
        return slot in self.lost or all(mark[slot.index] == ABSENT for mark in self._marks)

    def add_up(
        self,
        slot: Slot,
        piece: Piece,
        messages: Sequence[Any],
        task: Task,
        total: torch.Tensor,
        share: float,
    ) -> None:
        """Leave in `total`, float32, the sum of `share` times every body of a piece that counts, in rank order."""
        engine = task.layout.engine
        total.zero_()
        out = engine.entries(total)
        for mark, message in zip(self._marks, messages, strict=True):
            if mark[slot.index] == SENT:
                engine.decode(slot, message[piece.body], task, out, True, share)

    def place_mean(
        self, slot: Slot, owner: int, body: Any, task: Task, out: torch.Tensor, array: Any
    ) -> None:
        """Write the mean that an owner sent."""
        if self._marks[owner][slot.index] == SENT:
            task.layout.engine.decode(slot, body, task, array, False, 1.0)
        else:
            out.zero_()

    def close(self, task: Task, memory: Memory) -> None:
        for slot in self.lost:
            task.buffer[slot.entries].fill_(float("nan"))
        if self.lost:
            memory.spoiled = True
            task.layout.counters.add(nonfinite=len(self.lost))


def engine_of(buffer: torch.Tensor) -> Any:
    """What runs the codecs of a bucket."""
    backend = of(buffer)
    if backend is None:
        return Host()
    from .device_engine import OnDevice

    return OnDevice(backend)


def _is_zero(values: Any, tensor: torch.Tensor) -> bool:
    """Whether every entry is zero. Most are found not to be at once."""
    first = values[:256]
    if (first & 0x7FFF if first.dtype == np.uint16 else first).any():
        return False
    return float(tensor.amax()) == 0 == float(tensor.amin())


def _all_finite(values: torch.Tensor) -> bool:
    return _core.all_finite(view(values).array)
