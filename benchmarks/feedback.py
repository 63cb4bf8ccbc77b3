"""Ways to keep what a payload leaves out, side by side: test accuracy of the demo's network.

    python benchmarks/feedback.py         the table of results/feedback.md

The network, images, batches and learning rates are those of `tersegrad demo`, two workers. They take
turns in one process, which changes no number: what is compared is accuracy at equal bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import report
import torch
import torch.nn.functional as F  # noqa: N812

import tersegrad as tg
from tersegrad.demo import load_data
from tersegrad.demo_settings import Settings
from tersegrad.demo_worker import Data, Network

WORKERS = 2
DENSITIES = (0.01, 0.001)
Make = Callable[[tg.Codec], Any]


@dataclass(frozen=True)
class Way:
    """`momentum` is the optimizer's, `rate` the factor on the demo's learning rate."""

    name: str
    make: Make | None
    momentum: float = 0.9
    rate: float = 1.0


WAYS = [
    Way("nothing is kept", None),
    Way("`ErrorFeedback(codec)`", tg.ErrorFeedback),
    Way('`storage="bfloat16"`', lambda c: tg.ErrorFeedback(c, storage="bfloat16")),
    Way('`storage="int8"`', lambda c: tg.ErrorFeedback(c, storage="int8")),
    Way("`decay=0.95`", lambda c: tg.ErrorFeedback(c, decay=0.95)),
    Way("`momentum=0.9`", lambda c: tg.ErrorFeedback(c, momentum=0.9), 0.0),
    Way("`EF21(codec)`", tg.EF21),
    Way("`EF21(codec, momentum=0.9)`", lambda c: tg.EF21(c, momentum=0.9), 0.0, 10.0),
]
DENSE = Way("float32, uncompressed", None)


class Exchange:
    """The mean of the workers' gradients, as one way sends them."""

    def __init__(self, way: Way, codec: tg.Codec | None) -> None:
        self.codec, self.sent_bytes = codec, 0
        self.senders = [way.make(codec) for _ in range(WORKERS)] if way.make and codec else []
        receives = bool(self.senders) and isinstance(self.senders[0], tg.EF21)
        self.receiver = tg.EF21Receiver() if receives else None

    def mean(self, gradients: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        means = {name: torch.zeros_like(x) for name, x in gradients[0].items()}
        large = [n for n, x in means.items() if self.codec and x.dim() >= 2 and x.numel() >= 1024]
        for worker, own in enumerate(gradients):
            for name in set(own) - set(large):
                means[name] += own[name] / WORKERS
                self.sent_bytes += 4 * own[name].numel()
            if not large:
                continue
            chosen = {name: own[name] for name in large}
            message = (
                self.senders[worker].compress_many(chosen)
                if self.senders
                else tg.compress_many(list(chosen.values()), self.codec)
            )
            self.sent_bytes += message.nbytes
            if self.receiver is not None:
                got = self.receiver.decompress_many(message, large, scale=1 / WORKERS)
                means |= got
            else:
                out = [means[name] for name in large]
                tg.decompress_many(message, out=out, accumulate=True, scale=1 / WORKERS)
        return means


def train(way: Way, codec: tg.Codec | None, seed: int, data: Data, settings: Settings) -> Any:
    torch.manual_seed(seed)
    model, exchange = Network(data.side), Exchange(way, codec)
    rate = settings.learning_rate * way.rate
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=way.momentum)
    steps = len(data.images) // (settings.batch_size * WORKERS)
    total = steps * settings.epochs
    for epoch in range(settings.epochs):
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        order = torch.randperm(len(data.images), generator=generator)
        for step in range(steps):
            done = (epoch * steps + step) / total
            share = min(1.0, (done + 1e-3) / settings.warmup) * 0.5 * (1 + math.cos(math.pi * done))
            optimizer.param_groups[0]["lr"] = rate * share
            gradients = []
            for worker in range(WORKERS):
                own = order[worker::WORKERS]
                batch = own[step * settings.batch_size : (step + 1) * settings.batch_size]
                model.zero_grad()
                loss = F.cross_entropy(model(data.images[batch]), data.labels[batch])
                loss.backward()  # type: ignore[no-untyped-call]
                gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
            for name, mean in exchange.mean(gradients).items():
                model.get_parameter(name).grad = mean
            optimizer.step()
    with torch.no_grad():
        found = model(data.test_images).argmax(dim=1)
    accuracy = float((found == data.test_labels).double().mean()) * 100
    return {"accuracy": accuracy, "bytes": exchange.sent_bytes / total / WORKERS, "seed": seed}


