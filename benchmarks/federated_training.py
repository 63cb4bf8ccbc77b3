"""Federated training with compressed messages: accuracy or loss against bytes, beside dense FedAvg.

    python benchmarks/federated_training.py              all of it, about an hour on one core
    python benchmarks/federated_training.py --quick      two rounds of everything
    python benchmarks/federated_training.py --tasks plays      the other task's rows stay as they were measured

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
ROUNDS = {"mnist": 120, "plays": 100}
SEEDS = {"mnist": 3, "plays": 2}
#: For every method the best of these with the first seed, by the mean of the last ten rounds; the other seeds take it too.
LEARNING_RATES = {"mnist": (None,), "plays": (4.0, 2.0, 8.0)}


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
    # Signs of 38 clients average out. The broadcast has no such mean, and one sender: it takes more bits.
    Method(
        "plays",
        "signs up, 18 % in 4 bits down",
        tg.Sign(),
        tg.TopK(density=0.18, values=tg.Quantize(bits=4), indices="rice"),
    ),
]


def rounds(method: Method, rate: float | None, seed: int, count: int) -> Iterator[dict[str, float]]:
    """Train, and after every round tell bytes so far, of all clients together, and the score."""
    task = TASKS[method.task](seed) if rate is None else TASKS[method.task](seed, rate)
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


def run(method: Method, rate: float | None, seed: int, count: int, cache: Path) -> dict[str, Any]:
    """One run, from the cache if it is there."""
    at = "" if rate is None else f"-{rate:g}"
    path = cache / f"{method.task}-{method.name.replace(' ', '-')}{at}-{seed}-{count}.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    started = time.process_time()
    curve = []
    for point in rounds(method, rate, seed, count):
        curve.append(point)
        if len(curve) % 10 == 0:
            print(
                f"{method.task} {method.name}{at}, seed {seed}, round {len(curve)}: {point}",
                flush=True,
            )
    result = {
        "seed": seed,
        "learning rate": rate,
        "seconds": time.process_time() - started,
        "commit": commit(),
        "curve": curve,
    }
    cache.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    return result


def late_score(run: dict[str, Any]) -> float:
    """The mean of the last ten rounds, which varies less than the last round does."""
    return float(np.mean([point["score"] for point in run["curve"][-10:]]))


def all_runs(
    method: Method, seeds: int, count: int, cache: Path
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A run for each seed at the best learning rate, and what each rate came to with the first seed."""
    tried = {rate: run(method, rate, 0, count, cache) for rate in LEARNING_RATES[method.task]}
    scores = {rate: late_score(one) for rate, one in tried.items()}
    rate = (max if method.task == "mnist" else min)(scores, key=lambda each: scores[each])
    runs = [tried[rate]] + [run(method, rate, seed, count, cache) for seed in range(1, seeds)]
    return runs, {f"{each:g}": score for each, score in scores.items() if each is not None}


def row(method: Method, runs: list[dict[str, Any]], dense: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over the seeds, against dense training from the same seeds."""

    def last(key: str, which: list[dict[str, Any]]) -> float:
        return float(np.mean([run["curve"][-1][key] for run in which]))

    late = [late_score(run) for run in runs]
    late_dense = [late_score(run) for run in dense]
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
        "late relative": float(np.mean(late) / np.mean(late_dense) - 1) * 100,
        "rate": runs[0].get("learning rate"),
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
PLAYS_COLUMNS = COLUMNS | {"late relative": "in percent", "rate": "learning rate"}
TITLES = {
    "mnist": "## 5,000 MNIST images: accuracy in percent\n\nTen clients by Dirichlet(0.5), 120 rounds of one pass over "
    "their images, plain SGD, a network of 99,550 parameters, 1,000 images for testing.",
    "plays": "## Shakespeare's plays: loss in nats a character\n\n38 plays are 38 clients, 100 rounds of four steps each, "
    "a network of 33,694 parameters over the last twelve characters, the last tenth of every play for testing. The first "
    "broadcast is float32 in every row.",
}


def tasks_of(rows: list[dict[str, Any]]) -> list[str]:
    """The tasks that were run, in the order of the titles."""
    return [task for task in TITLES if any(row["task"] == task for row in rows)]


def write(rows: list[dict[str, Any]], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Federated training with compressed messages",
        "",
        __doc__.split("\n\n")[2].strip(),
    ]
    for task in tasks_of(rows):
        its = [row for row in rows if row["task"] == task]
        columns = PLAYS_COLUMNS if task == "plays" else COLUMNS
        about = f"{measured(its[0])} {its[0]['about']}"
        lines += ["", TITLES[task], "", about, "", *markdown(columns, its)]
    lines += ["", "![score against bytes](federated-training.png)", ""]
    (out / "federated-training.md").write_text("\n".join(lines))
    (out / "federated-training.json").write_text(json.dumps({"rows": rows}, indent=1) + "\n")
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
        done, rates = all_runs(method, seeds, count, cache)
        runs.setdefault(method.task, done)  # float32 comes first
        commits = ", ".join(sorted({one["commit"] for one in done}))
        about = f"{processor()}, one thread; tersegrad {tg.__version__} at {commits}, torch {torch.__version__}."
        rows.append(row(method, done, runs[method.task]) | {"about": about, "rates": rates})
    write(measured_before(options.tasks, out) + rows, out)


def measured(row: dict[str, Any]) -> str:
    """How many seeds and learning rates a row stands for."""
    seeds, rates = len(row["runs"]), row.get("rates") or {}
    means = "One seed" if seeds == 1 else f"Means of {seeds} seeds"
    if len(rates) > 1:
        means += f", each row at the best of the learning rates {', '.join(sorted(rates))}"
    return means + "."


def measured_before(tasks: list[str], out: Path) -> list[dict[str, Any]]:
    """The rows of the tasks that are not run."""
    path = out / "federated-training.json"
    if not path.exists():
        return []
    kept = json.loads(path.read_text())
    return [{"about": kept.get("about"), **row} for row in kept["rows"] if row["task"] not in tasks]


if __name__ == "__main__":
    main()
