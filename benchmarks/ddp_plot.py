"""Loss against the clock: one panel for each model and cable."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from ddp_methods import METHODS
from ddp_models import TASKS
from matplotlib.ticker import FuncFormatter, NullFormatter
from plots import _COLOURS, _plain

if TYPE_CHECKING:
    from ddp_report import Results


def plot(results: Results, path: Path) -> None:
    """Ours in colours, PyTorch's in greys; the dotted line is the loss that float32 ends with."""
    panels = [s for s in results.settings() if results.target(s[0], s[1]) and s[3] == 1500]
    if not panels:
        return
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    size = (5.2 * columns, 3.6 * rows + 0.8)
    figure, grid = plt.subplots(rows, columns, figsize=size, dpi=150, squeeze=False)
    styles = _styles(METHODS)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (hosts, model, link, mtu) in zip(grid.flat, panels, strict=False):
        axes.set_title(f"{model}, {hosts} hosts, {link:g} Mbit/s", fontsize=10, loc="left")
        for row in results.rows(hosts, model, link, mtu):
            losses = results.losses(hosts, model, row["method"])
            seconds = [step * row["step"] / 1e3 for step, _ in losses]
            if losses:
                label, style = row["label"].strip("`"), styles[row["method"]]
                axes.plot(seconds, [loss for _, loss in losses], label=label, **style)
        target = results.target(hosts, model)
        axes.axhline(target, color="#222222", linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        top = max(
            loss
            for step, loss in results.losses(hosts, model, "fp32")
            if step >= 0.2 * TASKS[model].steps
        )
        axes.set_ylim(target - 0.25 * (top - target), top)
        axes.set_xlabel("seconds of training")
        axes.set_ylabel("test loss")
        _plain(axes)
    handles = {
        label: handle
        for axes in grid.flat
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="lower center", ncols=4, frameon=False, fontsize=8
    )
    figure.tight_layout(rect=(0, 0.9 / size[1], 1, 1))
    figure.savefig(path)
    plt.close(figure)


def _styles(methods: Iterable[str]) -> dict[str, dict[str, object]]:
    """A line for each method: colours are ours, greys are PyTorch's."""
    colours = iter(product(("-", "--"), _COLOURS))
    greys = iter(product(("-", "--", ":"), ("#000000", "#666666", "#aaaaaa")))
    styles: dict[str, dict[str, object]] = {}
    for method in methods:
        ours = METHODS[method].ours
        line, colour = next(colours if ours else greys)
        styles[method] = {"color": colour, "linestyle": line, "linewidth": 1.8 if ours else 1.2}
    return styles
