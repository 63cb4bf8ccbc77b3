"""The hook on buckets made by hand: gradients are given numbers, so that a device and the host get the same ones."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing, nn

import tersegrad as tg
from tersegrad.ddp import CompressionState, compression_hook

SHAPES = [(300, 300), (300,), (48, 300)]
CODEC = tg.TopK(density=0.05, values=tg.Quantize(bits=4))


class Bucket:
    """What a hook asks of DDP's bucket."""

    def __init__(self, parameters: list[nn.Parameter], index: int, last: bool) -> None:
        self._parameters, self._index, self._last = parameters, index, last
        first = parameters[0]
        n = sum(parameter.numel() for parameter in parameters)
        self._buffer = torch.zeros(n, dtype=first.dtype, device=first.device)

    def index(self) -> int:
        return self._index

    def is_last(self) -> bool:
        return self._last

    def buffer(self) -> torch.Tensor:
        return self._buffer

    def parameters(self) -> list[nn.Parameter]:
        return self._parameters


def gradient_of(rank: int, step: int, n: int) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(1000 * step + rank)
    gradient = torch.randn(n, generator=generator, device="cpu")
    gradient *= torch.rand(n, generator=generator, device="cpu") ** 3
    if (rank, step) == (0, 2):
        gradient[:90_000] = 0
    if (rank, step) == (0, 3):
        gradient[5] = float("nan")
    return gradient


def buckets(rank: int, place: torch.device, exchange: str, steps: int = 6) -> dict[str, Any]:
    """Two buckets a step; what came back, and what is remembered, on the host."""
    parameters = [nn.Parameter(torch.zeros(shape, device=place)) for shape in SHAPES]
    made = [Bucket(parameters[:2], 0, False), Bucket(parameters[2:], 1, True)]
    model = nn.ParameterList(parameters)
    state = CompressionState(CODEC, model, exchange=exchange)  # type: ignore[arg-type]
    means = []
    for step in range(steps):
        for bucket in made:
            bucket.buffer().copy_(gradient_of(rank, step, bucket.buffer().numel()))
        if place.type == "cuda" and step == steps - 1 and dist.get_backend() != "gloo":
            torch.cuda.set_sync_debug_mode("error")  # a settled step waits for nothing
        futures = [compression_hook(state, bucket) for bucket in made]
        results = [future.wait() for future in futures]
        if place.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
        means += [result.cpu().clone() for result in results]
    saved = state.state_dict()["ranks"][str(rank)]
    memory = {
        f"{kind}/{name}": t.cpu()
        for kind in ("residuals", "seconds")
        for name, t in saved[kind].items()
    }
    return {"means": means, "memory": memory, "skipped": state.skipped}


def _work(rank: int, folder: str, backend: str, world_size: int, exchange: str) -> None:
    torch.cuda.set_device(0)
    where = f"file://{folder}/rendezvous"
    dist.init_process_group(backend, init_method=where, rank=rank, world_size=world_size)
    try:
        result: Any = {"value": buckets(rank, torch.device("cuda", 0), exchange)}
        torch.cuda.synchronize()
    except Exception:
        result = {"error": traceback.format_exc()}
    torch.save(result, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def on_cuda(folder: Path, backend: str, world_size: int, exchange: str) -> list[Any]:
    """The same in processes that share one GPU."""
    arguments = (str(folder), backend, world_size, exchange)
    multiprocessing.spawn(_work, arguments, nprocs=world_size)
    outcomes = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world_size)]
    assert not [each["error"] for each in outcomes if "error" in each]
    return [each["value"] for each in outcomes]
