"""Every native operation as GB/s of input, beside what this machine's memory allows in the same
run.

    python benchmarks/kernels.py                                 the table of all operations
    python benchmarks/kernels.py --variants avx512 avx2 scalar   the same, kernels side by side
    python benchmarks/kernels.py --dtypes float32 float16        2-byte inputs
    python benchmarks/kernels.py --inputs                        real and adversarial inputs
    python benchmarks/kernels.py --models                        all tensors of a model
    python benchmarks/kernels.py --sweep                         1 K to 256 M entries, with a plot
    python benchmarks/kernels.py --only select                   some operations

Columns: "x read" is the time over that of reading the input once, "x r += g" over that of adding
the gradient to a residual (torch.add), the least that error feedback can cost. Both are medians
over the rounds of one interleaved run. GB/s count the dense tensor, also where it is decoded; for
index rows the 4-byte indices. Answers are asserted.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and torch start their pools

import argparse
import sys
from typing import Any

import harness
import inputs_table
import models_table
import roofline
import sweep
import torch
from checks import check_operations
from harness import Samples
from inputs import gaussian
from operations import DTYPES, Context, Pool, catalogue, rows_of
from report import Record, markdown, save, show

import tersegrad as tg

ROOFLINES = ("read", "read np.max", "copy", "write", "write streaming", "r += g")


def record(name: str, sample: Samples, read: Samples, add: Samples) -> Record:
    low, high = sample.quartiles
    x_read, x_add = sample.ratio(read), sample.ratio(add)
    return {
        "operation": name,
        "ms": sample.median * 1e3,
        "ms_q1": low * 1e3,
        "ms_q3": high * 1e3,
        "gbps": sample.gigabytes,
        "x_read": x_read[0],
        "x_read_q1": x_read[1],
        "x_read_q3": x_read[2],
        "x_add": x_add[0],
        "faults": harness.quantile(list(sample.faults.values()), 0.5),
        "samples": len(sample.seconds),
    }


def main() -> int:
    parse = harness.parser(__doc__ or "", seconds=60)
    have = tg.kernels.available()
    parse.add_argument("--variants", nargs="+", choices=have, help="kernels to compare")
    parse.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=["float32"])
    parse.add_argument("--only", default="", help="only operations whose name contains this")
    parse.add_argument("--inputs", action="store_true", help="top-k on real and adversarial inputs")
    parse.add_argument("--models", action="store_true", help="whole models: many tensors")
    parse.add_argument("--sweep", action="store_true", help="sizes from 1 K to 256 M entries")
    options = parse.parse_args()
    if options.variants:
        options.variant = options.variants[0]
    harness.start(options)
    if options.inputs:
        return inputs_table.run(options)
    if options.models:
        return models_table.run(options)
    if options.sweep:
        return sweep.run(options)
    return operations_table(options)


def operations_table(options: argparse.Namespace) -> int:
    names = [name for name in catalogue() if options.only in name]
    if not names:
        sys.exit(f"no operation contains {options.only!r}; there are: {', '.join(catalogue())}")
    combinations = [(v, d) for v in options.variants or [options.variant] for d in options.dtypes]
    gradient = torch.from_numpy(gaussian(options.entries))
    pool = Pool(options.entries)
    residual = torch.from_numpy(pool.residual)
    rows = roofline.rows(gradient.numpy(), gradient, residual, pool.restore)
    for variant, dtype in combinations:
        tg.kernels.use(variant)
        context = Context(gradient.to(DTYPES[dtype]), pool)
        check_operations(context.gradient)
        rows += rows_of(context, names, variant=variant, suffix=f" [{variant} {dtype}]")
    tg.kernels.use(options.variant)
    samples = harness.measure(rows, seconds=options.seconds, quiet=options.quiet)

    read, add = samples["read"], samples["r += g"]
    records = [record(name, samples[name], read, add) for name in ROOFLINES]
    for variant, dtype in combinations:
        for name in names:
            key = f"{name} [{variant} {dtype}]"
            if key not in samples:  # this version does not have the operation
                continue
            found = record(name, samples[key], read, add)
            records.append({**found, "variant": variant, "dtype": dtype})
    columns, table = pivot(records, names, combinations)
    show(f"{options.variant}, {options.threads} thread(s)", columns, table)
    if not options.only:
        stem = "kernels" if len(combinations) == 1 else "kernels-variants"
        if len(options.dtypes) > 1:
            stem = "kernels-dtypes"
        save(
            stem,
            options,
            records,
            ["# Native operations", roofline.how() + ".", "", *markdown(columns, table)],
        )
    return 0


def pivot(
    records: list[Record], names: list[str], combinations: list[tuple[str, str]]
) -> tuple[dict[str, str], list[Record]]:
    """One line per operation: the first combination in full, the others as GB/s."""
    columns = {
        "operation": "operation", "ms": "ms", "spread": "quartiles", "gbps": "GB/s",
        "x_read": "x read", "x_add": "x r += g",
    }  # fmt: skip
    lines: dict[str, Record] = {}
    for found in records:
        combination: Any = (found.get("variant"), found.get("dtype"))
        if found["operation"] not in lines:
            lines[found["operation"]] = {
                **found,
                "spread": f"{found['ms_q1']:.3g}-{found['ms_q3']:.3g}",
            }
        elif combination in combinations[1:]:
            key = " ".join(combination)
            columns[key] = f"GB/s {key}"
            lines[found["operation"]][key] = found["gbps"]
    return columns, [lines[name] for name in [*ROOFLINES, *names] if name in lines]


if __name__ == "__main__":
    sys.exit(main())
