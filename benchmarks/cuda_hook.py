"""The DDP hook on a device, on one bucket: its time with the launches, and what it waits for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from cuda_clock import Setting, counted_waits, wall_seconds_of

import tersegrad as tg
from tersegrad.ddp import CompressionState, compression_hook

BUCKET_ENTRIES = 25 * 2**20 // 4
CODEC = tg.TopK(density=0.01, values=tg.Quantize(bits=4))


class Bucket:
    """What DDP hands to a hook: one parameter's gradient."""

    def __init__(self, n: int, device: torch.device) -> None:
        self.parameter = torch.nn.Parameter(torch.zeros(n // 64, 64, device=device))
        self.gradient = torch.randn(n, device=device)
        self._buffer = self.gradient.clone()

    def index(self) -> int:
        return 0

    def is_last(self) -> bool:
        return True

    def buffer(self) -> torch.Tensor:
        return self._buffer

    def parameters(self) -> list[torch.Tensor]:
        return [self.parameter]


@contextmanager
def one_rank(device: torch.device) -> Iterator[None]:
    """A process group of this process alone."""
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if device.type == "cuda" else "gloo"
        where = f"file://{os.path.join(folder, 'rendezvous')}"
        dist.init_process_group(backend, init_method=where, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def measure_hook(setting: Setting, n: int, rounds: int, calls: int) -> dict[str, Any]:
    """Seconds of a bucket on the wall, and the waits of `calls` steps."""
    with one_rank(setting.device):
        bucket = Bucket(n, setting.device)
        state = CompressionState(CODEC, torch.nn.ParameterList([bucket.parameter]))

        def step(_: int) -> None:
            bucket.buffer().copy_(bucket.gradient)  # the mean came back in it
            compression_hook(state, bucket).wait()

        def copy(_: int) -> None:
            bucket.buffer().copy_(bucket.gradient)

        for number in range(5):
            step(number)
        pairs = [
            (wall_seconds_of(step, setting, calls), wall_seconds_of(copy, setting, calls))
            for _ in range(rounds)
        ]
        with counted_waits() as waits:
            for number in range(calls):
                step(number)
        seconds = sorted(whole - base for whole, base in pairs)
        return {
            "seconds": seconds[len(seconds) // 2],
            "quartiles": [seconds[len(seconds) // 4], seconds[3 * len(seconds) // 4]],
            "waits": len(waits),
            "where": sorted({f"{w.filename}:{w.lineno}" for w in waits}),
        }
