"""How LowRank parameters are averaged: not as payloads, but factor by factor (Vogels et al. 2019).

The ranks begin with the same Q. They sum P = M Q, so that all of them make the same orthonormal P, and then
average Q = M^T P. P Q^T is the mean on every rank, and a residual keeps what it lacks of the rank's own
gradient. One all-reduce carries P of all matrices of a bucket, one Q. What else is in the bucket travels in
the message of `AllGather`, and so does whether a gradient was finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from .. import _core
from ..buffers import DTYPE_CODES, Floats, view
from ..errors import InputError
from .coding import Coder, Task
from .engine import HostMarks, HostVerdict
from .exchange import AllGather, Stopwatch
from .groups import Group, all_reduce
from .layout import Slot
from .message import NON_FINITE, SENT


class Factors:
    """P and Q of the matrices of a bucket. The factors of one kind lie side by side."""

    def __init__(self, coder: Coder, task: Task, slots: Sequence[Slot]) -> None:
        self.coder, self.task, self.slots = coder, task, slots
        self.codecs = [slot.matrix for slot in slots]
        self.columns = [int(codec.columns or 0) for codec in self.codecs]
        self.ranks = [codec.rank for codec in self.codecs]
        rows = [
            slot.entry.parameter.numel() // n for slot, n in zip(slots, self.columns, strict=True)
        ]
        brain = all(codec.factors == "bfloat16" for codec in self.codecs)
        self.wire = torch.bfloat16 if brain else torch.float32
        self.p_flat, self.ps = self._lay(
            "P", [a * r for a, r in zip(rows, self.ranks, strict=True)]
        )
        self.q_flat, self.qs = self._lay(
            "Q", [a * r for a, r in zip(self.columns, self.ranks, strict=True)]
        )
        self.matrices: list[
            Floats
        ] = []  # what the factors stand for: the residual, if there is one

    def _lay(self, name: str, sizes: list[int]) -> tuple[torch.Tensor, list[Floats]]:
        layout = self.task.layout
        flat = self.coder.scratch.take(layout.index, name, sum(sizes), torch.float32, layout.device)
        ends = list(accumulate(sizes))
        return flat, [
            view(flat[end - size : end]).array for end, size in zip(ends, sizes, strict=True)
        ]

    @property
    def nbytes(self) -> int:
        """Of P and Q together on the wire."""
        return (self.p_flat.numel() + self.q_flat.numel()) * self.wire.itemsize

    def sum_up(self, group: Group, flat: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """The work of an all-reduce, and the tensor that will hold the sums."""
        sums = flat if self.wire == flat.dtype else flat.to(self.wire)
        return all_reduce(group, sums), sums

    def first(self, gradients: Any, marks: HostMarks) -> None:
        """Take in this rank's gradients, and P = M Q of each."""
        coder, memory = self.coder, self.coder.memory
        sources: list[Any] = []
        residuals: list[Floats | None] = []
        memories: list[Floats | None] = []
        for slot, q in zip(self.slots, self.qs, strict=True):
            raw = self.task.buffer[slot.entries]
            source = gradients[slot.entries]
            if not marks.is_absent(slot, source, raw):
                marks.put(slot, SENT)
            residual = None
            if not memory.rollback and not _core.all_finite(source):
                marks.put(slot, NON_FINITE)
                source = view(torch.zeros(raw.numel())).array
            elif coder.error_feedback:
                residual = view(memory.touch(slot.entry.residual_of()).now).array
                if coder.momentum is not None:
                    source = view(coder.momentum.step(memory, slot.entry, raw)).array
            elif raw.dtype != torch.float32:
                source = view(raw.float()).array
            sources.append(source)
            residuals.append(residual)
            memories.append(view(slot.entry.factor_of(q.size).now).array)
            self.matrices.append(source if residual is None else residual)
        finite = _core.lowrank_first(
            sources,
            residuals,
            self.columns,
            self.ranks,
            [codec.seed for codec in self.codecs],
            memories,
            self.ps,
            self.qs,
        )
        for slot, p, good in zip(self.slots, self.ps, finite, strict=True):
            if not good:
                if coder.error_feedback and _core.all_finite(gradients[slot.entries]):
                    raise InputError(
                        "a gradient is finite but with its residual or velocity it is not: call state.reset()"
                    )
                marks.put(slot, NON_FINITE)
                p.fill(0)

    def second(self) -> None:
        """From the sum of P on all ranks: the common P, and this rank's Q."""
        for factors in sorted({codec.factors for codec in self.codecs}):
            chosen = [i for i, codec in enumerate(self.codecs) if codec.factors == factors]
            _core.lowrank_second(
                [self.matrices[i] for i in chosen],
                [self.columns[i] for i in chosen],
                [self.ranks[i] for i in chosen],
                DTYPE_CODES[factors],
                [self.ps[i] for i in chosen],
                [self.qs[i] for i in chosen],
            )

    def third(self, verdict: HostVerdict) -> None:
        """From the mean of Q on all ranks: the mean of the gradients, and what this rank's residual keeps."""
        layout, memory = self.task.layout, self.coder.memory
        target, code = view(self.task.buffer), DTYPE_CODES[layout.dtype]
        for i, slot in enumerate(self.slots):
            if verdict.skips(slot):
                continue
            if verdict.skips_mean(slot):  # no rank has a gradient
                self.task.buffer[slot.entries].zero_()
                continue
            p, q, columns, rank = self.ps[i], self.qs[i], self.columns[i], self.ranks[i]
            out = target.array[slot.entries]
            if self.coder.error_feedback:
                matrix = self.matrices[i]
                _core.lowrank_subtract([matrix], [columns], [rank], [p], [q], code)
            _core.lowrank_decode(p, q, columns, rank, code, out, False, 1.0)
            kept = memory.touch(slot.entry.factor_of(q.size))
            view(kept.now).array[:] = q


class LowRankAllReduce(AllGather):
    """The message of what is not LowRank, an all-reduce of every P, then one of every Q."""

    def start(self, group: Group) -> None:
        task = self.task
        slots = [slot for slot in task.layout.slots if slot.is_low_rank]
        self.factors = Factors(self.coder, task, slots) if slots else None
        task.factors = self.factors
        super().start(group)
        if self.factors is not None:
            sent = self.factors.nbytes
            ranks = task.layout.world_size
            task.layout.counters.begin(sent=sent, received=2 * sent * (ranks - 1) // ranks)
            self.p_work, self.p_sums = self.factors.sum_up(group, self.factors.p_flat)

    def finish(self, group: Group | None) -> torch.Tensor:
        factors = self.factors
        if factors is None:
            return super().finish(group)
        task, counters = self.task, self.task.layout.counters
        watch = Stopwatch()
        self.work.wait()
        self.p_work.wait()
        counters.waited(watch())
        verdict = task.layout.engine.judge(task, self.gathered.view(task.layout.world_size, -1))
        if self.p_sums is not factors.p_flat:
            factors.p_flat.copy_(self.p_sums)
        factors.second()
        counters.add(compress_seconds=watch())
        work, sums = factors.sum_up(group, factors.q_flat)
        self.average_bodies(verdict)
        counters.add(decode_seconds=watch())
        work.wait()
        counters.waited(watch())
        torch.mul(sums.float(), 1.0 / task.layout.world_size, out=factors.q_flat)
        factors.third(verdict)
        result = self.coder.finish(task, verdict)
        counters.add(decode_seconds=watch())
        return result
