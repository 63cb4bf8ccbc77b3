"""From gradients to messages and back: what a rank does with its own bucket and with all bodies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .. import _core
from ..buffers import View, bytes_view, view
from ..codec import encode
from ..errors import InputError
from .layout import Layout, Piece, Slot
from .memory import Memory
from .message import ABSENT, NON_FINITE, SENT, write_head
from .momentum import MomentumCorrection
from .scratch import Scratch


@dataclass(eq=False)
class Task:
    """One bucket of one step, on its way."""

    layout: Layout
    buffer: torch.Tensor
    step: int
    own: torch.Tensor = field(default_factory=lambda: torch.empty(0))  # this rank's message
    failure: str | None = None  # what went wrong on this rank
    factors: Any = None  # of LowRank parameters, see low_rank.py

    @property
    def random_step(self) -> int:
        return self.step % 2**32


class Coder:
    """Encodes and decodes buckets; changes the memory of their parameters."""

    def __init__(
        self,
        memory: Memory,
        scratch: Scratch,
        momentum: MomentumCorrection | None,
        error_feedback: bool,
    ) -> None:
        self.memory = memory
        self.scratch = scratch
        self.momentum = momentum
        self.error_feedback = error_feedback
        self.scale = 1.0  # the loss scale of the gradients and of all memory

    # --- Before the first collective. ---

    def clip(self, task: Task) -> None:
        if self.momentum is not None and self.momentum.clip_norm is not None:
            for slot in task.layout.slots:
                gradient = task.buffer[slot.entries]
                self.momentum.clip(gradient, task.layout.world_size, self.scale)

    def encode(self, task: Task) -> None:
        """Write this rank's message into ``task.own``.

        A failure travels in its head, so that every rank raises instead of waiting for this one.
        """
        layout = task.layout
        marks = bytearray(len(layout.slots))
        try:
            self.clip(task)
            own, gradients = bytes_view(task.own, "message"), view(task.buffer)
            for slot in layout.slots:
                if not slot.is_low_rank:
                    marks[slot.index] = self._encode_slot(task, slot, gradients, own)
            if task.factors is not None:
                task.factors.first(gradients, marks)
        except Exception as error:
            task.failure = f"{type(error).__name__}: {error}"
        for section in layout.sections:
            message = task.own[section.start : section.start + section.size]
            failed = task.failure is not None
            write_head(message, layout.checksum, task.step, bytes(marks), failed)

    def _encode_slot(self, task: Task, slot: Slot, gradients: View, own: Any) -> int:
        gradient = gradients.array[slot.entries]
        source, residual = gradient, None
        if self.error_feedback and not slot.dense:
            if is_zero(gradient, task.buffer[slot.entries]):
                return ABSENT
            residual = view(self.memory.touch(slot.entry.residual_of()).now).array
            if self.momentum is not None:
                raw = task.buffer[slot.entries]
                source = view(self.momentum.step(self.memory, slot.entry, raw)).array
        for piece in slot.pieces:
            piece.call.step = task.random_step
            finite = encode(
                View(source[piece.inside], task.layout.dtype, (), "torch"),
                slot.encoder,
                own[task.layout.place(slot, piece)],
                None if residual is None else residual[piece.inside],
                piece.call,
                checked=self.memory.rollback,
            )
            if not finite:
                if residual is not None and _core.all_finite(gradient):
                    raise InputError(
                        "a gradient is finite but with its residual or velocity it is not: call state.reset()"
                    )
                return NON_FINITE
        if residual is not None and self.momentum is not None and self.momentum.masking:
            self._mask(task, slot, own)
        return SENT

    def _mask(self, task: Task, slot: Slot, own: Any) -> None:
        """Stop the velocity of what was sent."""
        velocity = slot.entry.velocity
        if velocity is None or not slot.codec.is_sparse:
            return
        for piece in slot.pieces:
            sent = np.zeros(piece.part.stop - piece.part.start, np.float32)
            body = own[task.layout.place(slot, piece)]
            slot.codec._decompress(
                body, task.layout.dtype, task.random_step, sent, False, 1.0, True
            )
            velocity.now[piece.inside].masked_fill_(torch.from_numpy(sent != 0), 0.0)

    # --- After it. ---

    def add_up(
        self, task: Task, slot: Slot, piece: Piece, bodies: Sequence[Any], total: torch.Tensor
    ) -> None:
        """Leave in `total`, float32, the mean of the bodies, each given with its rank's mark.

        Every rank adds the same bits in rank order: replicas stay identical.
        """
        total.zero_()
        out = view(total).array
        for mark, message in bodies:
            if mark == SENT:
                slot.codec._decompress(
                    message[piece.body],
                    task.layout.dtype,
                    task.random_step,
                    out,
                    True,
                    1.0 / task.layout.world_size,
                    False,
                )

    def send_on(self, task: Task, slot: Slot, piece: Piece, total: torch.Tensor, out: Any) -> int:
        """Encode the mean that this rank owns, into the section `out`."""
        residual = None
        if self.error_feedback and not slot.dense:
            second = slot.entry.second_of(piece.part, task.layout.world_size)
            residual = view(self.memory.touch(second).now).array
        piece.second_call.step = task.random_step
        mean = View(view(total).array, task.layout.dtype, (), "torch")
        body = out[piece.body]
        finite = encode(
            mean, slot.second_encoder, body, residual, piece.second_call, self.memory.rollback
        )
        return SENT if finite else NON_FINITE

    def finish(self, task: Task, lost: Sequence[Slot]) -> torch.Tensor:
        """What is done to a bucket that holds the mean; `lost` are the parameters that are NaN."""
        for slot in lost:
            task.buffer[slot.entries].fill_(float("nan"))
        if lost:
            self.memory.spoiled = True
            task.layout.counters.add(nonfinite=len(lost))
        if self.momentum is not None:
            for slot in task.layout.slots:
                if slot not in lost and (slot.dense or task.layout.form == "dense"):
                    mean = task.buffer[slot.entries]
                    mean.copy_(self.momentum.step(self.memory, slot.entry, mean))
        return task.buffer


def is_zero(values: Any, tensor: torch.Tensor) -> bool:
    """Whether every entry is zero. Most are found not to be at once."""
    first = values[:256]
    if (first & 0x7FFF if first.dtype == np.uint16 else first).any():
        return False
    return float(tensor.amax()) == 0 == float(tensor.amin())
