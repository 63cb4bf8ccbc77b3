"""What happens to a bucket: its plan, its first collective, and the job for the worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist

from .. import Codec
from ..errors import InputError, StateError
from ..exchange import DTYPES
from .coding import Coder, Task
from .exchange import EXCHANGES, dense_received_bytes
from .groups import GroupOrPair, Groups, agree
from .hierarchy import start_inside, through_leader
from .layout import Form, Layout
from .memory import Entry, Memory
from .rules import RuleBook, Warmup, with_density
from .telemetry import Counters
from .worker import Worker

Exchange: TypeAlias = Literal["auto", "all_gather", "two_step", "noop"]

#: The two-step exchange is chosen where it spares a rank so many bytes a step; see docs/ddp.md.
TWO_STEP_SPARES_BYTES = 2**20


class Reducer:
    """The plans of the present buckets, and the thread that finishes them. Never copied or saved.

    Parameters
    ----------
    coder : Coder
    book : RuleBook
    warmup : Warmup
    exchange : {"auto", "all_gather", "two_step", "noop"}
        As the state's option.
    counters : Counters
        Where the bytes and seconds of all buckets are summed.
    """

    def __init__(
        self,
        coder: Coder,
        book: RuleBook,
        warmup: Warmup,
        exchange: Exchange,
        counters: Counters,
    ) -> None:
        self.coder, self.book, self.warmup, self.exchange = coder, book, warmup, exchange
        self.counters = counters
        self.layouts: dict[int, Layout] = {}
        self._worker = Worker()
        self._forms: dict[tuple[float, int], Form] = {}
        self._groups: tuple[GroupOrPair, Groups] | None = None

    def reduce(
        self, bucket: Any, step: int, given: GroupOrPair
    ) -> torch.futures.Future[torch.Tensor]:
        """Average a bucket of a step over the ranks of a group or pair of groups."""
        buffer = bucket.buffer()
        _check_gradient(buffer)
        groups = self.groups(given)
        try:
            layout = self._layout(bucket, step, groups)
        except Exception:
            self._tell_failure(groups, buffer.device, step)
            raise
        layout.counters.add(
            dense_bytes=layout.dense_bytes, dense_received_bytes=dense_received_bytes(layout)
        )
        future = self._travel(Task(layout, buffer, step), groups)
        if bucket.is_last():
            self.counters.add(steps=1)
            for index in [index for index in self.layouts if index > bucket.index()]:
                self._drop(index)  # DDP has rebuilt into fewer buckets
        return future

    def _travel(self, task: Task, groups: Groups) -> torch.futures.Future[torch.Tensor]:
        """Issue the first collective, and leave the rest to the worker.

        The worker's job holds the task and what it needs, and not this object.
        """
        layout, buffer = task.layout, task.buffer
        if layout.form == "noop":
            return self._worker.run(lambda: buffer, buffer.device, beside=False)
        exchange, engine = EXCHANGES[layout.form](self.coder, task), layout.engine
        facts = None if layout.agreed else self._facts(task.step, layout.checksum)
        compare = partial(_compare, task, facts)
        layout.agreed = True
        with engine.fence(buffer.device):
            if not groups.nodes:
                compare(groups.hook)
                exchange.start(groups.hook)
                later = groups.copy("hook", buffer.device) if layout.form == "two_step" else None
                job = partial(exchange.finish, later)
            else:
                if facts is not None:
                    self._compare_inside(groups, buffer.device, task.step, planned=True)
                inside = groups.copy("hook", buffer.device)
                leads = None
                if groups.exchange is not None:
                    between = groups.copy("exchange", buffer.device)
                    leads = partial(_exchange_between, exchange, between, compare)
                work = start_inside(buffer, groups)
                job = partial(through_leader, buffer, work, inside, leads, self.coder.memory)
        beside = groups.has_gloo(buffer.device)
        guarded = partial(_guarded, self.coder.memory, engine.fenced(buffer.device, job))
        return self._worker.run(guarded, buffer.device, beside)

    def _tell_failure(self, groups: Groups, device: torch.device, step: int) -> None:
        """Ranks that could plan the bucket find out here that this one could not."""
        if self.exchange == "noop":
            return
        if groups.nodes:
            with suppress(StateError):  # of the own node: this rank's own error says more
                self._compare_inside(groups, device, step, planned=False)
        else:
            agree(groups.hook, device, self._facts(step, -1))

    def _compare_inside(
        self, groups: Groups, device: torch.device, step: int, planned: bool
    ) -> None:
        """See that all ranks of the node have a plan; if not, its leader tells the other nodes."""
        facts = self._facts(step, int(planned))
        try:
            agree(groups.hook, device, facts)
        except StateError:
            self._tell_leaders(groups, device, step)
            raise
        if not planned:
            self._tell_leaders(groups, device, step)

    def _tell_leaders(self, groups: Groups, device: torch.device, step: int) -> None:
        if groups.exchange is None:
            return
        between = groups.copy("exchange", device)
        job = partial(_disagree, between, device, self._facts(step, -1))
        self._worker.run(job, device, groups.has_gloo(device)).wait()

    def _facts(self, step: int, checksum: int) -> dict[str, Any]:
        return {
            "codec": repr(self.book.codec),
            "options": self.options(),
            "layout of a bucket": checksum,
            "step": step,
        }

    def options(self) -> str:
        coder = self.coder
        return (
            f"exchange={self.exchange!r}, rules={self.book!r}, warmup={self.warmup!r}, "
            f"momentum={coder.momentum!r}, error_feedback={coder.error_feedback}, "
            f"rollback={coder.memory.rollback}"
        )

    # --- Plans. ---

    def _layout(self, bucket: Any, step: int, groups: Groups) -> Layout:
        """The plan of a bucket, made anew when DDP has rebuilt its buckets or a phase ends."""
        index, buffer, parameters = bucket.index(), bucket.buffer(), bucket.parameters()
        rank, world_size = groups.place()
        density = self.warmup.density(step)
        form = self.form(density, world_size, parameters)
        place = (buffer.dtype, buffer.device, buffer.numel(), rank, world_size, form, density)
        key = (*place, *map(id, parameters))
        layout = self.layouts.get(index)
        if layout is None or layout.key != key:
            self._drop(index)  # first: the fused bucket of step 0 is a whole model
            codec_of = partial(self.codec_of, density=density)
            layout = Layout(
                key,
                index,
                buffer,
                parameters,
                codec_of,
                self.coder.memory,
                form,
                rank,
                world_size,
                self.counters,
            )
            layout.fold_seconds()
            self.layouts[index] = layout
        return layout

    def _drop(self, index: int) -> None:
        self.layouts.pop(index, None)
        self.coder.scratch.drop(index)

    def codec_of(self, entry: Entry, density: float = 0.0) -> Codec:
        return with_density(self.book.codec_of(entry.name, entry.parameter), density)

    def form(
        self,
        density: float,
        world_size: int,
        parameters: Sequence[torch.Tensor] = (),
    ) -> Form:
        """How buckets travel at a density. One answer for the whole model: what a bucket holds
        must not decide, or a rebuilt bucket would change bits.
        """
        if density == 1.0 and self.exchange != "noop":
            return "dense"
        if self.exchange != "auto":
            return self.exchange
        form = self._forms.get((density, world_size))
        if form is None:
            memory = self.coder.memory
            for parameter in parameters:
                memory.of(parameter)
            trained = [entry for entry in memory if entry.parameter.requires_grad]
            body = sum(
                self.codec_of(entry, density).body_size(
                    entry.parameter.numel(), DTYPES.get(entry.parameter.dtype, "float32")
                )
                for entry in trained
            )
            spared = body * (world_size - 1) * (world_size - 2) // world_size
            form = "two_step" if spared >= TWO_STEP_SPARES_BYTES else "all_gather"
            self._forms[density, world_size] = form
        return form

    def groups(self, given: GroupOrPair) -> Groups:
        key = dist.group.WORLD if given is None else given
        if self._groups is None or self._groups[0] is not key:
            for index in list(self.layouts):
                self._drop(index)
            self._groups = (key, Groups.of(given))
        return self._groups[1]


def _compare(task: Task, facts: dict[str, Any] | None, group: Any) -> None:
    """See that the ranks are set up alike; `facts` are None where that was seen before."""
    if facts is not None:
        task.layout.counters.add(sent_bytes=agree(group, task.buffer.device, facts))


def _disagree(group: Any, device: torch.device, facts: dict[str, Any]) -> torch.Tensor:
    """Take part in a comparison whose outcome is known; in the worker, after what came before."""
    with suppress(StateError):
        agree(group, device, facts)
    return torch.empty(0)


def _exchange_between(exchange: Any, between: Any, compare: Callable[[Any], None]) -> torch.Tensor:
    compare(between)
    exchange.start(between)
    result: torch.Tensor = exchange.finish(between)
    return result


def _guarded(memory: Memory, job: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Run a job; a step in which one failed is undone."""
    try:
        return job()
    except BaseException:
        memory.spoiled = True
        raise


def _check_gradient(buffer: torch.Tensor) -> None:
    if buffer.layout != torch.strided or buffer.dtype not in DTYPES:
        kind = "sparse" if buffer.layout != torch.strided else str(buffer.dtype)
        raise InputError(
            f"compression_hook takes dense float32, float16 or bfloat16 gradients, not {kind} "
            "ones: convert the parameters, or keep them out of this DDP model"
        )
