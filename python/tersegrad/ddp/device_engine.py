"""Codecs of a bucket on a device. How each parameter fared is a number there, and no step waits for it.

The statuses that encoders leave become the marks of the message by small tensor operations; what all ranks' marks mean becomes the
number that each parameter's sum begins with, 0 or NaN. What the host wants to know in the end, it finds in the `Ledger`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ..device.backend import ALIGNMENT, Backend, signed
from ..errors import StateError
from .ledger import Ledger
from .message import ABSENT, HEAD, MAGIC, NON_FINITE

if TYPE_CHECKING:
    from .coding import Task
    from .layout import Layout, Piece, Slot
    from .memory import Kept, Memory

_T = TypeVar("_T")


class OnDevice:
    """Codecs on a device; the methods are those of `engine.Host`."""

    alignment = ALIGNMENT

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.head = torch.empty(0)  # as each message of the layout begins, but for the step
        self.pieces = 0
        self.first_piece: list[int] = []  # of every parameter
        self.slots = torch.empty(0)  # the parameter of every piece
        self._cells: dict[str, torch.Tensor] = {}

    def prepare(self, layout: Layout) -> None:
        for slot in layout.slots:
            self.backend.check(slot.codec)
        head = HEAD.pack(MAGIC, layout.checksum, 0, False)
        self.head = torch.frombuffer(bytearray(head), dtype=torch.uint8).to(layout.device)
        numbers: list[int] = []
        for slot in layout.slots:
            self.first_piece.append(len(numbers))
            numbers += [slot.index] * len(slot.pieces)
        self.pieces = len(numbers)
        self.slots = torch.tensor(numbers, dtype=torch.int64, device=layout.device)

    def entries(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach()

    def bytes(self, message: torch.Tensor) -> torch.Tensor:
        return message

    def cells(self, name: str, n: int, device: torch.device) -> torch.Tensor:
        """`n` int32 of any value, kept from step to step."""
        kept = self._cells.get(name)
        if kept is None or kept.numel() != n:
            kept = self._cells[name] = torch.zeros(n, dtype=torch.int32, device=device)
        return kept

    def new_marks(self, layout: Layout, name: str, verdict: Any = None) -> DeviceMarks:
        return DeviceMarks(self, layout, name, verdict)

    def decode(
        self, slot: Slot, body: Any, task: Task, out: Any, accumulate: bool, scale: float
    ) -> None:
        step, dtype = task.random_step, task.layout.dtype
        self.backend.decode(slot.codec, body, dtype, step, out, accumulate, scale)

    @contextlib.contextmanager
    def fence(self, device: torch.device) -> Iterator[None]:
        """On a stream beside the backward pass, which goes on meanwhile."""
        with self.backend.side(device):
            yield

    def fenced(self, device: torch.device, job: Callable[[], _T]) -> Callable[[], _T]:
        """On the same stream; who waits for the current one then waits for the job too."""

        def run() -> _T:
            with self.backend.side(device, after_current=False):
                result = job()
            self.backend.join_side(device)
            return result

        return run

    def judge(self, task: Task, messages: torch.Tensor, before: Any = None) -> DeviceVerdict:
        return DeviceVerdict(self, task, messages, before)

    def find_lost(self, task: Task) -> DeviceVerdict:
        return DeviceVerdict(self, task, None, None)

    def head_of(self, task: Task) -> torch.Tensor:
        """The 16 bytes that every rank's message of a step begins with."""
        if task.head is None:
            task.head = self.head.clone()
            task.head[8:12].view(torch.int32).fill_(signed(task.random_step))
        return task.head


