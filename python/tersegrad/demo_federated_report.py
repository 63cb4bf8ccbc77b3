"""What `tersegrad demo --federated` shows: a progress bar, the table, the plot, the JSON file."""

from __future__ import annotations

import json
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from . import __version__
from .demo_federated import METHODS, Settings
from .demo_report import DATA_NAMES, console
from .demo_settings import DemoError

ENGINES = {
    "flower": "Flower's simulation engine",
    "plain": "a plain loop (for Flower's engine: pip install 'flwr[simulation]')",
}
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73")

Points = dict[str, dict[int, tuple[float, int, int]]]


class Display:
    """One progress bar for each method; collects what the rounds report."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.console = settings, console()
        self.points: Points = {method.name: {} for method in METHODS}
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
            f"{settings.clients} clients share {DATA_NAMES[settings.data]} unevenly and train one network for "
            f"{settings.rounds} rounds, on {ENGINES[settings.engine]}.",
            highlight=False,
            markup=False,
        )
        for method in METHODS:
            self.tasks[method.name] = self.progress.add_task(
                method.label, total=settings.rounds, accuracy="", start=False
            )
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def event(self, method: str, number: int, accuracy: float, up: int, down: int) -> None:
        self.points[method][number] = (accuracy, up, down)
        self.progress.start_task(self.tasks[method])
        self.progress.update(
            self.tasks[method], completed=number, accuracy=f"accuracy {accuracy:.1f} %"
        )


def report(settings: Settings, points: Points) -> dict[str, Any]:
    """Print the table, write plot and results."""
    rows = [_row(settings, method.name, method.label, points) for method in METHODS]
    table = Table(title=f"One network, {settings.clients} clients, {len(rows)} ways to send it")
    for heading in (
        "messages",
        "bytes up\nper client, round",
        "times fewer\nup",
        "times fewer\nup + down",
        "test accuracy\n%",
    ):
        table.add_column(heading, justify="right" if table.columns else "left", no_wrap=True)
    for row in rows:
        cells = (f"{row['bytes_up']:,.0f}", f"{row['ratio_up']:.1f}", f"{row['ratio']:.1f}")
        table.add_row(row["label"], *cells, f"{row['accuracy']:.1f}")
    screen = console()
    screen.print(table)
    results = {
        "tersegrad": __version__,
        "settings": {**vars(settings), "out": str(settings.out)},
        "methods": rows,
        "conclusion": _conclusion(rows),
    }
    settings.out.mkdir(parents=True, exist_ok=True)
    plot, data = (settings.out / name for name in ("federated.png", "federated.json"))
    data.write_text(json.dumps(results, indent=1) + "\n")
    _plot(rows, str(plot))
    screen.print(f"Plot: {plot}\nResults: {data}", highlight=False, soft_wrap=True)
    screen.print(results["conclusion"], highlight=False, soft_wrap=True)
    return results


def _row(settings: Settings, name: str, label: str, points: Points) -> dict[str, Any]:
    def total(method: str, *ways: int) -> float:
        return sum(point[way] for point in points[method].values() for way in ways)

    if not total(name, 1):
        raise DemoError(
            f"no client's update arrived ({label}); --engine plain runs the same without Flower, and shows errors"
        )
    curve = [points[name][number] for number in sorted(points[name])]
    return {
        "name": name,
        "label": label,
        "bytes_up": total(name, 1) / settings.rounds / settings.clients,
        "ratio_up": total("float32", 1) / total(name, 1),
        "ratio": total("float32", 1, 2) / total(name, 1, 2),
        "accuracy": curve[-1][0],
        "curve": curve,  # accuracy in percent, bytes up, bytes down of every round
    }


def _conclusion(rows: list[dict[str, Any]]) -> str:
    best = max(rows, key=lambda row: row["ratio_up"])
    return (
        f"{best['label']} sent {best['ratio_up']:.0f}x fewer bytes up than float32 and reached "
        f"{best['accuracy']:.1f} % instead of {rows[0]['accuracy']:.1f} %."
    )


def _plot(rows: list[dict[str, Any]], path: str) -> None:
    """Accuracy against the megabytes that all clients sent and received until then."""
    from itertools import accumulate

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, colour in zip(rows, COLOURS, strict=True):
        sent = list(accumulate((up + down) / 1e6 for _, up, down in row["curve"]))
        accuracies = [point[0] for point in row["curve"]]
        axes.plot(sent, accuracies, color=colour, marker="o", markersize=3, label=row["label"])
    axes.set_xscale("log")
    axes.set_xlabel("megabytes up and down, all clients together (log scale)")
    axes.set_ylabel("test accuracy, %")
    axes.grid(True, color="#dddddd", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
