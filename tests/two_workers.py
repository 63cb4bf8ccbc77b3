"""Worker processes for tests of torch.distributed: they run scenarios, a test reads the results.

A scenario is a function of the rank. What it returns, or the traceback of what it raised, goes to a
file; each has a process group of its own.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

import tersegrad as tg

DEADLINE_SECONDS = 180
Scenario = Callable[[int], Any]
Results = Callable[[str], list[Any]]


@dataclass(frozen=True)
class FailsOnRank1(tg.Codec, id=221):
    """A codec that one rank cannot encode with."""

    def body_size(self, n: int, dtype: str = "float32") -> int:
        return n

    def _encode(self, values: Any, body: Any, dtype: str, step: int) -> None:
        if dist.get_rank() == 1:
            raise ArithmeticError("the codec is broken")

    def _decode(self, body: Any, values: Any, dtype: str, step: int) -> None:
        values[:] = 0


def work(rank: int, world_size: int, folder: str, scenarios: Mapping[str, Scenario]) -> None:
    torch.set_num_threads(1)
    tg.kernels.set_num_threads(1)
    for name, scenario in scenarios.items():
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous-{name}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=30),
        )
        try:
            result = {"value": scenario(rank)}
        except Exception:
            result = {"error": traceback.format_exc()}
        unfinished = Path(folder, f"{name}.{rank}.part")
        torch.save(result, unfinished)
        os.replace(unfinished, Path(folder, f"{name}.{rank}.pt"))
        dist.destroy_process_group()


@contextmanager
def running(
    folder: Path, scenarios: Mapping[str, Scenario], world_size: int = 2
) -> Iterator[Results]:
    """Start the workers; gives a function from a scenario's name to its result on each rank."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
        arguments = (world_size, str(folder), scenarios)
        context = multiprocessing.spawn(work, arguments, nprocs=world_size, join=False)
    deadline = time.monotonic() + DEADLINE_SECONDS

    def result(name: str) -> list[Any]:
        paths = [folder / f"{name}.{rank}.pt" for rank in range(world_size)]
        while not all(path.exists() for path in paths):
            alive = all(process.is_alive() for process in context.processes)
            if time.monotonic() > deadline or not (alive or all(p.exists() for p in paths)):
                codes = [process.exitcode for process in context.processes]
                pytest.fail(f"the workers never finished {name}; exit codes {codes}")
            time.sleep(0.02)
        values = []
        for rank, path in enumerate(paths):
            outcome = torch.load(path, weights_only=False)
            if "error" in outcome:
                pytest.fail(f"rank {rank} in scenario {name}:\n{outcome['error']}")
            values.append(outcome["value"])
        return values

    try:
        yield result
    finally:
        for process in context.processes:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()
                process.join()


def same(left: Any, right: Any) -> bool:
    """Equal to the bit: tensors, or dicts and sequences of them."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def error_of(action: Callable[[], Any]) -> tuple[str, str]:
    """Kind and words of the error that must come."""
    try:
        action()
    except Exception as error:
        return type(error).__name__, str(error)
    raise AssertionError("no error was raised")


@contextmanager
def collectives() -> Iterator[list[str]]:
    """The names of torch.distributed's collectives, as they are called."""
    names = [
        *("all_gather_single", "all_gather_into_tensor", "all_to_all_single", "all_reduce"),
        *("isend", "irecv"),
        *("reduce_scatter_single", "reduce_scatter_tensor", "broadcast"),
    ]
    originals = {name: getattr(dist, name) for name in names if hasattr(dist, name)}
    calls: list[str] = []

    def recorder(name: str) -> Callable[..., Any]:
        def record(*args: Any, **options: Any) -> Any:
            calls.append(name)
            return originals[name](*args, **options)

        return record

    for name in originals:
        setattr(dist, name, recorder(name))
    try:
        yield calls
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
