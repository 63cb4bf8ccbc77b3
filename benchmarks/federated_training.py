"""Federated training with compressed messages: accuracy or loss against bytes, beside dense FedAvg.

    python benchmarks/federated_training.py              all of it, about an hour on one core
    python benchmarks/federated_training.py --quick      two rounds of everything

Rounds run in plain Python, one client after the other, through `tersegrad.federated.Client` and `Server`: the bytes counted are those
of the messages that they make and read, headers included. Nothing is simulated but the network. Finished runs are kept in
.cache/federated, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from federated_tasks import TASKS
from report import RESULTS, commit, markdown, processor

import tersegrad as tg
from tersegrad.demo_clients import load_weights, weights_of
from tersegrad.federated import Client, Layout, Server, apply, decode

CACHE = Path(__file__).parents[1] / ".cache" / "federated"
ROUNDS = {"mnist": 120, "plays": 150}
SEEDS = {"mnist": 3, "plays": 1}


def ternary(density: float, **options: Any) -> tg.TopK:
    """The largest entries, each as a sign, with one magnitude for all (Sattler et al. 2019, "sparse ternary compression")."""
    return tg.TopK(density=density, values=tg.Sign(block_size=65536), **options)


@dataclass(frozen=True)
class Method:
    """How messages travel; without a codec, as float32."""

    task: str
    name: str
    up: tg.Codec | None = None
    down: tg.Codec | None = None


METHODS = [
    Method("mnist", "float32"),
    Method("mnist", "ternary 4.7 %", ternary(0.047)),
    Method("mnist", "ternary 0.93 %", ternary(0.0093)),
    Method("plays", "float32"),
    Method(
        "plays", "both ways 4 bits 5 %", *2 * [tg.TopK(density=0.05, values=tg.Quantize(bits=4))]
    ),
    Method("plays", "both ways ternary 5 %", *2 * [ternary(0.05)]),
]


def rounds(method: Method, seed: int, count: int) -> Iterator[dict[str, float]]:
    """Train, and after every round tell bytes so far, of all clients together, and the score."""
    task = TASKS[method.task](seed)
    weights = weights_of(task.network)
    dense = sum(array.nbytes for array in weights.values())
    codec = method.up or tg.Identity()
    # Every tensor is compressed, biases too: at these ratios they would be a third of the message.
    clients = [
        Client(codec, min_size=1, error_feedback=method.up is not None) for _ in task.examples
    ]
    down = method.down and Client(method.down, min_size=1, error_feedback=False)
    held, bytes_up, bytes_down = weights, 0, 0
    layout = Layout.of(weights)
    for number in range(count):
        if down is None or number == 0:
            held, broadcast = weights, dense
        else:
            change = down.encode(weights, base=held)
            held, broadcast = apply(held, decode(change, layout)), len(change)
        server = Server(layout)
        for i, (client, examples) in enumerate(zip(clients, task.examples, strict=True)):
            load_weights(task.network, held)
            task.train(i, seed=seed * 1_000_003 + number * 101 + i)
            message = client.encode(weights_of(task.network), base=held)
            server.add(message, weight=examples)
            bytes_up += dense if method.up is None else len(message)
            bytes_down += broadcast
        weights = apply(weights, server.mean())
        load_weights(task.network, weights)
        yield {"up": bytes_up, "down": bytes_down, "score": task.score()}


def run(method: Method, seed: int, count: int, cache: Path) -> dict[str, Any]:
    """One run, from the cache if it is there."""
    path = cache / f"{method.task}-{method.name.replace(' ', '-')}-{seed}-{count}.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    started = time.process_time()
    curve = []
    for point in rounds(method, seed, count):
        curve.append(point)
        if len(curve) % 10 == 0:
            print(
                f"{method.task} {method.name}, seed {seed}, round {len(curve)}: {point}", flush=True
            )
    result = {
        "seed": seed,
        "seconds": time.process_time() - started,
        "commit": commit(),
        "curve": curve,
    }
    cache.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    return result


def row(method: Method, runs: list[dict[str, Any]], dense: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over the seeds, against dense training from the same seeds."""

    def last(key: str, which: list[dict[str, Any]]) -> float:
        return float(np.mean([run["curve"][-1][key] for run in which]))

    # The mean of the last ten rounds varies less than the last round does.
    late = [float(np.mean([point["score"] for point in run["curve"][-10:]])) for run in runs]
    late_dense = [float(np.mean([point["score"] for point in run["curve"][-10:]])) for run in dense]
    return {
        "task": method.task,
        "method": method.name,
        "codec up": str(method.up),
        "codec down": str(method.down),
        "up": last("up", dense) / last("up", runs),
        "total": (last("up", dense) + last("down", dense))
        / (last("up", runs) + last("down", runs)),
        "score": last("score", runs),
        "difference": last("score", runs) - last("score", dense),
        "late": float(np.mean(late)),
        "late difference": float(np.mean(late) - np.mean(late_dense)),
        "scores": [run["curve"][-1]["score"] for run in runs],
        "bytes up a client and round": last("up", runs)
        / len(runs[0]["curve"])
        / clients_of(method),
        "runs": runs,
    }


