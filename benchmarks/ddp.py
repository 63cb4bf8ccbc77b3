"""Train over a slow network: step time, bytes on the wire, and loss against the clock.

Hosts are network namespaces of this machine, their cables shaped by `tc tbf`; each host is one
process with one thread. PyTorch's hooks and ours train the same models on the same batches.

    sudo make bench-ddp                                       all of it, about two hours
    ... ddp.py --short                                        what the bars need, in ten minutes
    ... ddp.py --models mlp --links 100 --rows fp32 topk1     two rows; the others stay as they were
    ... ddp.py --what loss --models transformer               losses alone: they need no slow link
    ... ddp.py --what report                                  table and plot from what was measured

Needs iproute2, util-linux, and root: of the machine, or of a namespace of your own by putting
`unshare --map-root-user --net` in front. Nothing is left behind, however it ends.

How a loss gets its time: what a step computes does not depend on the speed of the cable. So every
row is trained once without a limit for its loss by step, and timed for some steps on each cable
for its seconds by step; the clock of a loss is the product.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ddp_hosts import Hosts, WorkerError
from ddp_methods import METHODS, WITHOUT_LOSS
from ddp_models import TASKS, sgd
from ddp_network import Network, NetworkError
from ddp_report import Results
from report import RESULTS, commit
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Record = dict[str, Any]
WARM_UP_STEPS = 4  # DDP has its buckets, PowerSGD has begun
SETTLING_SECONDS = 1.0
FEWEST_STEPS = 3
MOST_STEPS = 60
#: The stages of --short: each has a network of its own. One learning rate, the model's.
SHORT_ROWS = [
    *("fp32", "fp16", "bf16", "powersgd1", "powersgd2", "powersgd4", "noop"),
    *("topk1", "topk1-momentum", "topk1-rules", "topk01", "sign", "lowrank4", "outer4"),
]
SHORT: list[Record] = [
    {"what": "time", "models": ["mlp"], "links": [100, 1000], "rows": SHORT_ROWS},
    {
        "what": "time",
        "models": ["mlp"],
        "links": [100],
        "mtu": 9000,
        "rows": ["fp32", "topk1", "topk01"],
    },
    {"what": "time", "models": ["transformer"], "links": [10], "rows": SHORT_ROWS},
    {
        "what": "loss",
        "models": ["mlp"],
        "rows": [
            "fp32",
            "powersgd1",
            "powersgd2",
            "powersgd4",
            "topk1",
            "topk1-momentum",
            "topk1-rules",
            "outer4",
        ],
    },
    {"what": "loss", "models": ["transformer"], "rows": ["fp32", "topk1-rules", "outer4"]},
]


def time_steps(hosts: Hosts, key: Record, seconds: float) -> Record:
    """Step time and bytes of one row on one cable."""
    network, method = hosts.network, METHODS[key["method"]]
    period = method.period
    network.shape(None)
    built = hosts.ask("build", model=key["model"], method=key["method"], learning_rate=None)
    hosts.ask("steps", count=method.whole(WARM_UP_STEPS), curve=False)
    network.shape(key["link"])
    first, settled = 0.0, 0.0
    while settled < SETTLING_SECONDS:  # TCP learns the speed of the cable
        first = statistics.mean(hosts.ask("steps", count=period, curve=False)[0]["seconds"])
        settled += first * period
    count = method.whole(int(min(max(seconds / first, FEWEST_STEPS * period), MOST_STEPS)))
    network.settle()
    before = network.sent_bytes()
    answers = hosts.ask("steps", count=count, curve=False)
    network.settle()
    sent = [after - b for after, b in zip(network.sent_bytes(), before, strict=True)]
    taken = [statistics.mean(some) for some in batched(answers[0]["seconds"], period)]
    low, median, high = statistics.quantiles(taken, n=4)
    check_replicas(hosts, key["method"])
    return {
        **key,
        "steps": count,
        "seconds": median,
        "seconds_q1": low,
        "seconds_q3": high,
        "seconds_mean": statistics.mean(taken),
        "wire_bytes": sent[0] / count,
        "hook": {name: value / count for name, value in answers[0]["counted"].items()},
        "gradient_bytes": built[0]["gradient_bytes"],
    }


def batched(values: list[float], size: int) -> list[list[float]]:
    return [values[i : i + size] for i in range(0, len(values), size)]


def train(hosts: Hosts, key: Record, learning_rate: float) -> Record:
    """Losses by step of one row, on cables without a limit."""
    task = TASKS[key["model"]]
    hosts.network.shape(None)
    hosts.ask("build", model=key["model"], method=key["method"], learning_rate=learning_rate)
    count = task.steps if key["method"] == "fp32" else task.limit
    count = METHODS[key["method"]].whole(count)
    losses = hosts.ask("steps", count=count, curve=True)[0]["losses"]
    check_replicas(hosts, key["method"])
    return {**key, "learning_rate": learning_rate, "losses": losses}


def check_replicas(hosts: Hosts, method: str) -> None:
    """Every host must hold the same weights, to the bit."""
    checksums = hosts.ask("check")
    if method not in WITHOUT_LOSS and len(set(checksums)) > 1:
        raise WorkerError(f"{method}: the hosts' weights differ: {checksums}")


def main() -> None:
    options = parse()
    results = Results(options.out)
    try:
        for stage in SHORT if options.short else [{}]:
            wanted = argparse.Namespace(**{**vars(options), **stage})
            wanted.rows = [row for row in wanted.rows if row in METHODS]
            if wanted.what != "report":
                measure(wanted, results)
    except NetworkError as error:
        sys.exit(f"ddp.py: {error}")
    except KeyboardInterrupt:
        sys.exit("ddp.py: stopped; what was measured is kept")
    finally:
        results.save()
    results.report()


def measure(options: argparse.Namespace, results: Results) -> None:
    for count in options.hosts:
        with Network(count, options.mtu) as network:
            if options.what != "loss":
                for link in options.links:
                    network.shape(link)
                    cable = {"hosts": count, "link": link, "mtu": options.mtu}
                    results.add("links", {**cable, "achieved": network.achieved(link)})
            hosts = Hosts(network)
            try:
                jobs(options, results, hosts, count)
            finally:
                hosts.close()


def jobs(options: argparse.Namespace, results: Results, hosts: Hosts, count: int) -> None:
    """Everything that was asked for on so many hosts; a row that fails is noted, and the next comes."""
    about = {"commit": commit(), "date": datetime.date.today().isoformat()}
    todo: list[tuple[str, str, Callable[[], Record]]] = []
    for model in options.models:
        for method in options.rows:
            if METHODS[method].momentum and TASKS[model].optimizer is not sgd:
                continue
            key = {"hosts": count, "model": model, "method": method, **about}
            if options.what != "loss":
                for link in options.links:
                    cable = {**key, "link": link, "mtu": options.mtu}
                    work = partial(time_steps, hosts, cable, options.seconds)
                    todo.append((f"{model} {method} {link:g} Mbit/s", "timings", work))
            if options.what != "time" and method not in WITHOUT_LOSS:
                for factor in options.learning_rates:
                    rate = factor * TASKS[model].learning_rate
                    work = partial(train, hosts, key, rate)
                    todo.append((f"{model} {method} learning rate {rate:g}", "curves", work))
    columns = (
        *(TextColumn("{task.description:<44}"), BarColumn()),
        *(MofNCompleteColumn(), TimeElapsedColumn()),
    )
    quiet = options.quiet or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task("", total=len(todo))
        for title, kind, work in todo:
            bar.update(task, description=title)
            try:
                record = work()
                results.add(kind, record)
                bar.console.print(f"{title}: {summary(record)}", highlight=False)
            except WorkerError as error:
                bar.console.print(f"{title}: failed, {error}", highlight=False)
            results.save()
            bar.advance(task)


def summary(record: Record) -> str:
    if "seconds" in record:
        return f"{record['seconds'] * 1e3:.4g} ms a step"
    step, _, loss = record["losses"][-1]
    return f"test loss {loss:.4f} after {step} steps"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--links", type=float, nargs="+", default=[10, 100, 1000], metavar="MBIT",
        help="speeds of the cables in Mbit/s (default 10 100 1000)",
    )  # fmt: skip
    parser.add_argument(
        "--hosts", type=int, nargs="+", default=[2],
        help="how many hosts (default 2; 2 4 measures both; they share this machine's processors)",
    )  # fmt: skip
    parser.add_argument(
        "--models", nargs="+", metavar="MODEL", choices=TASKS, default=list(TASKS),
        help="what to train: " + "; ".join(f"{name}, a {task.about}" for name, task in TASKS.items()),
    )  # fmt: skip
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", choices=METHODS, default=list(METHODS),
        help="ways to reduce gradients (default all): "
        + ", ".join(f"{name} = {method.label.strip('`')}" for name, method in METHODS.items()),
    )  # fmt: skip
    parser.add_argument(
        "--what", choices=("all", "time", "loss", "report"), default="all",
        help="time: steps on slow cables; loss: losses by step; report: only write table and plot",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=5.0,
        help="time to spend on one row and cable (default %(default)s); at least three steps are timed",
    )  # fmt: skip
    parser.add_argument(
        "--learning-rates", type=float, nargs="+", default=[0.5, 1.0, 2.0], metavar="FACTOR",
        help="every row trains with each of these times the model's learning rate, and the best on "
        "the validation set is reported on the test set (default 0.5 1 2)",
    )  # fmt: skip
    parser.add_argument(
        "--mtu", type=int, default=1500,
        help="bytes of a packet on the cables (default 1500; 9000 is a jumbo frame)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "ddp",
        help="results go to OUT.json, .md and .png; what a run does not measure stays in OUT.json",
    )  # fmt: skip
    parser.add_argument(
        "--short", action="store_true",
        help="what the bars need: fewer rows, one learning rate, two seconds a row",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args()
    if options.short:
        options.hosts, options.learning_rates, options.seconds = [2], [1.0], 2.0
    if min(options.hosts) < 2 or min(options.links) <= 0:
        parser.error("a network needs two hosts or more, and cables of more than 0 Mbit/s")
    return options


if __name__ == "__main__":
    main()
