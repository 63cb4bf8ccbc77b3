"""How every benchmark here measures: interleaved rows, medians with spread, ratios within one run.

A shared machine is never quiet, so no row is timed alone. One *round* times every row once, A B C,
and the run is many rounds, A B C A B C ...; what disturbs one row disturbs its neighbours too. A
row is compared with its roofline round by round, and the ratio reported is the median of those
quotients. See `Samples.ratio`. With one thread the clock is the processor time of this process,
page faults included: time that others' jobs take away is not counted, the memory bandwidth that
they take is. With more threads it is the time on the wall.

What memory itself allows is measured by rows of the same run, see roofline.py.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import tersegrad as tg

#: The number of entries of every table's rows unless told otherwise: ResNet-50's parameters.
RESNET50 = 25_557_032


@dataclass(frozen=True)
class Row:
    """One thing to time.

    `work` is the timed call; `before` runs untimed in front of it, such as restoring a residual.
    `bytes` is the input the call reads, the numerator of its GB/s. A row with a `variant` runs on
    those kernels.
    """

    name: str
    work: Callable[[], object]
    bytes: int
    before: Callable[[], object] | None = None
    variant: str | None = None
    calls: int = 1  # calls per sample, for calls too short to time one by one


@dataclass
class Samples:
    """Seconds per call of one row, by round; a slow row takes part in some rounds only."""

    row: Row
    seconds: dict[int, float] = field(default_factory=dict)
    faults: dict[int, float] = field(default_factory=dict)  # pages mapped in per call

    @property
    def median(self) -> float:
        return quantile(list(self.seconds.values()), 0.5)

    @property
    def quartiles(self) -> tuple[float, float]:
        values = list(self.seconds.values())
        return quantile(values, 0.25), quantile(values, 0.75)

    @property
    def gigabytes(self) -> float:
        """GB/s of input at the median."""
        return self.row.bytes / self.median / 1e9

    def ratio(self, *roofline: Samples) -> tuple[float, float, float]:
        """This row's time over the sum of the rooflines' in the same round: median and
        quartiles.
        """
        rounds = set(self.seconds).intersection(*(set(other.seconds) for other in roofline))
        if not rounds:
            raise ValueError(f"{self.row.name} shares no round with its roofline")
        quotients = [
            self.seconds[i] / sum(other.seconds[i] for other in roofline) for i in sorted(rounds)
        ]
        return (
            quantile(quotients, 0.5),
            quantile(quotients, 0.25),
            quantile(quotients, 0.75),
        )


def quantile(values: Sequence[float], q: float) -> float:
    return float(np.quantile(np.asarray(values), q))


def clock() -> Callable[[], float]:
    """Processor time for one thread, wall time for more."""
    return time.process_time if tg.kernels.get_num_threads() == 1 else time.perf_counter


def time_once(row: Row) -> tuple[float, float]:
    """Seconds and page faults per call of one sample."""
    now = clock()
    if row.variant is not None:
        tg.kernels.use(row.variant)
    if row.before is not None:
        row.before()
    faults = page_faults()
    start = now()
    for _ in range(row.calls):
        row.work()
    seconds = now() - start
    return seconds / row.calls, (page_faults() - faults) / row.calls


_fresh_memory = False


def keep_memory() -> None:
    """From now on, have glibc keep freed memory: no row shall depend on what another freed.

    Where large results are given back and asked for again, a call pays for fresh pages: 11 ms per
    26 MiB where measured, 4 with large pages, and 70 when a virtual machine's host had taken them
    back after two idle seconds (free page reporting). Inputs, allocated before, lie in mappings of
    their own, as large tensors do.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4  # as malloc.h numbers them
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)


