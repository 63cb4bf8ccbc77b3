"""How the messages of a bucket travel. Each form has a first collective, and what follows it.

`start` is called in the order of the buckets by whoever may issue the first collective: the hook,
or in a hierarchy the worker. `finish` is called by the worker alone. Both see one `Task`.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from .coding import Coder, Task
from .groups import Group, all_gather, all_reduce, all_to_all
from .layout import Layout


class Stopwatch:
    """Seconds since the last look."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def __call__(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


class Dense:
    """A plain all-reduce of the gradients."""

    def __init__(self, coder: Coder, task: Task) -> None:
        self.coder, self.task = coder, task

    def start(self, group: Group) -> None:
        task = self.task
        self.coder.clip(task)
        task.buffer.div_(task.layout.world_size)
        layout = task.layout
        layout.counters.begin(sent=layout.dense_bytes, received=dense_received_bytes(layout))
        self.work = all_reduce(group, task.buffer)

    def finish(self, group: Group | None) -> torch.Tensor:
        task, counters = self.task, self.task.layout.counters
        watch = Stopwatch()
        self.work.wait()
        counters.waited(watch())
        mean = self.coder.finish(task, task.layout.engine.find_lost(task))
        counters.add(decode_seconds=watch())
        return mean


class AllGather:
    """Every rank sends its message to every other. Each receives W - 1 messages."""

    def __init__(self, coder: Coder, task: Task) -> None:
        self.coder, self.task = coder, task

    def start(self, group: Group) -> None:
        task, counters = self.task, self.task.layout.counters
        watch = Stopwatch()
        size, world_size = task.layout.message_bytes, task.layout.world_size
        task.own = self._bytes("own", size)
        self.gathered = self._bytes("gathered", world_size * size)
        self.coder.encode(task)
        counters.add(compress_seconds=watch())
        counters.begin(sent=size, received=(world_size - 1) * size)
        self.work = all_gather(group, self.gathered, task.own)

    def finish(self, group: Group | None) -> torch.Tensor:
        task, counters = self.task, self.task.layout.counters
        watch = Stopwatch()
        self.work.wait()
        counters.waited(watch())
        messages, engine = self.gathered.view(task.layout.world_size, -1), task.layout.engine
        verdict = engine.judge(task, messages)
        self.average_bodies(verdict)
        result = self.coder.finish(task, verdict)
        counters.add(decode_seconds=watch())
        return result

    def average_bodies(self, verdict: Any) -> None:
        """The mean of every parameter that the messages hold."""
        task, engine = self.task, self.task.layout.engine
        messages = self.gathered.view(task.layout.world_size, -1)
        received = [engine.bytes(message) for message in messages]
        for slot, piece in task.layout.sections[0].pieces:
            if verdict.skips(slot):
                continue
            mean = task.buffer[piece.entries]
            total = mean
            if mean.dtype != torch.float32:
                total = self._floats(task.layout)[: mean.numel()]
            self.coder.add_up(task, slot, piece, received, verdict, total)
            if total is not mean:
                mean.copy_(total)

    def _bytes(self, name: str, size: int) -> torch.Tensor:
        layout = self.task.layout
        return self.coder.scratch.take(layout.index, name, size, torch.uint8, layout.device)

    def _floats(self, layout: Layout) -> torch.Tensor:
        """Where half precision is summed."""
        n = max(piece.part.stop - piece.part.start for s in layout.slots for piece in s.pieces)
        return self.coder.scratch.take(layout.index, "total", n, torch.float32, layout.device)


class TwoStep(AllGather):
    """Every rank owns parts of the parameters: it gets all bodies of them, adds them up and sends
    the mean on, compressed again with a residual of its own. Each receives about two messages.
    """

    def start(self, group: Group) -> None:
        task, counters = self.task, self.task.layout.counters
        layout = task.layout
        watch = Stopwatch()
        task.own = self._bytes("own", layout.message_bytes)
        mine = layout.sections[layout.rank].size
        self.received = self._bytes("received", layout.world_size * mine)
        self.coder.encode(task)
        counters.add(compress_seconds=watch())
        counters.begin(sent=layout.message_bytes, received=(layout.world_size - 1) * mine)
        sizes = [section.size for section in layout.sections]
        self.work = all_to_all(group, self.received, task.own, [mine] * layout.world_size, sizes)

    def finish(self, group: Group | None) -> torch.Tensor:
        task, layout, counters = self.task, self.task.layout, self.task.layout.counters
        watch = Stopwatch()
        self.work.wait()
        counters.waited(watch())
        messages = self.received.view(layout.world_size, -1)
        verdict = layout.engine.judge(task, messages)
        means = self._bytes("means", layout.world_size * layout.section_bytes)
        own = self._bytes("own mean", layout.section_bytes)
        self._send_on(own, messages, verdict)
        counters.add(compress_seconds=watch())
        counters.begin(sent=own.numel(), received=(layout.world_size - 1) * own.numel())
        all_gather(group, means, own).wait()
        counters.waited(watch())
        result = self._decode(means.view(layout.world_size, -1), verdict)
        counters.add(decode_seconds=watch())
        return result

    def _send_on(self, own: torch.Tensor, messages: torch.Tensor, verdict: Any) -> None:
        task, layout, engine = self.task, self.task.layout, self.task.layout.engine
        fates = engine.new_marks(layout, "fates", verdict)
        try:
            received, out = [engine.bytes(message) for message in messages], engine.bytes(own)
            for slot, piece in layout.sections[layout.rank].pieces:
                if verdict.skips_mean(slot):
                    continue
                total = self._floats(layout)[: piece.part.stop - piece.part.start]
                self.coder.add_up(task, slot, piece, received, verdict, total)
                self.coder.send_on(task, slot, piece, total, out, fates)
        except Exception as error:
            task.failure = f"{type(error).__name__}: {error}"
        fates.write_head(own, task)

    def _decode(self, means: torch.Tensor, verdict: Any) -> torch.Tensor:
        task, layout, engine = self.task, self.task.layout, self.task.layout.engine
        verdict = engine.judge(task, means, verdict)
        target = engine.entries(task.buffer)
        for owner, (section, mean) in enumerate(zip(layout.sections, means, strict=True)):
            body = engine.bytes(mean)
            for slot, piece in section.pieces:
                verdict.place_mean(
                    slot,
                    owner,
                    body[piece.body],
                    task,
                    task.buffer[piece.entries],
                    target[piece.entries],
                )
        return self.coder.finish(task, verdict)


def dense_received_bytes(layout: Layout) -> int:
    """What a rank gets in a ring all-reduce of a bucket."""
    return 2 * layout.dense_bytes * (layout.world_size - 1) // layout.world_size
