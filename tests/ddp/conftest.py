"""Starts the workers of the DDP tests: all scenarios of one number of ranks in one set of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ddp_workers
import pytest
import torch
from ddp_workers import Results
from torch import multiprocessing

DEADLINE_SECONDS = 900


class Pool:
    """Processes that run scenarios, and the folder of their results."""

    def __init__(self, folder: Path, names: tuple[str, ...], processes: int) -> None:
        self.folder = folder
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")
            patch.setenv("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
            self.context = multiprocessing.spawn(
                ddp_workers.work, (str(folder), names), nprocs=processes, join=False
            )
        self.deadline = time.monotonic() + DEADLINE_SECONDS

    def result(self, name: str, world_size: int) -> list[Any]:
        paths = [self.folder / f"{name}.{rank}.pt" for rank in range(world_size)]
        while not all(path.exists() for path in paths):
            alive = all(p.is_alive() for p in self.context.processes[:world_size])
            late = time.monotonic() > self.deadline
            if late or not (alive or all(path.exists() for path in paths)):
                codes = [process.exitcode for process in self.context.processes]
                pytest.fail(f"the workers never finished {name}; exit codes {codes}")
            time.sleep(0.02)
        values = []
        for rank, path in enumerate(paths):
            outcome = torch.load(path, weights_only=False)
            if "error" in outcome:
                pytest.fail(f"rank {rank} in scenario {name}:\n{outcome['error']}")
            values.append(outcome["value"])
        return values

    def close(self) -> None:
        for process in self.context.processes:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()
                process.join()


@pytest.fixture(scope="session")
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Results]:
    """Gives a function from a scenario's name to its result on each rank.

    The workers run the scenarios of all test files that were collected.
    """
    sources = {item.path for item in request.session.items}
    text = "".join(path.read_text() for path in sources if path.parent == Path(__file__).parent)
    scenarios = ddp_workers.load_scenarios()
    wanted = {name: each for name, each in scenarios.items() if f'"{name}"' in text}
    pools: dict[bool, Pool] = {}

    def result(name: str) -> list[Any]:
        world_size = scenarios[name][1]
        many = world_size > 2
        if many not in pools:
            names = tuple(n for n, (_, size) in wanted.items() if (size > 2) == many)
            folder = tmp_path_factory.mktemp("ddp")
            pools[many] = Pool(folder, names, 4 if many else 2)
        return pools[many].result(name, world_size)

    yield result
    for pool in pools.values():
        pool.close()
