"""Training that synchronises rarely: local steps, then one small message per worker.

    sync = OuterSync(model, inner_steps=30)
    for batch in batches:
        loss(model, batch).backward()
        optimizer.step()
        sync.step()                     # at every 30th call the workers meet

DiLoCo (Douillard et al. 2023, "DiLoCo: Distributed low-communication training of language models")
with the compression and error feedback of SparseLoCo (Sarfi et al. 2025, "Communication efficient
LLM pre-training with SparseLoCo").
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from .codec import Codec
from .codecs import ChunkTopK, Identity, Quantize
from .errors import InputError, NonFiniteError, StateError
from .exchange import (
    NON_FINITE,
    Layout,
    Rules,
    Selection,
    add_all,
    agree,
    check_whole,
    checksum_of,
    gather_directly,
    read_marks,
    write,
)
from .outer_parameters import (
    STATE_VERSION,
    TENSORS,
    broadcast_all,
    check_number,
    check_state,
    checksum,
    descend,
    floats,
    message_device,
    running_statistics,
    trained,
    zeros,
)

__all__ = ["OuterSync"]

COUNTED = (
    *("steps", "sent_bytes", "received_bytes", "dense_bytes"),
    *("compress_seconds", "wait_seconds", "decode_seconds"),
)
DEFAULT_CODEC = ChunkTopK(k=64, chunk=4096, values=Quantize(bits=2))


class OuterSync:
    """Let every worker train on its own, and bring the workers together every `inner_steps` steps.

    At a synchronisation each worker compresses how far its parameters have moved since the last
    one (the pseudo-gradient, with error feedback), each sends its message to all others, and every
    worker applies the mean to the parameters of the last synchronisation, the anchor, by SGD with
    Nesterov momentum. The parameters are equal to the bit on all workers then.

    Make one per model on every worker, before training and before loading a checkpoint. Where the
    workers' parameters differ at this point, those of rank 0 are sent to all.

    Parameters
    ----------
    model : Module
        Its float32, float16 or bfloat16 parameters with `requires_grad` are synchronised. Running
        statistics of batch and instance normalisation are averaged, in the same message. All other
        parameters and buffers stay as they are on each worker after the start.
    inner_steps : int
        Calls of `step` from one synchronisation to the next.
    codec : Codec
        For parameters of two or more dimensions and at least `min_size` entries. The others travel
        dense in the same message.
    outer_lr, momentum, nesterov : float, float, bool
        Of the outer optimizer, as in `torch.optim.SGD`.
    process_group : ProcessGroup, optional
        The default group if not given.
    rules : mapping of str to Codec, optional
        Codecs by shell patterns of parameter names: ``{"*.bias": Identity()}``. The first that
        matches decides.
    min_size : int
    residual_decay : float
        Above 0 and at most 1: the residual is multiplied by it at each synchronisation (beta of
        SparseLoCo, 0.95 there). 1 loses nothing.
    nonfinite : {"error", "skip"}
        When the parameters of a worker hold a NaN or an infinity, no worker uses its contribution.
        ``"error"`` raises on all workers and changes nothing; ``"skip"`` goes on with the mean of
        the others, from which the worker then starts again.

    Attributes
    ----------
    message_bytes : int
        What a worker sends at a synchronisation.
    syncs, skipped : int
        Synchronisations so far, and contributions of any worker that were refused in them.

    Raises
    ------
    InputError, CodecError
        An argument is not what it should be.
    StateError
        The workers were given different arguments or models. All of them raise.

    Notes
    -----
    Anchor, momentum and residual are float32 in host memory: three times the parameters.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        inner_steps: int = 30,
        codec: Codec = DEFAULT_CODEC,
        outer_lr: float = 0.7,
        momentum: float = 0.9,
        nesterov: bool = True,
        process_group: dist.ProcessGroup | None = None,
        *,
        rules: Rules | None = None,
        min_size: int = 1024,
        residual_decay: float = 1.0,
        nonfinite: str = "error",
    ) -> None:
        self.inner_steps = check_whole("inner_steps", inner_steps, 1)
        self.selection = Selection(codec, {} if rules is None else rules, min_size)
        self.outer_lr = check_number("outer_lr", outer_lr, "above 0", lambda x: x > 0)
        self.momentum = check_number("momentum", momentum, "from 0, below 1", lambda x: 0 <= x < 1)
        self.nesterov = bool(nesterov)
        self.residual_decay = check_number(
            "residual_decay", residual_decay, "above 0, at most 1", lambda x: 0 < x <= 1
        )
        if nonfinite not in ("error", "skip"):
            raise InputError(f"nonfinite must be 'error' or 'skip', not {nonfinite!r}")
        self.nonfinite = nonfinite
        self.inner_step = self.syncs = self.skipped = 0
        self._parameters = trained(model)
        self._statistics = dict(running_statistics(model))
        group = process_group or (dist.group.WORLD if dist.is_initialized() else None)
        if not isinstance(group, dist.ProcessGroup):
            raise StateError(
                f"this rank is in no such process group ({group!r}): call "
                "torch.distributed.init_process_group first"
            )
        self._group = group
        self._rank, self._world_size = dist.get_rank(group), dist.get_world_size(group)
        parts = [
            (name, self.selection.of(name, p.shape, p.numel()), p.numel())
            for name, p in self._parameters.items()
        ]
        parts += [(name, Identity(), s.numel()) for name, s in self._statistics.items()]
        self._layout = Layout(parts, "float32", self._rank)
        self.message_bytes = self._layout.nbytes
        self._device = message_device(group, next(iter(self._parameters.values())))
        self.reset_stats()
        self._start_together(model)
        self._anchor = {name: floats(p).clone() for name, p in self._parameters.items()}
        self._momentum = zeros(self._anchor if self.momentum else ())
        inexact = {name for name, c, _ in parts if not isinstance(c, Identity)}
        self._residuals = zeros({n: a for n, a in self._anchor.items() if n in inexact})

    def step(self) -> bool:
        """Count one step of the inner optimizer; synchronise if it is the last of a round.

        Every worker must call it equally often.

        Returns
        -------
        bool
            Whether the workers have synchronised: the parameters are the anchor now.

        Raises
        ------
        NonFiniteError
            The parameters of a worker hold a NaN or an infinity, on all workers alike. With
            ``nonfinite="skip"`` only if no worker is left. Nothing has changed; the next call
            tries again.
        StateError
            A worker could not compress, or the workers are at different synchronisations.
        """
        self._counters["steps"] += 1
        self._counters["dense_bytes"] += self._dense_bytes
        self.inner_step += 1
        if self.inner_step < self.inner_steps:
            return False
        with torch.no_grad():
            self._synchronise()
        self.inner_step = 0
        return True

    # --- One synchronisation. ---

    def _synchronise(self) -> None:
        begin = time.perf_counter()
        # New residuals, not changed ones: a refused contribution keeps its old.
        residuals = {name: r * self.residual_decay for name, r in self._residuals.items()}
        moved = [self._moved(name, p) for name, p in self._parameters.items()]
        moved += [floats(s) for s in self._statistics.values()]
        own = torch.zeros(self._layout.nbytes, dtype=torch.uint8)
        kept = [residuals.get(part.name) for part in self._layout.parts]
        failure = write([self._layout], [own], [moved], [kept], self.syncs)
        gathering = time.perf_counter()
        messages = gather_directly(own.to(self._device), self._group).cpu()
        decoding = time.perf_counter()
        counters = self._counters
        counters["sent_bytes"] += own.numel()
        counters["received_bytes"] += own.numel() * (self._world_size - 1)
        counters["compress_seconds"] += gathering - begin
        counters["wait_seconds"] += decoding - gathering
        used = self._contributors(messages, failure)
        means = [torch.zeros(part.n) for part in self._layout.parts]
        for part, mean in zip(self._layout.parts, means, strict=True):
            add_all(messages[used], part, mean, "float32", self.syncs, 1 / len(used))
        for part, mean in zip(self._layout.parts, means, strict=True):
            if part.name in self._statistics:
                statistic = self._statistics[part.name]
                statistic.copy_(mean.view(statistic.shape))
            else:
                anchor, velocity = self._anchor[part.name], self._momentum.get(part.name)
                gradient = mean.view(anchor.shape)
                descend(anchor, gradient, velocity, self.outer_lr, self.momentum, self.nesterov)
                self._parameters[part.name].copy_(anchor)
        if self._rank in used:
            self._residuals = residuals
        self.skipped += self._world_size - len(used)
        self.syncs += 1
        counters["decode_seconds"] += time.perf_counter() - decoding

    def _moved(self, name: str, parameter: torch.Tensor) -> torch.Tensor:
        """The pseudo-gradient: where the round began, minus where the parameter is now."""
        start = self._anchor[name].to(parameter.dtype).float()  # as half precision rounded it
        return start - floats(parameter)

    def _contributors(self, messages: torch.Tensor, failure: str | None) -> list[int]:
        """The ranks whose parameters are finite; the same answer on all of them."""
        marks = read_marks(self._layout, messages, self.syncs, failure)
        used = [rank for rank, found in enumerate(marks) if NON_FINITE not in found]
        if len(used) == self._world_size or (used and self.nonfinite == "skip"):
            return used
        names = {
            rank: [p.name for p, mark in zip(self._layout.parts, found, strict=True) if mark]
            for rank, found in enumerate(marks)
            if rank not in used
        }
        raise NonFiniteError(
            f"not synchronised: NaN or infinity in these parameters of these ranks: {names}; lower "
            "the learning rate, or pass nonfinite='skip' to go on with the other ranks"
        )

    # --- Start, checkpoints, counters. ---

    def _start_together(self, model: torch.nn.Module) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        facts = {
            "arguments": checksum_of(repr(self)),
            "model": checksum_of(self._layout.checksum, [tensor.shape for tensor in tensors]),
            "weights": checksum(tensors),
        }
        differing = agree(self._group, self._device, facts)
        if differing == ["weights"]:
            sent = broadcast_all(tensors, self._group, self._device)
            self._counters["sent_bytes"] += sent if self._rank == 0 else 0
        elif differing:
            raise StateError(
                f"the workers differ in {' and '.join(differing)}: give every worker the same "
                f"OuterSync and model; rank {self._rank} has {self!r}"
            )

    def state_dict(self) -> dict[str, Any]:
        """What this worker must save beside its model and optimizer; every worker saves its own.

        Returns
        -------
        dict
            Ints, and under "anchor", "momentum" and "residuals" float32 tensors by parameter name.
            It loads with ``torch.load(weights_only=True)``.
        """
        copies = {
            kind: {name: tensor.clone() for name, tensor in getattr(self, f"_{kind}").items()}
            for kind in TENSORS
        }
        return {
            "version": STATE_VERSION,
            "inner_step": self.inner_step,
            "syncs": self.syncs,
            "skipped": self.skipped,
            "rank": self._rank,
            "world_size": self._world_size,
            "parameters_checksum": checksum(self._parameters.values()),
            **copies,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue, to the bit, from the `state_dict()` of the same rank.

        Load this rank's model first: it holds what was trained since the last synchronisation.

        Raises
        ------
        StateError
            The state is of another rank, number of ranks or model, or the model is not as it was
            saved. Nothing has changed then.
        """
        own = {kind: getattr(self, f"_{kind}") for kind in TENSORS}
        check_state(state_dict, own, self._rank, self._world_size)
        if state_dict["parameters_checksum"] != checksum(self._parameters.values()):
            raise StateError(
                "the model's parameters are not those of the moment when the state was saved: "
                "make OuterSync first, then load this rank's model, then this state"
            )
        for kind, tensors in own.items():
            for name, tensor in tensors.items():
                tensor.copy_(state_dict[kind][name])
        self.inner_step = int(state_dict["inner_step"])
        self.syncs, self.skipped = int(state_dict["syncs"]), int(state_dict["skipped"])

    def stats(self) -> dict[str, float]:
        """What this worker has sent since `reset_stats`.

        Returns
        -------
        dict
            `steps`; `syncs` and `skipped`, as the attributes; `sent_bytes`, and `received_bytes`
            from other workers; `dense_bytes`, which is what sending every gradient at every step
            takes; its `ratio` to those sent; `compress_seconds`, `wait_seconds` for the other
            workers, and `decode_seconds`; `residual_norm`, Euclidean, of this worker.
        """
        sent = self._counters["sent_bytes"]
        squares = (float(r.double().square().sum()) for r in self._residuals.values())
        return {
            **self._counters,
            "syncs": self.syncs,
            "skipped": self.skipped,
            "ratio": self._counters["dense_bytes"] / sent if sent else 1.0,
            "residual_norm": float(sum(squares) ** 0.5),
        }

    def reset_stats(self) -> None:
        """Start the counters again; `syncs` and `skipped`, which checkpoints hold, go on."""
        self._dense_bytes = sum(p.numel() * p.element_size() for p in self._parameters.values())
        self._counters: dict[str, float] = dict.fromkeys(COUNTED, 0)

    def __repr__(self) -> str:
        return (
            f"OuterSync(inner_steps={self.inner_steps}, {self.selection!r}, "
            f"outer_lr={self.outer_lr}, momentum={self.momentum}, nesterov={self.nesterov}, "
            f"residual_decay={self.residual_decay}, nonfinite={self.nonfinite!r}, "
            f"parameters={len(self._parameters)}, syncs={self.syncs})"
        )
