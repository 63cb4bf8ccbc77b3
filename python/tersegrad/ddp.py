"""A communication hook for PyTorch DDP: gradients travel as tersegrad payloads.

    model = DistributedDataParallel(net)
    state = CompressionState(TopK(density=0.01, values=Quantize(bits=4)), model)
    model.register_comm_hook(state, compression_hook)

Each rank turns a bucket into one message of a size known beforehand (`ddp_message.py`), one
all-gather moves the messages, and every rank decodes all of them in rank order.
"""

# No `from __future__ import annotations`: DDP compares a hook's annotations with the objects.

import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from . import Codec, Identity
from .codec import check_fixed_size, encode_into
from .ddp_message import (
    ABSENT,
    DTYPES,
    HEAD,
    NON_FINITE,
    BucketMessage,
    Segment,
    layout_checksum,
    own_noise,
)
from .ddp_residuals import Residuals
from .errors import InputError, StateError

__all__ = ["CompressionState", "average_states", "compression_hook"]

STATE_KEYS = {"version", "step", "skipped", "rank", "world_size", "residuals"}
STATE_VERSION = 1
COUNTED = (
    *("steps", "buckets", "sent_bytes", "dense_bytes", "nonfinite"),
    *("compress_seconds", "decompress_seconds"),
)
ANY_RANK = -1