def clients_of(method: Method) -> int:
    return {"mnist": 10, "plays": 38}[method.task]


COLUMNS = {
    "method": "messages",
    "bytes up a client and round": "bytes up, client and round",
    "up": "fewer bytes up",
    "total": "fewer bytes up and down",
    "score": "at the end",
    "difference": "against float32",
    "late": "mean of the last ten rounds",
    "late difference": "against float32 ",
}
TITLES = {
    "mnist": "## 5,000 MNIST images: accuracy in percent\n\nTen clients by Dirichlet(0.5), 120 rounds of one pass over "
    "their images, plain SGD, a network of 99,550 parameters, 1,000 images for testing; means of three seeds.",
    "plays": "## Shakespeare's plays: loss in nats a character\n\n38 plays are 38 clients, 150 rounds of four steps each, "
    "a GRU of 39,838 parameters, the last tenth of every play for testing.",
}


def tasks_of(rows: list[dict[str, Any]]) -> list[str]:
    """The tasks that were run, in the order of the titles."""
    return [task for task in TITLES if any(row["task"] == task for row in rows)]


def write(rows: list[dict[str, Any]], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    commits = ", ".join(sorted({run["commit"] for row in rows for run in row["runs"]}))
    about = f"{processor()}, one thread; tersegrad {tg.__version__} at {commits}, torch {torch.__version__}."
    lines = [
        "# Federated training with compressed messages",
        "",
        __doc__.split("\n\n")[2].strip(),
        "",
        about,
    ]
    for task in tasks_of(rows):
        lines += ["", TITLES[task], "", *markdown(COLUMNS, [r for r in rows if r["task"] == task])]
    lines += ["", "![score against bytes](federated-training.png)", ""]
    (out / "federated-training.md").write_text("\n".join(lines))
    (out / "federated-training.json").write_text(
        json.dumps({"about": about, "rows": rows}, indent=1) + "\n"
    )
    plot(rows, out / "federated-training.png")


#: Which bytes, and what of the score, the plot of a task shows.
AXES = {"mnist": ("up", "test accuracy, %"), "plays": ("both", "test loss, nats a character")}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Scores against the bytes that all clients sent and received up to then."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = tasks_of(rows)
    figure = Figure(figsize=(5.5 * len(tasks), 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        key, label = AXES[task]
        if task == "mnist":
            axes.set_ylim(80, 99)
        for one in (r for r in rows if r["task"] == task):
            curves = [run["curve"] for run in one["runs"]]
            points = list(zip(*curves, strict=True))
            sent = [p[0]["up"] + (p[0]["down"] if key == "both" else 0) for p in points]
            axes.plot(
                np.array(sent) / 1e6,
                [np.mean([x["score"] for x in p]) for p in points],
                label=one["method"],
            )
        axes.set_xscale("log")
        axes.set_xlabel(
            "megabytes up" + (" and down" if key == "both" else "") + ", all clients (log scale)"
        )
        axes.set_ylabel(label)
        axes.grid(True, color="#dddddd", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="two rounds of everything, into results/quick"
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    tg.kernels.set_num_threads(1)
    out = RESULTS / "quick" if options.quick else RESULTS
    cache = CACHE / "quick" if options.quick else CACHE
    rows = []
    runs: dict[str, list[dict[str, Any]]] = {}
    for method in (m for m in METHODS if m.task in options.tasks):
        count = 2 if options.quick else ROUNDS[method.task]
        seeds = 1 if options.quick else SEEDS[method.task]
        done = [run(method, seed, count, cache) for seed in range(seeds)]
        runs.setdefault(method.task, done)  # float32 comes first
        rows.append(row(method, done, runs[method.task]))
    write(rows, out)


if __name__ == "__main__":
    main()
