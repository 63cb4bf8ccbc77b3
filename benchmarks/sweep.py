"""kernels.py --sweep: GB/s against size, from 1 K to 256 M entries, so that the cache levels
show.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import harness
import plots
import roofline
import torch
from harness import Row
from inputs import gaussian
from operations import Context, Pool, rows_of
from report import Record, about_run, markdown, place, save, show

OPERATIONS = ("select 1%", "select 0.1%", "quantize 8", "quantize 4", "sign pack", "cast bfloat16")
SMALLEST, LARGEST = 2**10, 2**28
CALL_ENTRIES = 2**18  # small tensors are timed in loops of about this many entries


def cache_bytes() -> dict[str, int]:
    """Data caches of this processor by name."""
    sizes = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind = (folder / "type").read_text().strip()
        if kind in ("Data", "Unified"):
            size = (folder / "size").read_text().strip()
            unit = {"K": 2**10, "M": 2**20}.get(size[-1], 1)
            sizes["L" + (folder / "level").read_text().strip()] = int(size.rstrip("KM")) * unit
    return sizes


def rows_at(n: int, options: argparse.Namespace) -> list[Row]:
    gradient = torch.from_numpy(gaussian(n))
    pool = Pool(n)
    zeros = torch.zeros_like(gradient)
    rows = roofline.rows(gradient.numpy(), gradient, zeros)
    rows += rows_of(Context(gradient, pool), list(OPERATIONS), variant=options.variant)
    calls = max(1, CALL_ENTRIES // n)
    return [Row(r.name, r.work, r.bytes, r.before, r.variant, calls) for r in rows]


def run(options: argparse.Namespace) -> int:
    largest = options.entries if options.quick else LARGEST
    steps = int(math.log2(largest / SMALLEST))
    records: list[Record] = []
    for exponent in range(0, steps + 1, 4 if options.quick else 1):
        n = SMALLEST * 2**exponent
        rows = rows_at(n, options)
        seconds = min(options.seconds, 30) / 10
        samples = harness.measure(rows, seconds=seconds, rounds=(5, 41), quiet=options.quiet)
        record: Record = {"entries": n, "bytes": 4 * n}
        for name, sample in samples.items():
            record[name] = sample.gigabytes
            low, high = sample.quartiles
            record[f"{name} q1"] = sample.row.bytes / high / 1e9
            record[f"{name} q3"] = sample.row.bytes / low / 1e9
        records.append(record)
    path = place("sweep", options).with_suffix(".png")
    columns = {"entries": "entries", **{name: name for name in samples}}
    show("GB/s of input against size", columns, records)
    text = ["# GB/s against size", f"![GB/s against size]({path.name})", ""]
    save("sweep", options, records, [*text, *markdown(columns, records)])
    series = ["read", "copy", "r += g", *OPERATIONS]
    plots.sweep(records, series, cache_bytes(), path, about_run(options))
    return 0
