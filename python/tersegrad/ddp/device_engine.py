"""Codecs of a bucket on a device. How each parameter fared is a number there, and no step waits for it.

The statuses that encoders leave become the marks of the message by small tensor operations; what all ranks' marks mean becomes the
number that each parameter's sum begins with, 0 or NaN. What the host wants to know in the end, it finds in the `Ledger`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ..device.backend import ALIGNMENT, Backend
from ..errors import StateError
from .ledger import Ledger
from .message import ABSENT, HEAD, MAGIC

if TYPE_CHECKING:
    from .coding import Task
    from .layout import Layout, Piece, Slot
    from .memory import Kept, Memory

_T = TypeVar("_T")


class Cells:
    """Int32 numbers on a device that are kept from step to step, together and one by one."""

    def __init__(self, n: int, device: torch.device) -> None:
        self.all = torch.zeros(n, dtype=torch.int32, device=device)
        self.each = [self.all[i : i + 1] for i in range(n)]


class OnDevice:
    """Codecs on a device; the methods are those of `engine.Host`."""

    alignment = ALIGNMENT

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.head = torch.empty(0)  # as each message of the layout begins, but for the step
        self.pieces = 0
        self.first_piece: list[int] = []  # of every parameter, then the number of all
        self.first_piece_there: torch.Tensor | None = None  # if a parameter has several
        self._cells: dict[str, Cells] = {}

    def prepare(self, layout: Layout) -> None:
        for slot in layout.slots:
            self.backend.check(slot.codec)
        head = HEAD.pack(MAGIC, layout.checksum, 0, False)
        self.head = torch.frombuffer(bytearray(head), dtype=torch.uint8).to(layout.device)
        counts = [len(slot.pieces) for slot in layout.slots]
        self.first_piece = list(accumulate(counts, initial=0))
        self.pieces = self.first_piece[-1]
        if any(count != 1 for count in counts):
            self.first_piece_there = torch.tensor(
                self.first_piece, dtype=torch.int32, device=layout.device
            )

    def entries(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach()

    def bytes(self, message: torch.Tensor) -> torch.Tensor:
        return message

    def cells(self, name: str, n: int, device: torch.device) -> Cells:
        """`n` numbers, zero in the first step."""
        kept = self._cells.get(name)
        if kept is None:
            kept = self._cells[name] = Cells(n, device)
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
        with self.backend.side(device), self.backend.hold(device):
            yield

    def fenced(self, device: torch.device, job: Callable[[], _T]) -> Callable[[], _T]:
        """On the same stream; who waits for the current one then waits for the job too."""

        def run() -> _T:
            with self.backend.side(device, after_current=False), self.backend.hold(device):
                result = job()
            self.backend.join_side(device)
            return result

        return run

    def judge(self, task: Task, messages: torch.Tensor, before: Any = None) -> DeviceVerdict:
        return DeviceVerdict(self, task, messages, before)

    def find_lost(self, task: Task) -> DeviceVerdict:
        return DeviceVerdict(self, task, None, None)


class DeviceMarks:
    """The statuses that encoders leave, and which parameters are not sent.

    Of this rank's message there is one for each piece, of the means that it sends on one for each parameter: it owns one piece at most.
    """

    def __init__(self, engine: OnDevice, layout: Layout, name: str, verdict: Any) -> None:
        self._engine, self._layout, self._verdict = engine, layout, verdict
        slots = len(layout.slots)
        self._last_keys = engine.cells(f"last keys of {name}", engine.pieces, layout.device)
        if verdict is None:
            self._status = engine.cells(name, engine.pieces, layout.device)
            absent = engine.cells("absent", slots, layout.device)
            absent.all.fill_(1)
            self._absent = absent.each
        else:
            self._status = engine.cells(name, slots, layout.device)
            self._status.all.fill_(ABSENT)
            self._absent = verdict.absent

    def _cells_of(self, slot: Slot, piece: Piece) -> tuple[torch.Tensor, torch.Tensor]:
        """The status of a piece, and the key with which its next top-k begins."""
        number = self._engine.first_piece[slot.index] + slot.pieces.index(piece)
        at = number if self._verdict is None else slot.index
        return self._status.each[at], self._last_keys.each[number]

    def _skip(self, slot: Slot) -> torch.Tensor:
        return self._absent[slot.index]

    def is_absent(self, slot: Slot, gradient: Any, tensor: torch.Tensor) -> bool:
        self._engine.backend.not_zero(gradient, self._skip(slot))
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
        status, last_key = self._cells_of(slot, piece)
        self._engine.backend.encode(
            slot.encoder,
            values,
            task.layout.dtype,
            body,
            status,
            residual,
            step=task.random_step,
            checked=careless,
            skip=None if residual is None else self._skip(slot),
            last_key=last_key,
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
        status, last_key = self._cells_of(slot, piece)
        self._engine.backend.encode(
            slot.second_encoder,
            mean,
            task.layout.dtype,
            body,
            status,
            residual,
            step=task.random_step,
            checked=careless,
            skip=self._skip(slot),
            last_key=last_key,
        )

    def write_head(self, message: torch.Tensor, task: Task) -> None:
        engine = self._engine
        engine.backend.write_head(
            engine.head,
            task.random_step,
            len(self._layout.slots),
            self._status.all,
            engine.first_piece_there if self._verdict is None else None,
            task.failure is not None,
            message,
        )


class DeviceVerdict:
    """What the heads of all ranks say, as tensors with one entry for each parameter.

    A head of another layout, step or of a rank that failed makes every mean NaN; the `Ledger` tells why.
    """

    def __init__(self, engine: OnDevice, task: Task, messages: Any, before: Any) -> None:
        self._engine = engine
        layout, backend = task.layout, engine.backend
        slots = len(layout.slots)
        name = "verdict" if before is None else "verdict on means"
        words = engine.cells(name, 1 + 3 * slots, task.buffer.device)
        # Whether a head is wrong; of every parameter whether it is lost, whether no rank sent it, and the float that its sum begins with.
        self._words, one_by_one = words.all, words.each[1:]
        self._lost, self.absent = one_by_one[:slots], one_by_one[slots : 2 * slots]
        self._start = one_by_one[2 * slots :]
        if messages is None:
            self._words.zero_()
            for slot in layout.slots:
                backend.not_finite(task.buffer[slot.entries], self._lost[slot.index])
            return
        earlier = None if before is None else before._words
        backend.judge(engine.head, task.random_step, messages, earlier, self._words)

    def skips(self, slot: Slot) -> bool:
        return False

    def skips_mean(self, slot: Slot) -> bool:
        return False

    def add_up(
        self,
        slot: Slot,
        piece: Piece,
        messages: Sequence[Any],
        task: Task,
        total: torch.Tensor,
        share: float,
    ) -> None:
        self._engine.backend.add_many(
            slot.codec,
            messages,
            piece.body.start,
            task.layout.dtype,
            task.random_step,
            total,
            share,
            self._start[slot.index],
        )

    def place_mean(
        self, slot: Slot, owner: int, body: Any, task: Task, out: torch.Tensor, array: Any
    ) -> None:
        out.copy_(self._start[slot.index].view(torch.float32))
        self._engine.decode(slot, body, task, out, True, 1.0)

    def close(self, task: Task, memory: Memory) -> None:
        if task.layout.form == "dense":
            for slot in task.layout.slots:
                lost = self._lost[slot.index].bool()
                task.buffer[slot.entries].masked_fill_(lost, float("nan"))
        if memory.ledger is None:
            memory.ledger = Ledger(self._engine.backend, task.buffer.device)
        memory.ledger.note(self._words)
        if task.failure is not None:
            raise StateError(f"this rank could not compress a gradient: {task.failure}")