class DeviceMarks:
    """The statuses that encoders leave, and which parameters are not sent.

    Of this rank's message there is one for each piece, of the means that it sends on one for each parameter: it owns one piece at most.
    """

    def __init__(self, engine: OnDevice, layout: Layout, name: str, verdict: Any) -> None:
        self._engine, self._layout, self._verdict = engine, layout, verdict
        slots = len(layout.slots)
        if verdict is None:
            self._status = engine.cells(name, engine.pieces, layout.device)
            self._absent = engine.cells("absent", slots, layout.device)
        else:
            self._status = engine.cells(name, slots, layout.device).fill_(ABSENT)
            self._absent = verdict.absent

    def _cell(self, slot: Slot, piece: Piece) -> torch.Tensor:
        at = slot.index
        if self._verdict is None:
            at = self._engine.first_piece[slot.index] + slot.pieces.index(piece)
        return self._status[at : at + 1]

    def _skip(self, slot: Slot) -> torch.Tensor:
        return self._absent[slot.index : slot.index + 1]

    def is_absent(self, slot: Slot, gradient: Any, tensor: torch.Tensor) -> bool:
        self._engine.backend.is_zero(gradient, self._skip(slot))
        return False

    def settle_velocity(self, slot: Slot, velocity: Kept) -> None:
        if velocity.before is not None:
            self._engine.backend.copy_if(self._skip(slot), velocity.before, velocity.now)

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
        self._engine.backend.encode(
            slot.encoder,
            values,
            task.layout.dtype,
            body,
            self._cell(slot, piece),
            residual,
            step=task.random_step,
            checked=careless,
            skip=None if residual is None else self._skip(slot),
        )
        return True

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
        self._engine.backend.encode(
            slot.second_encoder,
            mean,
            task.layout.dtype,
            body,
            self._cell(slot, piece),
            residual,
            step=task.random_step,
            checked=careless,
            skip=self._skip(slot),
        )

    def write_head(self, message: torch.Tensor, task: Task) -> None:
        slots, marks = len(self._layout.slots), self._status
        if marks.numel() != slots:  # a parameter in pieces fares as the worst of them
            marks = marks.new_zeros(slots).scatter_reduce(0, self._engine.slots, marks, "amax")
        message[: HEAD.size].copy_(self._engine.head_of(task))
        message[HEAD.size : HEAD.size + slots].copy_(marks)  # from NON_FINITE on, one is lost
        if task.failure is not None:
            message[12:13].fill_(1)


class DeviceVerdict:
    """What the heads of all ranks say, as tensors with one entry for each parameter.

    A head of another layout, step or of a rank that failed makes every mean NaN; the `Ledger` tells why.
    """

    def __init__(self, engine: OnDevice, task: Task, messages: Any, before: Any) -> None:
        self._engine = engine
        slots = task.layout.slots
        if messages is None:
            finite = [task.buffer[slot.entries].isfinite().all() for slot in slots]
            self.lost = torch.stack(finite).logical_not_()
            self.wrong = torch.zeros((), dtype=torch.bool, device=task.buffer.device)
            return
        marks = messages[:, HEAD.size : HEAD.size + len(slots)]
        self.wrong = (messages[:, : HEAD.size] != engine.head_of(task)).any()
        self.lost = (marks >= NON_FINITE).any(0).logical_or_(self.wrong)
        if before is not None:
            self.wrong.logical_or_(before.wrong)
            self.lost.logical_or_(before.lost)
        elif task.layout.form == "two_step":
            self.absent = (marks == ABSENT).all(0).to(torch.int32)
        zeros = torch.zeros(len(slots), dtype=torch.float32, device=messages.device)
        self._start = zeros.masked_fill_(self.lost, float("nan"))

    def skips(self, slot: Slot) -> bool:
        return False

    def skips_mean(self, slot: Slot) -> bool:
        return False

    def begin(self, slot: Slot, total: torch.Tensor) -> None:
        total.copy_(self._start[slot.index])

    def sent(self, slot: Slot, bodies: Sequence[Any]) -> Iterable[Any]:
        return bodies

    def place_mean(
        self, slot: Slot, owner: int, body: Any, task: Task, out: torch.Tensor, array: Any
    ) -> None:
        self.begin(slot, out)
        self._engine.decode(slot, body, task, out, True, 1.0)

    def close(self, task: Task, memory: Memory) -> None:
        if task.layout.form == "dense":
            for slot in task.layout.slots:
                task.buffer[slot.entries].masked_fill_(self.lost[slot.index], float("nan"))
        if memory.ledger is None:
            memory.ledger = Ledger(self._engine.backend, task.buffer.device)
        memory.ledger.note(self.lost, self.wrong)
        if task.failure is not None:
            raise StateError(f"this rank could not compress a gradient: {task.failure}")
