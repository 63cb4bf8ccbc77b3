"""One thread against two, with the cores to themselves and with the cores taken.

    python benchmarks/threads.py              about three minutes
    python benchmarks/threads.py --quick      shows that everything works

*Alone*: one process, 1 and 2 threads in turn. `read` with two threads is what memory then allows.
*Two ranks*: two processes run the same call at the same moment, first with 1 thread each, then
with 2 each: on two cores that is twice as many threads as cores, as under torchrun with the wrong
OMP_NUM_THREADS. All times are on the wall; the bytes are asserted to be equal for every number of
threads.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and torch start their pools

import multiprocessing
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import harness
import numpy as np
import roofline
import torch
from inputs import gaussian
from operations import Context, Pool, rows_of
from report import Record, markdown, save, show
from rich.progress import track

import tersegrad as tg

OPERATIONS = (
    "select 1%", "select 1% + feedback", "full compress", "chunk topk 64 of 4096", "quantize 4",
    "quantize 4 + feedback", "quantize 4 stochastic", "sign pack", "dequantize 4",
    "decompress-add topk 1%",
)  # fmt: skip
COLUMNS = {
    "operation": "operation",
    "alone_1": "alone, 1 thread: ms", "alone_2": "2 threads: ms", "faster": "times faster",
    "ranks_1": "two ranks, 1 thread each: ms", "ranks_2": "2 threads each: ms",
    "slower": "2 threads over 1", "spread": "quartiles",
}  # fmt: skip
Call = Callable[[], object]
Times = dict[str, dict[int, list[float]]]  # seconds by operation and number of threads


def calls(entries: int) -> dict[str, tuple[Call, Call | None]]:
    """What to time and what to do before, by name."""
    gradient = torch.from_numpy(gaussian(entries))
    rows = rows_of(Context(gradient, Pool(entries)), list(OPERATIONS))
    return {"read": (halves(gradient.numpy()), None)} | {r.name: (r.work, r.before) for r in rows}


def halves(x: Any) -> Call:
    """Reads all of x, each half in a thread of its own when two are set."""
    whole = roofline.reader(x)
    first, second = roofline.reader(x[: x.size // 2]), roofline.reader(x[x.size // 2 :])

    def read() -> None:
        if tg.kernels.get_num_threads() == 1:
            whole()
            return
        other = threading.Thread(target=first)
        other.start()
        second()
        other.join()

    return read


def seconds(work: Call, before: Call | None, threads: int, meet: Call | None = None) -> float:
    tg.kernels.set_num_threads(threads)
    if before is not None:
        before()
    if meet is not None:
        meet()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(entries: int, rounds: int, meet: Call | None, quiet: bool) -> Times:
    """Every operation with 1 and with 2 threads, in turn; the order changes from round to round."""
    torch.set_num_threads(1)
    harness.keep_memory()
    table = calls(entries)
    times: Times = {name: {1: [], 2: []} for name in table}
    for i in track(range(rounds + 1), "measuring", disable=quiet):
        for name, (work, before) in table.items():
            for threads in (1, 2) if i % 2 else (2, 1):
                taken = seconds(work, before, threads, meet)
                if i:  # the first round warms up
                    times[name][threads].append(taken)
    return times


def rank(barrier: Any, results: Any, entries: int, rounds: int) -> None:
    results.put(measure(entries, rounds, barrier.wait, quiet=True))


def two_ranks(entries: int, rounds: int) -> Times:
    """A sample is the slower rank's: the step ends when both have ended."""
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(2), spawn.Queue()
    ranks = [spawn.Process(target=rank, args=(barrier, results, entries, rounds)) for _ in "ab"]
    for process in ranks:
        process.start()
    first, second = results.get(), results.get()
    for process in ranks:
        process.join()
    return {
        name: {t: list(np.maximum(first[name][t], second[name][t])) for t in (1, 2)}
        for name in first
    }


def check_bytes(entries: int) -> None:
    x = gaussian(entries)
    for codec in (tg.TopK(0.01, values=tg.Quantize(bits=4)), tg.Quantize(bits=4), tg.Sign()):
        found = set()
        for threads in (1, 2, 3):
            tg.kernels.set_num_threads(threads)
            found.add(bytes(tg.compress(x, codec)))
        assert len(found) == 1, f"{codec} depends on the number of threads"


def main() -> int:
    options = harness.parser(__doc__ or "", seconds=180).parse_args()
    harness.start(options)
    check_bytes(options.entries)
    rounds = 3 if options.quick else max(7, int(options.seconds / 6))
    alone = measure(options.entries, rounds, None, options.quiet)
    ranks = two_ranks(options.entries, rounds)
    records: list[Record] = []
    for name in alone:
        quotients = np.divide(ranks[name][2], ranks[name][1])
        low, high = np.quantile(quotients, [0.25, 0.75])
        records.append(
            {
                "operation": name,
                "alone_1": 1e3 * float(np.median(alone[name][1])),
                "alone_2": 1e3 * float(np.median(alone[name][2])),
                "faster": float(np.median(np.divide(alone[name][1], alone[name][2]))),
                "ranks_1": 1e3 * float(np.median(ranks[name][1])),
                "ranks_2": 1e3 * float(np.median(ranks[name][2])),
                "slower": float(np.median(quotients)),
                "spread": f"{low:.2f}-{high:.2f}",
            }
        )
    show("one thread and two", COLUMNS, records)
    text = [
        "# Threads",
        "Times on the wall, medians; `read` with two threads reads the halves at once.",
    ]
    text += [
        "A sample of two ranks is the slower rank's; ratios are medians of the rounds' quotients.",
        "",
    ]
    save("threads", options, records, [*text, *markdown(COLUMNS, records)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
