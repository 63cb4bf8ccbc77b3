"""From gradients to messages and back: what a rank does with its own bucket and with all bodies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .layout import Layout, Piece, Slot
from .memory import Memory
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
        layout, engine = task.layout, task.layout.engine
        marks = engine.new_marks(layout, "marks")
        try:
            self.clip(task)
            own, gradients = engine.bytes(task.own), engine.entries(task.buffer)
            for slot in layout.slots:
                if not slot.is_low_rank:
                    self._encode_slot(task, slot, gradients, own, marks)
            if task.factors is not None:
                task.factors.first(gradients, marks)
        except Exception as error:
            task.failure = f"{type(error).__name__}: {error}"
        for section in layout.sections:
            marks.write_head(task.own[section.start : section.start + section.size], task)

    def _encode_slot(self, task: Task, slot: Slot, gradients: Any, own: Any, marks: Any) -> None:
        engine = task.layout.engine
        gradient = gradients[slot.entries]
        source, residual = gradient, None
        if self.error_feedback and not slot.dense:
            if marks.is_absent(slot, gradient, task.buffer[slot.entries]):
                return
            residual = engine.entries(self.memory.touch(slot.entry.residual_of()).now)
            if self.momentum is not None:
                raw = task.buffer[slot.entries]
                source = engine.entries(self.momentum.step(self.memory, slot.entry, raw))
                marks.settle_velocity(slot, slot.entry.velocity_of())
        for piece in slot.pieces:
            finite = marks.encode(
                slot,
                piece,
                source[piece.inside],
                own[task.layout.place(slot, piece)],
                None if residual is None else residual[piece.inside],
                task,
                self.memory.rollback,
                gradient,
            )
            if not finite:
                return
        if residual is not None and self.momentum is not None and self.momentum.masking:
            self._mask(task, slot, own)

    def _mask(self, task: Task, slot: Slot, own: Any) -> None:
        """Stop the velocity of what was sent."""
        velocity = slot.entry.velocity
        if velocity is None or not slot.codec.is_sparse:
            return
        engine = task.layout.engine
        for piece in slot.pieces:
            sent = torch.zeros(piece.part.stop - piece.part.start, device=task.buffer.device)
            body = own[task.layout.place(slot, piece)]
            engine.decode(slot, body, task, engine.entries(sent), False, 1.0)
            velocity.now[piece.inside].masked_fill_(sent != 0, 0.0)

    # --- After it. ---

    def add_up(
        self,
        task: Task,
        slot: Slot,
        piece: Piece,
        messages: Sequence[Any],
        verdict: Any,
        total: torch.Tensor,
    ) -> None:
        """Leave in `total`, float32, the mean of the bodies that count.

        Every rank adds the same bits in rank order: replicas stay identical.
        """
        verdict.add_up(slot, piece, messages, task, total, 1.0 / task.layout.world_size)

    def send_on(
        self, task: Task, slot: Slot, piece: Piece, total: torch.Tensor, out: Any, fates: Any
    ) -> None:
        """Encode the mean that this rank owns, into the section `out`."""
        engine, residual = task.layout.engine, None
        if self.error_feedback and not slot.dense:
            second = slot.entry.second_of(piece.part, task.layout.world_size)
            residual = engine.entries(self.memory.touch(second).now)
        body = out[piece.body]
        fates.encode_mean(
            slot, piece, engine.entries(total), body, residual, task, self.memory.rollback
        )

    def finish(self, task: Task, verdict: Any) -> torch.Tensor:
        """What is done to a bucket that holds the mean: the parameters that are lost become NaN."""
        verdict.close(task, self.memory)
        if self.momentum is not None:
            for slot in task.layout.slots:
                if not verdict.skips(slot) and (slot.dense or task.layout.form == "dense"):
                    mean = task.buffer[slot.entries]
                    mean.copy_(self.momentum.step(self.memory, slot.entry, mean))
        return task.buffer
