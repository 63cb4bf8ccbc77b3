"""compare.py's other half: times one row per line read from stdin, with whichever tersegrad
PYTHONPATH gives.
"""

from __future__ import annotations

import json
import sys

import harness
import torch
from inputs import gaussian
from operations import Context, Pool, catalogue, rows_of

import tersegrad as tg

#: Calls per turn; the median counts.
CALLS = 3


def main() -> None:
    entries, threads, variant, only = sys.argv[1:]
    torch.set_num_threads(int(threads))
    tg.kernels.set_num_threads(int(threads))
    if variant:
        tg.kernels.use(variant)
    n = int(entries)
    context = Context(torch.from_numpy(gaussian(n)), Pool(n))
    rows = {}
    for name in catalogue():
        if only not in name:
            continue
        try:
            for row in rows_of(context, [name]):
                row.work()
                rows[name] = row
        except (AttributeError, TypeError, ImportError) as error:  # this version cannot do it
            print(f"{name}: {error}", file=sys.stderr)
    harness.keep_memory()
    print(json.dumps({"rows": list(rows), "package": tg.__file__}), flush=True)
    for line in sys.stdin:
        row = rows[line.strip()]
        harness.time_once(
            row
        )  # another process had the caches and the processor since the last turn
        seconds = [harness.time_once(row)[0] for _ in range(CALLS)]
        print(json.dumps(harness.quantile(seconds, 0.5)), flush=True)


if __name__ == "__main__":
    main()
