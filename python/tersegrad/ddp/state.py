"""What `compression_hook` keeps between steps, and what it does with a bucket."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from .. import Codec, Identity
from ..errors import InputError, StateError
from . import checkpoint
from .coding import Coder, Task
from .exchange import EXCHANGES, dense_received_bytes
from .groups import GroupOrPair, Groups, agree
from .hierarchy import start_inside, through_leader
from .layout import DTYPES, Form, Layout
from .memory import Entry, Memory, norm_of
from .momentum import MomentumCorrection
from .rules import RuleBook, Rules, Warmup, check_warmup, with_density
from .scratch import Scratch
from .telemetry import Counters, Reporter
from .worker import Worker

#: The two-step exchange is chosen where it spares a rank so many bytes a step; see docs/ddp.md.
TWO_STEP_SPARES_BYTES = 2**20


class CompressionState:
    """What `compression_hook` keeps between steps. One per DDP model.

    Parameters
    ----------
    codec : Codec
        For parameters of two or more dimensions and at least `min_size` entries. The others
        travel dense in the same message.
    model : Module, optional
        The DDP model or the module in it: its names are those of `rules` and `state_dict`. Or
        `bind` it later.
    process_group : ProcessGroup or (ProcessGroup, ProcessGroup), optional
        By default the group of `model` if that is a DDP model, else the default group. A pair
        ``(inside, between)`` is for nodes of equal size: dense inside the node; rank 0 of `inside`
        exchanges compressed messages in `between`, which the other ranks need not be in.
    exchange : {"auto", "all_gather", "two_step", "noop"}
        ``"all_gather"`` brings every message to every rank: (W - 1) B bytes for W ranks and a
        message of B. ``"two_step"`` brings about 2 B (W - 1) / W: each rank adds up a W-th of the
        model and sends the mean on, compressed again, with a second residual. ``"auto"`` takes
        two_step where that spares a rank 1 MiB a step, so never for two ranks. ``"noop"`` sends
        nothing and gives each rank its own gradient: the speed of a free network. Replicas then
        diverge; use it to measure and for nothing else.
    rules : dict, sequence of Rule, or function, optional
        Codecs by parameter: ``{"*.bias": Identity(), "embed*": TopK(0.001)}``, or ``[Rule(...)]``,
        or a function of name and parameter. The first that fits decides, whatever the size;
        where none does (the function returns None), `codec` and `min_size` do.
    min_size : int
        Fewest entries of a parameter that is compressed by `codec`.
    warmup : Warmup, optional
        Denser first steps.
    warmup_steps : int
        So many first steps use a plain all-reduce: ``Warmup(warmup_steps, densities=(1.0,))``.
    momentum : MomentumCorrection, optional
        Momentum before compression; for an optimizer without momentum.
    scaler : torch.amp.GradScaler, optional
        Or any object with ``get_scale()``. What is remembered follows the loss scale.
    error_feedback : bool
        Keep what a payload leaves out, in float32 per parameter, and add it to the next gradient.
    rollback : bool
        Undo what a step did to residuals when any gradient of any rank was not finite. Without it
        a copy of the residuals is saved, and such a step loses what it sent.
    scratch_bytes : int, optional
        How much memory for messages is kept from step to step. Beyond it, memory is made for each
        bucket and freed after it.
    log_every : int
        Log a line, and write scalars, every so many steps; 0 is never. Rank 0 does, through the
        logger ``"tersegrad.ddp"``.
    writer : optional
        A TensorBoard SummaryWriter, or any object with ``add_scalar(tag, value, step)``.

    Notes
    -----
    A parameter whose gradient is all zeros (unused, or on a rank that has joined early) sends
    nothing and keeps its residual. A gradient with a NaN or an infinity makes the average of that
    parameter NaN on every rank, which GradScaler and clipping see.
    """

    def __init__(
        self,
        codec: Codec,
        model: torch.nn.Module | None = None,
        *,
        process_group: GroupOrPair = None,
        exchange: Literal["auto", "all_gather", "two_step", "noop"] = "auto",
        rules: Rules | None = None,
        min_size: int = 1024,
        warmup: Warmup | None = None,
        warmup_steps: int = 0,
        momentum: MomentumCorrection | None = None,
        scaler: Any = None,
        error_feedback: bool = True,
        rollback: bool = True,
        scratch_bytes: int | None = None,
        log_every: int = 0,
        writer: Any = None,
    ) -> None:
        if exchange not in ("auto", "all_gather", "two_step", "noop"):
            raise StateError(
                f"exchange must be auto, all_gather, two_step or noop, not {exchange!r}"
            )
        if isinstance(process_group, tuple) and len(process_group) != 2:
            raise StateError("process_group is a group, or a pair (inside, between)")
        if type(warmup_steps) is not int or warmup_steps < 0 or (warmup and warmup_steps):
            raise StateError(
                f"warmup_steps must be an integer from 0, and 0 beside a warmup, not {warmup_steps!r}"
            )
        if momentum is not None and not (error_feedback and rollback):
            raise StateError("momentum correction needs error_feedback=True and rollback=True")
        if scaler is not None and not hasattr(scaler, "get_scale"):
            raise StateError(f"scaler must have get_scale(), as GradScaler does, not {scaler!r}")
        if type(log_every) is not int or log_every < 0 or (writer is not None and not log_every):
            raise StateError(
                f"log_every must be an integer from 0, and above 0 with a writer, not {log_every!r}"
            )
        self._book = RuleBook(codec, rules, min_size)
        self.codec = codec
        self.process_group = process_group
        self.exchange = exchange
        self.warmup = check_warmup(warmup or Warmup(warmup_steps, (1.0,)), self._book)
        self.momentum = momentum
        self.scaler = scaler
        self.error_feedback = error_feedback
        self.step = 0
        self.skipped = 0
        self._lost: tuple[str, ...] = ()  # what a copy has not
        self._whole_group: dist.ProcessGroup | None = None
        self._memory = Memory(rollback)
        self._scratch = Scratch(scratch_bytes)
        self._coder = Coder(self._memory, self._scratch, momentum, error_feedback)
        self._reporter = Reporter(log_every, writer)
        self._worker = Worker()
        self._forget_layouts()
        self._counters = Counters()
        if model is not None:
            self.bind(model)

    def bind(self, model: torch.nn.Module) -> CompressionState:
        """Name the parameters as `model` does (the DDP model or the module in it); drop others."""
        if isinstance(model, DistributedDataParallel):
            own = model.process_group
            self._whole_group = None if own is dist.group.WORLD else own
            if self.process_group is None:
                self.process_group = self._whole_group
        self._memory.bind(model)
        self._forget_layouts()
        return self

    def _forget_layouts(self) -> None:
        self._layouts: dict[int, Layout] = {}
        self._agreed: set[int] = set()
        self._forms: dict[float, Form] = {}
        self._groups_for: tuple[GroupOrPair, Groups] | None = None

    # --- One bucket. ---

    def _reduce(self, bucket: Any) -> torch.futures.Future[torch.Tensor]:
        buffer = bucket.buffer()
        _check_gradient(buffer)
        if bucket.index() == 0:
            self._begin_step()
        groups, step = self._groups(), self.step
        layout = self._layout(bucket, groups)
        layout.counters.add(
            dense_bytes=layout.dense_bytes,
            dense_received_bytes=dense_received_bytes(layout),
        )
        future = self._travel(Task(layout, buffer, step), groups)
        if bucket.is_last():
            self.step += 1
            self._counters.add(steps=1)
            for index in [index for index in self._layouts if index > bucket.index()]:
                self._drop_layout(index)  # DDP has rebuilt into fewer buckets
        return future

    def _travel(self, task: Task, groups: Groups) -> torch.futures.Future[torch.Tensor]:
        """Issue the first collective, and leave the rest to the worker.

        Its job holds the task and what it needs, and not this object.
        """
        layout, buffer = task.layout, task.buffer
        if layout.form == "noop":
            return self._worker.run(lambda: buffer, buffer.device)
        exchange = EXCHANGES[layout.form](self._coder, task)
        memory, new = self._memory, layout.index not in self._agreed
        self._agreed.add(layout.index)
        compare = partial(agree, device=buffer.device, facts=self._facts(layout), who=repr(self))
        if not groups.nodes:
            if new:
                layout.counters.add(sent_bytes=compare(groups.hook))
            exchange.start(groups.hook)
            later = groups.copy("hook") if layout.form == "two_step" else None
            return self._worker.run(
                partial(_guarded, memory, partial(exchange.finish, later)), buffer.device
            )
        inside = groups.copy("hook")
        leads = None
        if groups.exchange is not None:
            between = groups.copy("exchange")

            def leads() -> torch.Tensor:
                if new:
                    layout.counters.add(sent_bytes=compare(between))
                exchange.start(between)
                result: torch.Tensor = exchange.finish(between)
                return result

        work = start_inside(buffer, groups)
        job = partial(through_leader, buffer, work, inside, leads, memory)
        return self._worker.run(partial(_guarded, memory, job), buffer.device)

    def _begin_step(self) -> None:
        self.settle()
        if "scaler" in self._lost and self.scaler is None:
            raise StateError("a copied state has no scaler: set state.scaler")
        if self.scaler is not None:
            scale = float(self.scaler.get_scale())
            if not (scale > 0 and math.isfinite(scale)):
                raise StateError(f"the loss scale must be above 0 and finite, not {scale}")
            if scale != self._coder.scale:
                self._memory.rescale(scale / self._coder.scale)
                self._coder.scale = scale
        if self._is_rank_0():
            if self._reporter.due(self.step):
                self._reporter.report(self.step, self.stats())
            self._reporter.warn_of_lost_time(self._counters.read())

    def settle(self) -> None:
        """Undo the last step if any gradient of any rank was not finite in it.

        Called by itself before the next step begins and before anything is read or saved.
        """
        if self._memory.settle():
            self.skipped += 1

    def _layout(self, bucket: Any, groups: Groups) -> Layout:
        """The plan of a bucket, made anew when DDP has rebuilt its buckets or a phase ends."""
        index, buffer, parameters = bucket.index(), bucket.buffer(), bucket.parameters()
        rank, world_size = groups.place()
        density = self.warmup.density(self.step)
        form = self._form(density, world_size, buffer.dtype, parameters)
        place = (buffer.dtype, buffer.device, buffer.numel(), rank, world_size, form, density)
        key = (*place, *map(id, parameters))
        layout = self._layouts.get(index)
        if layout is None or layout.key != key:
            self._drop_layout(index)  # first: the fused bucket of step 0 is a whole model
            layout = Layout(
                key,
                index,
                buffer,
                parameters,
                partial(self._codec_of, density=density),
                self._memory,
                form,
                rank,
                world_size,
                self._counters,
            )
            layout.fold_seconds()
            self._layouts[index] = layout
        return layout

    def _drop_layout(self, index: int) -> None:
        self._layouts.pop(index, None)
        self._agreed.discard(index)
        self._scratch.drop(index)

    def _codec_of(self, entry: Entry, density: float = 0.0) -> Codec:
        return with_density(self._book.codec_of(entry.name, entry.parameter), density)

    def _form(
        self,
        density: float,
        world_size: int,
        dtype: torch.dtype = torch.float32,
        parameters: Any = (),
    ) -> Form:
        """How buckets travel at a density. One answer for the whole model: what a bucket holds
        must not decide, or a rebuilt bucket would change bits.
        """
        if self.exchange == "noop":
            return "noop"
        if density == 1.0:
            return "dense"
        if self.exchange != "auto":
            return self.exchange
        form = self._forms.get(density)
        if form is None:
            for parameter in parameters:
                self._memory.of(parameter)
            entries = [entry for entry in self._memory if entry.parameter.requires_grad]
            body = sum(
                self._codec_of(entry, density).body_size(entry.parameter.numel(), DTYPES[dtype])
                for entry in entries
            )
            spared = body * (world_size - 1) * (world_size - 2) // world_size
            form = "two_step" if spared >= TWO_STEP_SPARES_BYTES else "all_gather"
            self._forms[density] = form
        return form

    def _facts(self, layout: Layout) -> dict[str, Any]:
        """What all ranks must have in common."""
        groups = self._groups()
        return {
            "codec": self.codec.to_dict(),
            "options": self._options(),
            "size of a node": groups.inside_size,
            "layout of a bucket": layout.checksum,
            "step": self.step,
        }

    def _options(self) -> str:
        return (
            f"exchange={self.exchange!r}, rules={self._book!r}, warmup={self.warmup!r}, "
            f"momentum={self.momentum!r}, error_feedback={self.error_feedback}, "
            f"rollback={self._memory.rollback}"
        )

    def _groups(self) -> Groups:
        given = self.process_group
        if given is None and "process_group" in self._lost:
            raise StateError("a copied state has no process group: set state.process_group")
        key = dist.group.WORLD if given is None else given
        if self._groups_for is None or self._groups_for[0] is not key:
            self._forget_layouts()
            self._groups_for = (key, Groups.of(given))
        return self._groups_for[1]

    # --- What is remembered. ---

    def rescale(self, factor: float) -> None:
        """Multiply all that is remembered; by new / old scale when a loss scale changes.

        With ``scaler=`` the state does so by itself.
        """
        if not (isinstance(factor, (int, float)) and math.isfinite(factor)):
            raise InputError(f"factor must be a finite number, not {factor!r}")
        self.settle()
        self._memory.rescale(factor)

    def reset(self) -> None:
        """Forget every residual and velocity."""
        self.settle()
        self._memory.reset()

    def norm(self) -> float:
        """The Euclidean norm of all residuals of this rank."""
        self.settle()
        return norm_of(list(self._memory))

    def state_dict(self) -> dict[str, Any]:
        """What this rank remembers, by parameter name. Every rank saves its own.

        Returns
        -------
        dict
            Plain ints, floats, dicts, and copies of float32 tensors in the parameters' shapes: in
            ``["ranks"][str(rank)]`` the `residuals` and, where there are any, `velocities` and
            `seconds` (1-D, of what this rank owns). It loads with ``torch.load(weights_only=True)``.
            Since keys differ by rank, ``torch.distributed.checkpoint`` saves it whole too.
        """
        self.settle()
        return checkpoint.save(self)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue, to the bit, from the `state_dict()` of the same rank.

        A dict that `merge_states` made of all ranks serves any number of ranks, see there.

        Raises
        ------
        StateError
            The state is of another rank or number of ranks, or of other parameters or shapes.
            Nothing has changed then.
        """
        self.settle()
        checkpoint.load(self, state_dict)

    def _keeps_residual(self, entry: Entry) -> bool:
        if not (self.error_feedback and entry.parameter.requires_grad and self._remembers()):
            return False
        return not isinstance(self._codec_of(entry), Identity)

    def _keeps_velocity(self, entry: Entry) -> bool:
        return self.momentum is not None and entry.parameter.requires_grad and self._remembers()

    def _remembers(self) -> bool:
        """Only the leader of a node has a residual."""
        return not dist.is_initialized() or self._groups().exchange is not None

    def _has_seconds(self) -> bool:
        """Whether any phase takes two steps."""
        if not dist.is_initialized() or not self.error_feedback or not self._remembers():
            return False
        world_size = self._groups().place()[1]
        dtype = next((entry.parameter.dtype for entry in self._memory), torch.float32)
        densities = {*self.warmup.densities, 0.0} if self.warmup.steps else {0.0}
        return any(self._form(density, world_size, dtype) == "two_step" for density in densities)

    def _is_rank_0(self) -> bool:
        return checkpoint.place_of(self)[0] == 0

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy, which DDP models hand on to their hook's state.

        Groups, a scaler and a writer stay behind; the copy asks for the first two when it needs
        them.
        """
        self.settle()
        given, default = self.process_group, dist.group.WORLD if dist.is_initialized() else None
        lost = set(self._lost)
        if given is not None and given is not default:
            lost.add("process_group")
        if self.scaler is not None:
            lost.add("scaler")
        kept = {**self.__dict__, "process_group": None, "scaler": None, "_lost": tuple(lost)}
        kept["_whole_group"] = None
        kept["_reporter"] = Reporter(
            self._reporter.log_every if self._reporter.writer is None else 0, None
        )
        for transient in ("_layouts", "_agreed", "_forms", "_groups_for", "_counters"):
            del kept[transient]
        return kept

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept, _counters=Counters())
        self._forget_layouts()

    # --- Telemetry. ---

    def stats(self) -> dict[str, Any]:
        """What this rank has sent since `reset_stats`, and what that took.

        Returns
        -------
        dict
            `steps`; `sent_bytes` (handed to collectives: messages with their heads, and what the
            ranks compare at a new layout; not what stays inside a node), `received_bytes` (from
            other ranks), `dense_bytes` (the gradients), `ratio` of dense to sent,
            `sent_bytes_per_step`; `skipped_steps` (undone since training began, as on every rank)
            and `nonfinite` (parameters whose average became NaN); `compress_seconds`,
            `wait_seconds` for collectives and `decode_seconds`, which overlap the backward pass;
            `residual_norm`; `time_lost` in seconds per step, an estimate (`telemetry.time_lost`);
            `scratch_bytes`; and `buckets`, a list with most of these for each present bucket.
        """
        self.settle()
        stats: dict[str, Any] = self._counters.summary()
        steps = stats["steps"]
        stats["sent_bytes_per_step"] = stats["sent_bytes"] / steps if steps else 0.0
        stats["skipped_steps"] = self.skipped
        stats["residual_norm"] = self.norm()
        stats["scratch_bytes"] = self._scratch.kept_bytes
        stats["buckets"] = [
            {
                "index": index,
                "exchange": layout.form,
                "entries": sum(slot.entry.parameter.numel() for slot in layout.slots),
                **layout.counters.summary(),
                "residual_norm": norm_of([slot.entry for slot in layout.slots]),
                "skipped_steps": self.skipped,
            }
            for index, layout in sorted(self._layouts.items())
        ]
        return stats

    def reset_stats(self) -> None:
        """Start the counters again; `step` and `skipped`, which checkpoints hold, go on."""
        self._counters.reset()
        for layout in self._layouts.values():
            layout.counters.reset()

    def __repr__(self) -> str:
        return f"CompressionState({self.codec!r}, {self._options()}, step={self.step})"


def _guarded(memory: Memory, job: Any) -> torch.Tensor:
    """Run a job; a step in which one failed is undone."""
    try:
        result: torch.Tensor = job()
    except BaseException:
        memory.spoiled = True
        raise
    return result


def _check_gradient(buffer: torch.Tensor) -> None:
    if buffer.layout != torch.strided or buffer.dtype not in DTYPES:
        kind = "sparse" if buffer.layout != torch.strided else str(buffer.dtype)
        raise InputError(
            f"compression_hook takes dense float32, float16 or bfloat16 gradients, not {kind} "
            "ones: convert the parameters, or keep them out of this DDP model"
        )
