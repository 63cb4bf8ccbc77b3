"""What `compression_hook` keeps between steps, and what it does with a bucket."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from .. import Codec, Identity
from ..errors import InputError, StateError
from . import checkpoint
from .coding import Coder
from .groups import GroupOrPair, Groups
from .ledger import NONFINITE, SKIPPED
from .memory import Entry, Memory, named_in, norm_of
from .momentum import MomentumCorrection
from .reducer import Exchange, Reducer
from .rules import RuleBook, Rules, Warmup, check_warmup
from .scratch import Scratch
from .telemetry import Counters, Reporter


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
        where none does (the function returns None), `codec` and `min_size` do. A rule that decides
        for no parameter of `model` is a `StateError`.
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
        exchange: Exchange = "auto",
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
        self.exchange: Exchange = exchange
        self.warmup = check_warmup(warmup or Warmup(warmup_steps, (1.0,)), self._book)
        self.momentum = momentum
        self.scaler = scaler
        self.error_feedback = error_feedback
        self.step = 0
        self._skipped = 0  # as far as the host knows
        self._lost: tuple[str, ...] = ()  # what a copy has not
        self._whole_group: dist.ProcessGroup | None = None
        self._memory = Memory(rollback)
        self._scratch = Scratch(scratch_bytes)
        self._coder = Coder(self._memory, self._scratch, momentum, error_feedback)
        self._reporter = Reporter(log_every, writer)
        self._counters = Counters()
        self._start()
        if model is not None:
            self.bind(model)

    def _start(self) -> None:
        """The part that neither a copy nor a checkpoint takes over."""
        self._reducer = Reducer(self._coder, self._book, self.warmup, self.exchange, self._counters)

    def bind(self, model: torch.nn.Module) -> CompressionState:
        """Name the parameters as `model` does (the DDP model or the module in it); drop others.

        `StateError` for a rule that decides for none of them.
        """
        self._book.check_used(named_in(model))
        if isinstance(model, DistributedDataParallel):
            own = model.process_group
            self._whole_group = None if own is dist.group.WORLD else own
            if self.process_group is None:
                self.process_group = self._whole_group
        self._memory.bind(model)
        self._start()
        return self

    # --- Steps. ---

    def _reduce(self, bucket: Any) -> torch.futures.Future[torch.Tensor]:
        if bucket.index() == 0:
            self._begin_step()
        future = self._reducer.reduce(bucket, self.step, self._group())
        self.step += bucket.is_last()
        return future

    def _begin_step(self) -> None:
        self._close_step()
        if self._memory.ledger is not None:
            self._memory.ledger.poll()
        if "scaler" in self._lost and self.scaler is None:
            raise StateError("a copied state has no scaler: set state.scaler")
        scale = 1.0 if self.scaler is None else float(self.scaler.get_scale())
        if not (scale > 0 and math.isfinite(scale)):
            raise StateError(f"the loss scale must be above 0 and finite, not {scale}")
        if scale != self._coder.scale:
            self._memory.rescale(scale / self._coder.scale)
            self._coder.scale = scale
        if checkpoint.place_of(self)[0] == 0:
            if self._reporter.due(self.step):
                self._reporter.report(self.step, self.stats())
            self._reporter.warn_of_lost_time(self._counters.read())

    def settle(self) -> None:
        """Undo the last step if any gradient of any rank was not finite in it.

        Called by itself before the next step begins and before anything is read or saved. Where gradients lie on a device, the first
        of these leaves the decision to the device; the others wait for it, and raise `StateError` if a rank's message did not fit.
        """
        self._close_step()
        if self._memory.ledger is not None:
            self._memory.ledger.check()

    def _close_step(self) -> None:
        self._skipped += self._memory.settle()

    @property
    def skipped(self) -> int:
        """Steps undone since training began."""
        ledger = self._memory.ledger
        return self._skipped + (0 if ledger is None else ledger.read(SKIPPED))

    @skipped.setter
    def skipped(self, steps: int) -> None:
        self._skipped += steps - self.skipped

    def _group(self) -> GroupOrPair:
        if self.process_group is None and "process_group" in self._lost:
            raise StateError("a copied state has no process group: set state.process_group")
        return self.process_group

    def _groups(self) -> Groups:
        return self._reducer.groups(self._group())

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
        return not isinstance(self._reducer.codec_of(entry), Identity)

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
        densities = {*self.warmup.densities, 0.0} if self.warmup.steps else {0.0}
        return any(self._reducer.form(density, world_size) == "two_step" for density in densities)

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
        kept["_skipped"] = self.skipped
        kept["_reporter"] = Reporter(
            self._reporter.log_every if self._reporter.writer is None else 0, None
        )
        del kept["_counters"], kept["_reducer"]
        return kept

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept, _counters=Counters())
        self._start()

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
        if self._memory.ledger is not None:
            stats["nonfinite"] += self._memory.ledger.read(NONFINITE)
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
            for index, layout in sorted(self._reducer.layouts.items())
        ]
        return stats

    def reset_stats(self) -> None:
        """Start the counters again; `step` and `skipped`, which checkpoints hold, go on."""
        self._counters.reset()
        if self._memory.ledger is not None:
            self._memory.ledger.reset(NONFINITE)
        for layout in self._reducer.layouts.values():
            layout.counters.reset()

    def __repr__(self) -> str:
        return f"CompressionState({self.codec!r}, {self._reducer.options()}, step={self.step})"
