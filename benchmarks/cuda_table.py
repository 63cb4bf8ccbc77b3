"""The table and the bars of benchmarks/cuda.py."""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cuda_clock import Setting, Times, run
from cuda_hook import BUCKET_ENTRIES, measure_hook
from cuda_rows import DECODED, rows_of, selection
from report import RESULTS, commit, markdown, show

import tersegrad as tg

SIZES = (25_557_032, 256_000_000)
QUICK_SIZES = (100_000, 400_000)
NOT_RUN = "not run on a GPU yet"
COLUMNS = {
    "row": "row", "milliseconds": "ms", "gigabytes": "GB/s", "of copy": "of copy", "note": "quartiles, ms",
}  # fmt: skip
BAR_COLUMNS = {"bar": "bar", "limit": "limit", "measured": "measured", "met": "met"}

Found = dict[str, Times]


@dataclass(frozen=True)
class Bar:
    """A promise of issue 6; `measure` gives its value from the times of a size, NaN where a row is missing."""

    text: str
    n: int
    limit: float
    measure: Callable[[Found], float]
    above: bool = False

    def met(self, value: float) -> bool:
        return value >= self.limit if self.above else value <= self.limit


def bars_of(n: int, large: bool) -> list[Bar]:
    read, copy, add = f"read of {n:,}", f"copy of {n:,}", f"r.add_(g) of {n:,}"
    bars = []
    for density, limit in ((0.01, 1.5 if large else 3.0), (0.001, 1.3 if large else 2.5)):
        own = selection(n, density)
        bars.append(Bar(f"{own}, against a read", n, limit, over(own, read)))
        bars.append(Bar(f"{own}, torch.topk takes", n, 10, over(f"torch.topk {own}", own), True))
        bars.append(
            Bar(f"{own}, cub::DeviceTopK takes", n, 3, over(f"cub::DeviceTopK {own}", own), True)
        )
    fused = f"feedback, topk 1 %, 4-bit values of {n:,}"
    bars.append(Bar(f"{fused}, against r.add_(g)", n, 1.4 if large else 2.0, over(fused, add)))
    noisy = f"feedback, quantize 4 bit stochastic of {n:,}"
    bars.append(Bar(f"{noisy}, against r.add_(g)", n, 1.3, over(noisy, add)))
    for name in DECODED:
        own = f"{name} of {n:,}"
        bars.append(Bar(f"{own}, share of the copy's GB/s", n, 0.8, share(own, copy), True))
    return bars


def over(row: str, base: str) -> Callable[[Found], float]:
    return lambda found: found[row].over(found[base])


def share(row: str, copy: str) -> Callable[[Found], float]:
    return lambda found: found[row].gigabytes / found[copy].gigabytes


def record(times: Times, copy: Times) -> dict[str, Any]:
    if not times.seconds:
        return {"row": times.row.name, "note": times.error or NOT_RUN}
    low, high = times.quartiles
    return {
        "row": times.row.name,
        "milliseconds": 1e3 * times.median,
        "gigabytes": times.gigabytes,
        "of copy": times.gigabytes / copy.gigabytes,
        "note": f"{1e3 * low:.3g}-{1e3 * high:.3g}",
    }


def judged(bar: Bar, found: Found) -> dict[str, Any]:
    value = bar.measure(found)
    sign = ">=" if bar.above else "<="
    known = value == value
    return {
        "bar": bar.text,
        "limit": f"{sign} {bar.limit:g}",
        "measured": value if known else NOT_RUN,
        "met": ("yes" if bar.met(value) else "NO") if known else "-",
    }


def about(setting: Setting | None) -> dict[str, Any]:
    device = "no CUDA device"
    if setting is not None and setting.is_cuda:
        facts = torch.cuda.get_device_properties(setting.device)
        memory, l2 = facts.total_memory / 2**30, setting.l2_bytes / 2**20
        device = (
            f"{facts.name}, {facts.multi_processor_count} SMs, {memory:.0f} GiB, L2 {l2:.0f} MiB"
        )
    return {
        "device": device,
        "cuda of torch": torch.version.cuda or "none",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "tersegrad": tg.__version__,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def setting_here() -> Setting | None:
    if not torch.cuda.is_available():
        return None
    device = torch.device("cuda", torch.cuda.current_device())
    return Setting(device, torch.cuda.get_device_properties(device).L2_cache_size)


def measure_all(
    setting: Setting | None, sizes: Sequence[int], rounds: int, calls: int, hook_entries: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The table's rows and the bars."""
    rows: list[dict[str, Any]] = []
    bars: list[dict[str, Any]] = []
    for number, n in enumerate(sizes):
        made = rows_of(n, slow_peers=number == 0)
        found = {row.name: Times(row) for row in made}
        if setting is not None:
            print(f"{len(made)} rows of {n:,} entries", file=sys.stderr)
            found = run(made, setting, rounds, calls)
        rows += [record(times, found[f"copy of {n:,}"]) for times in found.values()]
        bars += [judged(bar, found) for bar in bars_of(n, large=number > 0)]
    hook: dict[str, Any] = {
        "bar": "hook on a bucket of 25 MB, launches included, microseconds",
        "limit": "<= 150",
    }
    waits: dict[str, Any] = {"bar": "waits of the host in 20 steps of the hook", "limit": "<= 0"}
    if setting is None:
        hook |= {"measured": NOT_RUN, "met": "-"}
        waits |= {"measured": NOT_RUN, "met": "-"}
    else:
        one = measure_hook(setting, hook_entries, rounds, 20)
        micros = 1e6 * one["seconds"]
        hook |= {"measured": micros, "met": "yes" if micros <= 150 else "NO"}
        waits |= {"measured": one["waits"], "met": "NO" if one["waits"] else "yes"}
        for where in one["where"]:
            print(f"the host waits at {where}", file=sys.stderr)
    return rows, [*bars, hook, waits]


def was_measured(stem: Path) -> bool:
    """Whether the table there has numbers."""
    path = stem.with_suffix(".json")
    return path.exists() and any(
        "milliseconds" in row for row in json.loads(path.read_text())["rows"]
    )


def save(
    stem: Path, facts: dict[str, Any], rows: list[dict[str, Any]], bars: list[dict[str, Any]]
) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": facts, "rows": rows, "bars": bars}
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    with stem.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    dashed = [{key: row.get(key, "-") for key in COLUMNS} for row in rows]
    lines = ["# CUDA", "", "; ".join(f"{key} {value}" for key, value in facts.items()) + ".", ""]
    lines += [
        "GB/s count the bytes that have to move. Times are of the device alone unless a row says otherwise.",
        "",
    ]
    lines += [*markdown(BAR_COLUMNS, bars), "", *markdown(COLUMNS, dashed)]
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, into results/quick")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=20)
    options = parser.parse_args()
    setting = setting_here()
    if setting is None:
        print("no CUDA device here: the table gets dashes", file=sys.stderr)
    sizes = QUICK_SIZES if options.quick else SIZES
    entries = BUCKET_ENTRIES // 64 if options.quick else BUCKET_ENTRIES
    stem = (RESULTS / "quick" if options.quick else RESULTS) / "cuda"
    if setting is None and was_measured(stem):
        sys.exit(f"{stem}.json was measured on a GPU and stays")
    rows, bars = measure_all(setting, sizes, options.rounds, options.calls, entries)
    save(stem, about(setting), rows, bars)
    show("Bars", BAR_COLUMNS, bars)
    show("CUDA", COLUMNS, rows)
