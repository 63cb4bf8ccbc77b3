"""kernels.py --inputs: exact top-k and 4-bit quantization on the inputs that matter and on those
that hurt.
"""

from __future__ import annotations

import argparse

import harness
import torch
from checks import check_topk
from harness import Row
from inputs import ADVERSARIES, Floats, gaussian, real
from operations import Context, Pool, rows_of
from report import Record, markdown, save, show

from tersegrad import _core

OPERATIONS = ("select 10%", "select 1%", "select 0.1%", "select 1% + feedback", "quantize 4")
COLUMNS = {
    "input": "input", "entries": "entries", "zeros": "zeros",
    **{f"{name} gbps": name for name in OPERATIONS},
    "worst": "slowest against gaussian",
}  # fmt: skip


def run(options: argparse.Namespace) -> int:
    found, hint = real()
    if hint:
        print(hint)
    if options.quick:
        found = {name: x[: options.entries] for name, x in found.items()}
    tensors: dict[str, Floats] = {"gaussian x uniform^3": gaussian(options.entries), **found}
    tensors |= {name: make(options.entries) for name, make in ADVERSARIES.items()}
    rows: list[Row] = []
    pools: dict[int, Pool] = {}
    for name, x in tensors.items():
        for density in (0.1, 0.01, 0.001):
            check_topk(x, *_core.select_topk(x, None, max(1, round(density * x.size)))[:2])
        pool = pools.setdefault(x.size, Pool(x.size))
        context = Context(torch.from_numpy(x), pool)
        rows.append(Row(f"read: {name}", x.max, x.nbytes))
        operations = rows_of(context, list(OPERATIONS), variant=options.variant, suffix=f": {name}")
        rows += operations
    samples = harness.measure(rows, seconds=options.seconds, quiet=options.quiet)

    records: list[Record] = []
    for name, x in tensors.items():
        record: Record = {"input": name, "entries": x.size, "zeros": f"{(x == 0).mean():.1%}"}
        slowest = 0.0
        for operation in OPERATIONS:
            sample = samples[f"{operation}: {name}"]
            usual = samples[f"{operation}: gaussian x uniform^3"]
            record[f"{operation} gbps"] = sample.gigabytes
            record[f"{operation} x_read"] = sample.ratio(samples[f"read: {name}"])[0]
            record[f"{operation} ms"] = sample.median * 1e3
            slowest = max(slowest, usual.gigabytes / sample.gigabytes)
        record["worst"] = slowest
        records.append(record)
    show("GB/s of input", COLUMNS, records)
    text = ["# Inputs, real and adversarial", "GB/s of input. All sets are exact.", ""]
    if hint:
        text += [f"Missing: {hint}.", ""]
    save("inputs", options, records, [*text, *markdown(COLUMNS, records)])
    return 0
