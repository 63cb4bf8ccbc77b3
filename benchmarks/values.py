"""What survivors' values lose: `Magnitudes` beside `Quantize` at equal bytes.

    python benchmarks/values.py

NMSE of the values alone: |v - decoded|^2 / |v|^2 over the survivors v of a top-k, or over the
entries that RandomK draws. Equal bytes are equal bits and block sizes: both spend four bytes on a
block. Real gradients are those that gradients.py has made.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import harness
import numpy as np
import numpy.typing as npt
from checks import nmse
from inputs import gaussian, real
from report import Record, markdown, save, show

import tersegrad as tg
from tersegrad import _core

GRIDS = ("uniform", "square", "logarithmic", "auto")
COLUMNS = {
    "values": "values", "k": "k", "bits": "bits", "block": "block", "bytes": "bytes",
    "quantize": "Quantize", **dict(zip(GRIDS, GRIDS, strict=True)), "gain": "Quantize / auto",
}  # fmt: skip

Floats = npt.NDArray[np.float32]


def lost(values: Floats, codec: tg.Codec) -> float:
    payload = tg.compress(values, codec)
    return nmse(values, tg.decompress(payload, kind="numpy"))


def rows_of(name: str, values: Floats) -> Iterator[Record]:
    for bits in (2, 3, 4, 6, 8):
        for block in (64, 256, 1024, 4096):
            sizes = {"block_size": block}
            row: Record = {"values": name, "k": values.size, "bits": bits, "block": block}
            row["bytes"] = tg.Magnitudes(bits=bits, **sizes).body_size(values.size)
            for grid in GRIDS:
                row[grid] = lost(values, tg.Magnitudes(bits=bits, grid=grid, **sizes))  # type: ignore[arg-type]
            if bits in (2, 4, 8):
                plain = tg.Quantize(bits=bits, **sizes)
                assert plain.body_size(values.size) == row["bytes"], "bytes are not equal"
                row["quantize"] = lost(values, plain)
                row["gain"] = row["quantize"] / row["auto"]
            yield row


def main() -> int:
    parse = harness.parser(__doc__ or "", seconds=0)
    options: argparse.Namespace = parse.parse_args()
    harness.start(options)
    found, hint = real()
    if hint:
        print(hint)
    gradients = {"gaussian x uniform^3": gaussian(options.entries), **found}
    rows: list[Record] = []
    for name, x in gradients.items():
        x = x[: options.entries] if options.quick else x
        for share, density in {"10%": 0.1, "1%": 0.01, "0.1%": 0.001}.items():
            kept = _core.select_topk(x, None, max(1, round(density * x.size)))[1]
            rows += rows_of(f"{name}, top {share}", kept)
        drawn = _core.draw_index(x.size, max(1, x.size // 100), 0, 0)
        rows += rows_of(f"{name}, random 1%", x[drawn])
    show("NMSE of the values", COLUMNS, rows)
    text = [
        "# Values of survivors",
        "NMSE of the values at equal bytes.",
        "",
        *markdown(COLUMNS, rows),
    ]
    if hint:
        text += ["", f"Missing: {hint}."]
    save("values", options, rows, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