def compression_hook(
    state: object,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[torch.Tensor]:
    """Average one bucket of gradients over the ranks, compressed.

    Register it with ``model.register_comm_hook(CompressionState(codec, model), compression_hook)``.

    Raises
    ------
    StateError
        `state` is no CompressionState, the ranks disagree, or torch.compile's python reducer calls.
    InputError
        The gradients are sparse, or neither float32, float16 nor bfloat16.
    """
    if not isinstance(state, CompressionState):
        raise StateError(
            f"compression_hook needs a CompressionState, not {type(state).__name__}: "
            "model.register_comm_hook(CompressionState(codec, model), compression_hook)"
        )
    if isinstance(bucket, tuple):
        raise StateError(
            "torch.compile's python_reducer hands over single gradients, not buckets; set "
            'torch._dynamo.config.optimize_ddp = "ddp_optimizer" (the default)'
        )
    return state._reduce(bucket)


class CompressionState:
    """What `compression_hook` keeps between steps. One per DDP model.

    Parameters
    ----------
    codec : Codec
        For parameters of two or more dimensions and at least `min_size` entries. The others
        travel dense in the same message.
    model : Module, optional
        The DDP model or the module in it: its names are those of `state_dict`. Or `bind` it later.
    process_group : ProcessGroup, optional
        By default the group of `model` if that is a DDP model, else the default group.
    warmup_steps : int
        So many first steps use a plain all-reduce.
    min_size : int
        Fewest entries of a parameter that is compressed.
    error_feedback : bool
        Keep what a payload leaves out, in float32 per parameter, and add it to the next gradient.

    Notes
    -----
    A parameter whose gradient is all zeros (unused, or on a rank that has joined early) sends
    nothing and keeps its residual. A gradient with a NaN or an infinity makes the average of that
    parameter NaN on every rank, which GradScaler and clipping see; its residual stays as it was.

    An all-gather brings every message to every rank. Of two ranks each sends its message once, as
    it would its gradient; of W ranks each receives W - 1 messages, so the traffic grows with W.
    """

    def __init__(
        self,
        codec: Codec,
        model: torch.nn.Module | None = None,
        *,
        process_group: dist.ProcessGroup | None = None,
        warmup_steps: int = 0,
        min_size: int = 1024,
        error_feedback: bool = True,
    ) -> None:
        if not isinstance(codec, Codec):
            raise StateError(f"codec must be a codec such as TopK(density=0.01), not {codec!r}")
        check_fixed_size(codec)
        if warmup_steps < 0 or min_size < 0:
            raise StateError(
                f"warmup_steps and min_size must be 0 or more: {warmup_steps}, {min_size}"
            )
        self.codec = codec
        self.process_group = process_group
        self.warmup_steps = warmup_steps
        self.min_size = min_size
        self.error_feedback = error_feedback
        self.step = 0
        self.skipped = 0
        self._agreed = False
        self._lost_group = False
        self._residuals = Residuals()
        self._messages: dict[int, BucketMessage] = {}
        self._counters = Counters()
        if model is not None:
            self.bind(model)

    def bind(self, model: torch.nn.Module) -> "CompressionState":
        """Name the parameters as `model` does (the DDP model or the module in it); drop others."""
        if self.process_group is None and isinstance(model, DistributedDataParallel):
            self.process_group = model.process_group
        self._residuals.bind(model)
        return self

    # --- One bucket. ---

    def _reduce(self, bucket: Any) -> torch.futures.Future[torch.Tensor]:
        buffer, step, group = bucket.buffer(), self.step, self._group()
        _check_gradient(buffer)
        if step < self.warmup_steps:
            if not self._agreed:
                self._agree(group, buffer.device, layout=0)
            future = self._all_reduce(buffer, group)
        else:
            message = self._message(bucket, group)
            begin = time.perf_counter()
            failure = self._encode(message, buffer, step)
            self._counters.add(compress_seconds=time.perf_counter() - begin)
            future = self._all_gather(message, buffer, step, failure, group)
        self._counters.add(dense_bytes=buffer.numel() * buffer.element_size(), buckets=1)
        if bucket.is_last():
            self.step += 1
            self._counters.add(steps=1)
            for index in [index for index in self._messages if index > bucket.index()]:
                del self._messages[index]  # DDP has rebuilt into fewer buckets
        return future

    def _all_reduce(
        self, buffer: torch.Tensor, group: dist.ProcessGroup
    ) -> torch.futures.Future[torch.Tensor]:
        buffer.div_(dist.get_world_size(group))
        self._counters.add(sent_bytes=buffer.numel() * buffer.element_size())
        done = dist.all_reduce(buffer, group=group, async_op=True).get_future()
        future: torch.futures.Future[torch.Tensor] = done.then(lambda f: f.value()[0])
        return future

    def _all_gather(
        self,
        message: BucketMessage,
        buffer: torch.Tensor,
        step: int,
        failure: str | None,
        group: dist.ProcessGroup,
    ) -> torch.futures.Future[torch.Tensor]:
        """The one collective of a bucket.

        What is chained to it only decodes: a second collective from there would race with those
        of other buckets, which gloo answers with an abort.
        """

        counters = self._counters  # not self: see Counters

        def decode(done: torch.futures.Future[Any]) -> torch.Tensor:
            done.value()  # raises what the collective raised
            begin = time.perf_counter()
            lost = message.decode_mean(buffer, step, failure)
            counters.add(decompress_seconds=time.perf_counter() - begin, nonfinite=lost)
            return buffer

        self._counters.add(sent_bytes=message.own.numel())
        work = _all_gather()(message.gathered, message.own, group=group, async_op=True)
        future: torch.futures.Future[torch.Tensor] = work.get_future().then(decode)
        return future

    def _encode(self, message: BucketMessage, buffer: torch.Tensor, step: int) -> str | None:
        """Write this rank's message.

        A failure travels in its head, so that every rank raises instead of waiting for this one.
        """
        presence = bytearray(len(message.segments))
        failure = None
        try:
            for index, segment in enumerate(message.segments):
                values = buffer[segment.entries]
                residual = self._residual(segment)
                if residual is not None and _is_zero(values):
                    presence[index] = ABSENT
                elif not encode_into(
                    values,
                    segment.encoder,
                    message.own[segment.body],
                    residual=residual,
                    step=step % 2**32,
                ):
                    presence[index] = NON_FINITE
                    self.skipped += 1
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        message.write_head(step, bytes(presence), failure is not None)
        return failure

    def _message(self, bucket: Any, group: dist.ProcessGroup) -> BucketMessage:
        """Layout and scratch of a bucket, made anew when DDP has rebuilt its buckets."""
        index, buffer, parameters = bucket.index(), bucket.buffer(), bucket.parameters()
        rank, world_size = dist.get_rank(group), dist.get_world_size(group)
        ids = map(id, parameters)
        key = (buffer.dtype, buffer.device, buffer.numel(), rank, world_size, *ids)
        message = self._messages.get(index)
        if message is None or message.key != key:
            self._messages.pop(index, None)  # first: the fused bucket of step 0 is a whole model
            segments = self._segments(buffer, parameters, rank)
            self._agree(group, buffer.device, layout_checksum(segments, buffer))
            message = self._messages[index] = BucketMessage(key, segments, buffer, world_size)
        return message

    def _segments(
        self, buffer: torch.Tensor, parameters: Sequence[torch.Tensor], rank: int
    ) -> list[Segment]:
        entry, byte = 0, HEAD.size + len(parameters)
        segments = []
        for parameter in parameters:
            n = parameter.numel()
            dense = not self._compresses(parameter)
            codec = Identity() if dense else self.codec
            size = codec.body_size(n, DTYPES[buffer.dtype])
            places = slice(entry, entry + n), slice(byte, byte + size)
            segments.append(Segment(parameter, codec, own_noise(codec, rank), dense, *places))
            entry, byte = entry + n, byte + size
        if entry != buffer.numel():
            raise StateError(f"a bucket of {buffer.numel()} entries for {entry} parameter entries")
        return segments

    def _agree(self, group: dist.ProcessGroup, device: torch.device, layout: int) -> None:
        """Compare the ranks, once for each new layout.

        Messages of different sizes make gloo abort the process, so this comes before the first one.
        """
        options = repr((self.min_size, self.warmup_steps, self.error_feedback))
        codec = repr(self.codec.to_dict())
        mine = [zlib.crc32(codec.encode()), zlib.crc32(options.encode()), layout, self.step]
        own = torch.tensor(mine, dtype=torch.int64, device=device)
        gathered = own.new_empty(dist.get_world_size(group) * len(mine))
        self._counters.add(sent_bytes=own.numel() * own.element_size())
        _all_gather()(gathered, own, group=group)
        rows = gathered.view(-1, len(mine)).tolist()
        subjects = (
            "codec",
            "min_size, warmup_steps or error_feedback",
            "layout of a bucket",
            "step",
        )
        for subject, column in zip(subjects, zip(*rows, strict=True), strict=True):
            others = [rank for rank, value in enumerate(column) if value != column[0]]
            if others:
                raise StateError(
                    f"the ranks disagree about the {subject}: rank 0 has another than ranks "
                    f"{others}. Give every rank the same CompressionState and the checkpoint of "
                    f"the same step; this rank has {self!r}"
                )
        self._agreed = True

    def _compresses(self, parameter: torch.Tensor) -> bool:
        return parameter.dim() >= 2 and parameter.numel() >= max(1, self.min_size)

    def _residual(self, segment: Segment) -> torch.Tensor | None:
        if segment.dense or not self.error_feedback:
            return None
        return self._residuals.of(segment.parameter)

    def _group(self) -> dist.ProcessGroup:
        group = self.process_group
        if group is None and self._lost_group:
            raise StateError("a copied state has no process group: set state.process_group")
        group = group or dist.group.WORLD
        if group is None:
            raise StateError("no process group: call torch.distributed.init_process_group first")
        return group

    # --- Residuals and checkpoints. ---

    def rescale(self, factor: float) -> None:
        """Multiply every residual; with new / old scale when a loss scale changes."""
        self._residuals.rescale(factor)

    def reset(self) -> None:
        """Forget every residual."""
        self._residuals.reset()

    def norm(self) -> float:
        """The Euclidean norm of all residuals of this rank."""
        return self._residuals.norm()

    def state_dict(self) -> dict[str, Any]:
        """The residuals of this rank by parameter name, and the step. Every rank saves its own.

        Returns
        -------
        dict
            Ints, and in "residuals" copies as float32 tensors of the parameters' shapes. It loads
            with ``torch.load(weights_only=True)``.
        """
        rank, world_size = self._place()
        return {
            "version": STATE_VERSION,
            "step": self.step,
            "skipped": self.skipped,
            "rank": rank,
            "world_size": world_size,
            "residuals": self._residuals.save(self._keeps_residual),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue, to the bit, from the `state_dict()` of the same rank.

        Raises
        ------
        StateError
            The state is of another rank or number of ranks (`average_states` helps), or of other
            parameters or shapes. Nothing has changed then.
        """
        lacking = sorted(STATE_KEYS - set(state_dict))
        if lacking or state_dict["version"] != STATE_VERSION:
            raise StateError(f"not a CompressionState of version {STATE_VERSION}: lacks {lacking}")
        place = (state_dict["rank"], state_dict["world_size"])
        if dist.is_initialized() and place not in (self._place(), (ANY_RANK, ANY_RANK)):
            raise StateError(
                f"the state of rank {place[0]} of {place[1]}, loaded by rank {self._place()[0]} "
                f"of {self._place()[1]}: every rank loads the state it saved; for another number "
                "of ranks load tersegrad.ddp.average_states([...])"
            )
        self._residuals.load(state_dict["residuals"], self._keeps_residual)
        self.step, self.skipped = int(state_dict["step"]), int(state_dict["skipped"])

    def _keeps_residual(self, parameter: torch.Tensor) -> bool:
        trained = parameter.requires_grad and self._compresses(parameter)
        return trained and self.error_feedback

    def _place(self) -> tuple[int, int]:
        if not dist.is_initialized():
            return 0, 1
        return dist.get_rank(self._group()), dist.get_world_size(self._group())

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy, which DDP models hand on to their hook's state."""
        kept = {**self.__dict__, "process_group": None}
        for transient in ("_messages", "_counters", "_agreed"):
            del kept[transient]
        default = dist.group.WORLD if dist.is_initialized() else None
        if self.process_group not in (None, default):
            kept["_lost_group"] = True
        return kept

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept, _messages={}, _counters=Counters(), _agreed=False)

    # --- Counters. ---

    def stats(self) -> dict[str, float]:
        """What this rank has handed to collectives since `reset_stats`, and what that took.

        Returns
        -------
        dict
            `steps` and `buckets`; `sent_bytes` (messages with their heads, and what the ranks
            compare at a new layout), `dense_bytes` (the gradients), their `ratio`, and
            `sent_bytes_per_step`; `skipped` (parameters whose gradient on this rank was not
            finite), `nonfinite` (parameters whose average became NaN); `compress_seconds`,
            `decompress_seconds` of host time, which may overlap the backward pass.
        """
        counters = self._counters.read()
        sent, steps = counters["sent_bytes"], counters["steps"]
        counters["ratio"] = counters["dense_bytes"] / sent if sent else 1.0
        counters["sent_bytes_per_step"] = sent / steps if steps else 0.0
        counters["skipped"] = self.skipped
        return counters

    def reset_stats(self) -> None:
        """Start the counters again; `step` and `skipped`, which checkpoints hold, go on."""
        self._counters = Counters()

    def __repr__(self) -> str:
        return (
            f"CompressionState({self.codec!r}, warmup_steps={self.warmup_steps}, "
            f"min_size={self.min_size}, error_feedback={self.error_feedback}, step={self.step})"
        )


class Counters:
    """Sums that the threads of a process group may add to.

    Their callbacks hold this rather than the state, because a state holds the process group: the
    last reference to a group must not be dropped by a thread of its own, which would join itself.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[str, float] = dict.fromkeys(COUNTED, 0)

    def add(self, **amounts: float) -> None:
        with self._lock:
            for name, amount in amounts.items():
                self._sums[name] += amount

    def read(self) -> dict[str, float]:
        with self._lock:
            return dict(self._sums)


def average_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the `state_dict()` of every rank into one for any rank of any number of ranks.

    Each rank then starts from the mean residual, so the average gradient loses nothing.
    """
    ranks = sorted(state["rank"] for state in states)
    if not states or ranks != list(range(states[0]["world_size"])):
        raise StateError(f"average_states needs the state of every rank, not of ranks {ranks}")
    first = states[0]
    if any(state["step"] != first["step"] for state in states):
        raise StateError(f"the states are of steps {[state['step'] for state in states]}")
    residuals = {
        name: torch.stack([state["residuals"][name].cpu() for state in states]).mean(dim=0)
        for name in first["residuals"]
    }
    return {**first, "rank": ANY_RANK, "world_size": ANY_RANK, "residuals": residuals}


def _all_gather() -> Any:
    """The all-gather into one tensor, by the name that this torch does not warn about."""
    newer = getattr(dist, "all_gather_single", None)
    return newer or dist.all_gather_into_tensor


def _is_zero(values: torch.Tensor) -> bool:
    """Whether every entry is zero; the extremes are found faster than torch.any finds an entry."""
    return not values[:256].any() and float(values.amax()) == 0 == float(values.amin())


def _check_gradient(buffer: torch.Tensor) -> None:
    if buffer.layout != torch.strided or buffer.dtype not in DTYPES:
        kind = "sparse" if buffer.layout != torch.strided else str(buffer.dtype)
        raise InputError(
            f"compression_hook takes dense float32, float16 or bfloat16 gradients, not {kind} "
            "ones: convert the parameters, or keep them out of this DDP model"
        )