def page_faults() -> int:
    """Pages this process had to have mapped in so far: fresh memory, each costs a quarter of a
    microsecond.
    """
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def measure(
    rows: Sequence[Row], *, seconds: float, rounds: tuple[int, int] = (7, 101), quiet: bool = False
) -> dict[str, Samples]:
    """Time all rows, interleaved.

    As many rounds as fit into `seconds`, within the bounds `rounds`. A first round is thrown away;
    it also finds the slow rows, which then sit out most rounds so that they do not take the time
    of all others.
    """
    names = [row.name for row in rows]
    if len(set(names)) != len(names):
        raise ValueError(f"rows share a name: {sorted(n for n in names if names.count(n) > 1)}")
    samples = {row.name: Samples(row) for row in rows}
    if not _fresh_memory:
        keep_memory()
    with Progress(
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        auto_refresh=False,  # a refresh thread would steal from the rows
        disable=quiet,
    ) as progress:
        first = progress.add_task("warming up", total=len(rows))
        cost = {}
        for row in rows:
            progress.update(first, description=row.name, advance=1, refresh=True)
            start = time.perf_counter()
            time_once(row)
            cost[row.name] = time.perf_counter() - start
        progress.remove_task(first)
        every = _periods(cost)
        per_round = sum(cost[name] / every[name] for name in cost)
        count = int(min(max(seconds / max(per_round, 1e-9), rounds[0]), rounds[1]))
        period = {name: min(every[name], max(1, count // 5)) for name in every}
        task = progress.add_task("measuring", total=count)
        previous = tg.kernels.active()
        collecting = gc.isenabled()
        gc.disable()
        try:
            for i in range(count):
                for j, row in enumerate(rows):
                    if i == 0 or (i + j) % period[row.name] == 0:
                        sample = samples[row.name]
                        sample.seconds[i], sample.faults[i] = time_once(row)
                progress.update(task, advance=1, refresh=True)
        finally:
            if collecting:
                gc.enable()
            tg.kernels.use(previous)
    return samples


def _periods(cost: dict[str, float]) -> dict[str, int]:
    """Every how many rounds a row takes part: rows far above the median cost seldom do."""
    usual = max(quantile(list(cost.values()), 0.5), 1e-3)
    return {name: max(1, min(8, math.ceil(spent / (4 * usual)))) for name, spent in cost.items()}


def parser(description: str, *, seconds: float) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    parse = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parse.add_argument(
        "-n", "--entries", type=int, default=RESNET50,
        help="entries per tensor (default %(default)s, ResNet-50's parameters)",
    )  # fmt: skip
    parse.add_argument(
        "--threads", type=int, default=1,
        help="threads for tersegrad and torch (default 1: what a shared machine can be trusted on)",
    )  # fmt: skip
    parse.add_argument(
        "--variant", choices=tg.kernels.available(), default=tg.kernels.active(),
        help="kernels to run (default %(default)s, the best this processor has)",
    )  # fmt: skip
    parse.add_argument(
        "--seconds", type=float, default=seconds,
        help="time to spend on one table (default %(default)s); more gives steadier medians",
    )  # fmt: skip
    parse.add_argument(
        "--quick", action="store_true",
        help="for CI, under 20 seconds: shows that everything works; the figures prove nothing",
    )  # fmt: skip
    parse.add_argument(
        "--fresh-memory",
        action="store_true",
        help="let the C library give memory back between calls: page faults are measured too",
    )
    parse.add_argument(
        "--quiet", action="store_true", help="no progress bar (also when stderr is no terminal)"
    )
    return parse


def start(options: argparse.Namespace) -> None:
    """Apply the shared options to this process."""
    if options.quick:
        options.entries = min(options.entries, 1_000_000)
        options.seconds = min(options.seconds, 2.0)
    global _fresh_memory
    _fresh_memory = options.fresh_memory
    options.quiet = options.quiet or not sys.stderr.isatty()
    torch.set_num_threads(options.threads)
    tg.kernels.set_num_threads(options.threads)
    tg.kernels.use(options.variant)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}" if seconds >= 1e-4 else f"{seconds * 1e3:.4f}"
