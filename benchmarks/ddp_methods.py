"""The rows of ddp.py: ways to reduce gradients, PyTorch's and ours."""

# No `from __future__ import annotations`: DDP compares a hook's annotations with the objects.

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from tersegrad import ChunkTopK, Codec, LowRank, Quantize, Sign, TopK
from tersegrad.ddp import CompressionState, MomentumCorrection, Rule, compression_hook
from tersegrad.outer import OuterSync

Stats = Callable[[], dict[str, float]]
#: Gradients of one bucket to their average.
Reduced = torch.futures.Future[torch.Tensor]
ONE_BUCKET = 4096  # MB, more than any model here


@dataclass(frozen=True)
class Method:
    """A row. `install` registers the hook and returns its statistics if it has any."""

    label: str
    install: Callable[[DistributedDataParallel], Stats | None]
    bucket_cap_mb: float | None = None  # DDP's default
    ours: bool = False
    momentum: bool = False  # the hook has it, the optimizer must not
    together: Callable[[nn.Module], OuterSync] | None = None  # instead of DDP and its hook
    period: int = 1  # steps from one message to the next

    def whole(self, steps: int) -> int:
        """At least so many steps, in whole rounds, after which all hosts have the same weights."""
        return -(-steps // self.period) * self.period


def no_hook(model: DistributedDataParallel) -> None:
    """DDP's own all-reduce."""


def fp16(model: DistributedDataParallel) -> None:
    model.register_comm_hook(None, default_hooks.fp16_compress_hook)


def bfloat16_hook(state: Any, bucket: dist.GradBucket) -> Reduced:
    """PyTorch's bf16 hook; DDP refuses it on a CPU, by its name alone."""
    return default_hooks.bf16_compress_hook(state, bucket)


def bf16(model: DistributedDataParallel) -> None:
    model.register_comm_hook(None, bfloat16_hook)


def power_sgd(rank: int) -> Method:
    """In one bucket: with more its second collective aborts on gloo."""

    def install(model: DistributedDataParallel) -> None:
        state = powerSGD_hook.PowerSGDState(
            None, matrix_approximation_rank=rank, start_powerSGD_iter=2
        )
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)

    return Method(f"PowerSGD rank {rank}", install, ONE_BUCKET)


def local_hook(state: None, bucket: dist.GradBucket) -> Reduced:
    """Every rank keeps its own gradient: what a network without any cost would give."""
    future: Reduced = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def noop(model: DistributedDataParallel) -> None:
    model.register_comm_hook(None, local_hook)


def ours(label: str, codec: Codec, **options: Any) -> Method:
    def install(model: DistributedDataParallel) -> Stats:
        state = CompressionState(codec, model, **options)
        model.register_comm_hook(state, compression_hook)
        return state.stats

    return Method(label, install, ours=True, momentum="momentum" in options)


def rarely(label: str, inner_steps: int, codec: Codec, outer_lr: float, momentum: float) -> Method:
    def together(model: nn.Module) -> OuterSync:
        return OuterSync(model, inner_steps, codec, outer_lr, momentum)

    return Method(label, no_hook, ours=True, together=together, period=inner_steps)


METHODS = {
    "fp32": Method("float32, no hook", no_hook),
    "fp16": Method("fp16 hook", fp16),
    "bf16": Method("bf16 hook", bf16),
    "powersgd1": power_sgd(1),
    "powersgd2": power_sgd(2),
    "powersgd4": power_sgd(4),
    "lowrank1": ours("`LowRank(1)`", LowRank(1)),
    "lowrank4": ours("`LowRank(4)`", LowRank(4)),
    "lowrank4-bf16": ours('`LowRank(4, "bfloat16")`', LowRank(4, "bfloat16")),
    "topk1": ours("`TopK(0.01, values=Quantize(4))`", TopK(0.01, values=Quantize(4))),
    "topk1-momentum": ours(
        "the same, momentum corrected",
        TopK(0.01, values=Quantize(4)),
        momentum=MomentumCorrection(0.9),
    ),
    "topk1-rules": ours(
        "the same, the rest in 8 bits",
        TopK(0.01, values=Quantize(4)),
        rules=[Rule(Quantize(8), ndim=1)],
    ),
    "topk01": ours("`TopK(0.001, values=Quantize(4))`", TopK(0.001, values=Quantize(4))),
    "chunk": ours(
        "`ChunkTopK(64, 4096, values=Quantize(4))`", ChunkTopK(64, 4096, values=Quantize(4))
    ),
    "q4": ours("`Quantize(4)`", Quantize(4)),
    "sign": ours("`Sign()`", Sign()),
    "outer4": rarely(
        "`OuterSync(4, TopK(0.1, values=2))`", 4, TopK(0.1, values=2), outer_lr=1.0, momentum=0.0
    ),
    "noop": Method("noop (free network)", noop),
}
#: Whose replicas part, and whose loss therefore says nothing.
WITHOUT_LOSS = ("noop",)