def attempt(way: Way, codec: tg.Codec | None, seed: int, data: Data, settings: Settings) -> Any:
    """`train`, or that it diverged."""
    try:
        return train(way, codec, seed, data, settings)
    except tg.NonFiniteError:
        return {"accuracy": None, "seed": seed}


def add(row: dict[str, Any], density: float, runs: list[dict[str, Any]]) -> None:
    found = [run["accuracy"] for run in runs if run["accuracy"] is not None]
    row["runs"][str(density)] = runs
    lost = len(runs) - len(found)
    row[f"accuracy {density}"] = (
        f"{lost} of {len(runs)} diverged"
        if lost
        else f"{statistics.mean(found):.1f} ± {statistics.pstdev(found):.1f}"
    )
    if found:
        row[f"bytes {density}"] = round(next(run["bytes"] for run in runs if "bytes" in run))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=Settings.epochs)
    parser.add_argument(
        "--density", type=float, help="one column of the table alone, to results/quick"
    )
    parser.add_argument("--quick", action="store_true", help="one epoch, one seed, results/quick")
    options = parser.parse_args()
    if options.quick:
        options.seeds = options.epochs = 1
    torch.set_num_threads(1)
    tg.kernels.set_num_threads(1)
    densities = DENSITIES if options.density is None else (options.density,)
    settings = Settings(epochs=options.epochs)
    images, labels = load_data("mnist")
    data = Data(torch.from_numpy(images), torch.from_numpy(labels))
    codecs = [tg.TopK(density=density, values=tg.Quantize(4)) for density in densities]
    rows: list[dict[str, Any]] = []
    for way in [DENSE, *WAYS]:
        row: dict[str, Any] = {"way": way.name, "runs": {}}
        for density, codec in zip(densities, codecs, strict=True):
            if way is DENSE and density != densities[0]:
                continue
            used = None if way is DENSE else codec
            add(
                row,
                density,
                [attempt(way, used, seed, data, settings) for seed in range(options.seeds)],
            )
        rows.append(row)
        print(way.name, {key: value for key, value in row.items() if key != "runs"}, flush=True)
    save(rows, densities, options)


def save(
    rows: list[dict[str, Any]], densities: Sequence[float], options: argparse.Namespace
) -> None:
    folder = report.RESULTS / "quick" if options.quick or options.density else report.RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"way": "kept by the sender"}
    for density in densities:
        columns[f"accuracy {density}"] = f"TopK({density}): accuracy, %"
        columns[f"bytes {density}"] = "bytes a step"
    about = (
        f"The demo's network (215,370 parameters) on 5,000 MNIST images, two workers, {options.epochs} epochs, mean and "
        f"standard deviation of {options.seeds} seeds, codecs `TopK(density, values=Quantize(4))`, biases dense. Learning rates are "
        "the demo's, tuned for none of the rows; the optimizer has momentum 0.9, or none where the sender has it. "
        f"torch {torch.__version__}, tersegrad {tg.__version__} at {report.commit()}."
    )
    text = ["# What the sender keeps", "", about, "", *report.markdown(columns, rows)]
    (folder / "feedback.md").write_text("\n".join(text) + "\n")
    (folder / "feedback.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1))
    report.show("What the sender keeps", columns, rows)


if __name__ == "__main__":
    main()
