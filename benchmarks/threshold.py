"""How near `Threshold(density=)` comes to the density it was given, and its speed beside exact `TopK`.

    python benchmarks/threshold.py

Synthetic tensors, and the real gradients that gradients.py has made, in full. A share of 1.00 is exact. The error is
what error feedback must carry on: |x - decoded|^2 / |x|^2.
"""

from __future__ import annotations

import argparse
import sys

import harness
import numpy as np
from harness import Row
from inputs import Floats, gaussian, real
from report import Record, markdown, save, show

import tersegrad as tg

DENSITIES = {"10%": 0.1, "1%": 0.01, "0.1%": 0.001}
COLUMNS = {
    "input": "input", "density": "density", "share": "sent / asked", "error": "NMSE", "topk error": "NMSE of TopK",
    "threshold": "Threshold, GB/s", "topk": "TopK, GB/s", "fixed": "Threshold(value), GB/s",
    "threshold feedback": "Threshold with residual, GB/s", "topk feedback": "TopK with residual, GB/s",
}  # fmt: skip


def inputs(entries: int) -> tuple[dict[str, Floats], str]:
    rng = np.random.default_rng(0)
    made = {
        "gaussian": rng.standard_normal(entries, np.float32),
        "laplace": rng.laplace(size=entries).astype(np.float32),
        "gaussian x uniform^3": gaussian(entries),
    }
    found, hint = real()
    return made | found, hint


def error(x: Floats, decoded: Floats) -> float:
    lost = (x - decoded).astype(np.float64)
    return float(np.dot(lost, lost) / np.dot(x.astype(np.float64), x))


def rows_of(name: str, x: Floats, share: str, record: Record) -> list[Row]:
    """Fills in what is sent and lost; gives the rows to time."""
    density = DENSITIES[share]
    fitted, exact = tg.Threshold(density=density), tg.TopK(density=density)
    decoded = tg.decompress(tg.compress(x, fitted))
    kept = np.abs(decoded[decoded != 0])
    least = float(kept.min()) if kept.size else 1.0
    fixed = tg.Threshold(value=least)
    assert np.array_equal(decoded, np.where(np.abs(x) >= np.float32(least), x, 0))
    record |= {"input": name, "density": share, "share": kept.size / round(density * x.size)}
    record |= {
        "error": error(x, decoded),
        "topk error": error(x, tg.decompress(tg.compress(x, exact))),
    }
    start = x * np.float32(0.5)
    residual = start.copy()
    rows = []
    for what, codec in (("threshold", fitted), ("topk", exact), ("fixed", fixed)):
        rows.append(Row(f"{name} {share} {what}", lambda c=codec: tg.compress(x, c), x.nbytes))  # type: ignore[misc]
        rows.append(
            Row(
                f"{name} {share} {what} feedback",
                lambda c=codec: tg.compress(x, c, residual=residual),  # type: ignore[misc]
                x.nbytes,
                before=lambda: np.copyto(residual, start),
            )
        )
    return rows


def main() -> int:
    parse = harness.parser(__doc__ or "", seconds=60)
    options: argparse.Namespace = parse.parse_args()
    harness.start(options)
    found, hint = inputs(options.entries)
    if hint:
        print(hint)
    if options.quick:
        found = {name: x[: options.entries] for name, x in found.items()}
    records: list[Record] = []
    rows: list[Row] = []
    for name, x in found.items():
        for share in DENSITIES:
            records.append({})
            rows += rows_of(name, x, share, records[-1])
    samples = harness.measure(rows, seconds=options.seconds, quiet=options.quiet)
    for record in records:
        for what in ("threshold", "topk", "fixed", "threshold feedback", "topk feedback"):
            record[what] = samples[f"{record['input']} {record['density']} {what}"].gigabytes
    show("thresholds", COLUMNS, records)
    text = [
        "# Thresholds",
        "The share that `Threshold(density=)` sends of what it was asked for, and the speed of compressing beside exact `TopK`.",
        "", *markdown(COLUMNS, records), "",
        "`TopK` reads the tensor once, `Threshold(density=)` twice: once for the moments to which a distribution is fitted, once to",
        "collect. So exact selection is the faster of the two, and sends exactly what was asked for; `Threshold(value=)`, whose message",
        "is as large as the gradient makes it, is about as fast as `TopK`. Where fewer entries than asked for are not zero, as in 10 %",
        "of minilm-embedding, those are sent.",
    ]  # fmt: skip
    if hint:
        text += ["", f"Missing: {hint}."]
    save("threshold", options, records, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
