"""Time on a device: events around each call, all calls enqueued before the first is waited for.

Inputs rotate so that together they exceed the second-level cache several times: what a row reads comes from memory. One round times
every row once, as everywhere in these benchmarks (harness.py), and a ratio is the median of the quotients of the same rounds.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

Work = Callable[[int], object]  # the number says which of the rotating inputs a call takes
#: What rotating inputs must exceed together.
L2_TIMES = 4


@dataclass(frozen=True)
class Row:
    """One thing to time: `make` sets it up and gives the work of one call."""

    name: str
    n: int  # entries
    bytes: int  # that have to move, read or written
    make: Callable[[Setting], Work]


@dataclass
class Setting:
    """Where the rows run, and how many inputs rotate."""

    device: torch.device
    l2_bytes: int
    _inputs: dict[int, list[torch.Tensor]] = field(default_factory=dict)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def rotation(self, nbytes: int) -> int:
        """How many inputs of so many bytes it takes to get past the cache."""
        return max(2, min(64, -(-L2_TIMES * self.l2_bytes // max(nbytes, 1))))

    def normal(self, n: int) -> list[torch.Tensor]:
        """Rotating inputs that all rows of a size share: Gaussian times a cubed uniform, the long tail of a gradient."""
        if n not in self._inputs:
            self._inputs = {}  # of one size at a time
            self._inputs[n] = [self._gradient(n, seed) for seed in range(self.rotation(4 * n))]
        return self._inputs[n]

    def _gradient(self, n: int, seed: int) -> torch.Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        x = torch.randn(n, device=self.device, generator=generator)
        return x.mul_(torch.rand(n, device=self.device, generator=generator).pow_(3))

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)


@dataclass
class Times:
    """Seconds per call, by round."""

    row: Row
    seconds: list[float] = field(default_factory=list)
    error: str = ""  # why there are none

    @property
    def median(self) -> float:
        return float(np.median(self.seconds)) if self.seconds else float("nan")

    @property
    def quartiles(self) -> tuple[float, float]:
        low, high = np.quantile(self.seconds, (0.25, 0.75)) if self.seconds else (float("nan"),) * 2
        return float(low), float(high)

    @property
    def gigabytes(self) -> float:
        """GB/s of the bytes that have to move."""
        return self.row.bytes / self.median / 1e9

    def over(self, other: Times) -> float:
        """How many times as long as another row of the run."""
        if not (self.seconds and other.seconds):
            return float("nan")
        pairs = zip(self.seconds, other.seconds, strict=True)
        return float(np.median([own / base for own, base in pairs]))


def run(rows: Sequence[Row], setting: Setting, rounds: int, calls: int) -> dict[str, Times]:
    """Time all rows, interleaved: in each round `calls` calls of each."""
    times = {row.name: Times(row) for row in rows}
    works: dict[str, Work] = {}
    for row in rows:
        try:
            works[row.name] = row.make(setting)
            for number in range(3):  # loads kernels, fills workspaces and head starts
                works[row.name](number)
            setting.synchronize()
        except Exception as error:  # a peer that is not there, a kernel that cannot
            times[row.name].error = f"{type(error).__name__}: {error}"
            works.pop(row.name, None)
    for _ in range(rounds):
        for name, work in works.items():
            times[name].seconds.append(seconds_of(work, setting, calls))
    return times


def seconds_of(work: Work, setting: Setting, calls: int) -> float:
    """The median time of a call on the device; on the host, for tests, by the clock on the wall."""
    if not setting.is_cuda:
        start = time.perf_counter()
        for number in range(calls):
            work(number)
        return (time.perf_counter() - start) / calls
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
    torch.cuda._sleep(2_000_000)  # about a millisecond, in which the host gets ahead of the device
    marks[0].record()
    for number in range(calls):
        work(number)
        marks[number + 1].record()
    setting.synchronize()
    pairs = itertools.pairwise(marks)
    return float(np.median([first.elapsed_time(second) for first, second in pairs])) / 1e3


def wall_seconds_of(work: Work, setting: Setting, calls: int) -> float:
    """Seconds per call on the wall, the host's part included: nothing is waited for between calls."""
    setting.synchronize()
    start = time.perf_counter()
    for number in range(calls):
        work(number)
    setting.synchronize()
    return (time.perf_counter() - start) / calls


@contextmanager
def counted_waits() -> Iterator[list[Any]]:
    """Every call of torch that makes the host wait for a device, where it was."""
    import warnings

    if not torch.cuda.is_available():
        yield []
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        found: list[Any] = []
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
            found += [w for w in caught if "called a synchronizing" in str(w.message)]
