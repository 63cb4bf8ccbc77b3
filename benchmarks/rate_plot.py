"""The plot of rate.py: error against bits, one panel for each input, speed as colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

Record = dict[str, Any]

_MARKERS = "os^vDPX*<>phHd8"
_LINES = ("-", "--", ":", "-.")


def _panel(axes: Axes, name: str, records: Sequence[Record], norm: Any, styles: Any) -> None:
    for family in dict.fromkeys(row["family"] for row in records):
        rows = sorted((r for r in records if r["family"] == family), key=lambda r: r["bits"])
        bits, errors = [r["bits"] for r in rows], [r["nmse"] for r in rows]
        marker, line = styles[family]
        axes.plot(bits, errors, line, color="#888888", linewidth=0.9, zorder=2)
        axes.scatter(
            bits, errors, c=[r["gbps"] for r in rows], cmap="viridis", norm=norm, marker=marker,
            s=42, edgecolors="#222222", linewidths=0.6, zorder=3,
        )  # fmt: skip
    if name == "gaussian":
        bits = np.geomspace(0.01, 8, 200)
        axes.plot(bits, 2.0 ** (-2 * bits), color="#D55E00", linewidth=1.6, zorder=1)
        axes.annotate(
            "no code can\nbe below", (3.2, 2.0**-6.4), (-78, -34), textcoords="offset points",
            fontsize=9, color="#D55E00", arrowprops={"arrowstyle": "-", "color": "#D55E00"},
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylim(1e-4, 1.5)
    axes.set_xlim(0.01, 20)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.set_xticks([1 / 64, 1 / 16, 1 / 4, 1, 4, 16], ["1/64", "1/16", "1/4", "1", "4", "16"])
    axes.set_title(name, loc="left")
    axes.set_xlabel("bits for each entry")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def draw(records: Sequence[Record], path: Path, about: str) -> None:
    """Write the plot; panels in the order of the records."""
    names = list(dict.fromkeys(row["input"] for row in records))
    figure, panels = plt.subplots(
        1, len(names), figsize=(5.6 * len(names), 5.6), dpi=130, sharey=True, squeeze=False
    )
    speeds = [row["gbps"] for row in records]
    norm = mpl.colors.LogNorm(min(speeds), max(speeds))
    families = list(dict.fromkeys(row["family"] for row in records))
    styles = {
        family: (_MARKERS[i % len(_MARKERS)], _LINES[i % len(_LINES)])
        for i, family in enumerate(families)
    }
    for axes, name in zip(panels[0], names, strict=True):
        _panel(axes, name, [row for row in records if row["input"] == name], norm, styles)
    panels[0][0].set_ylabel("NMSE of one call, without error feedback")
    handles = [
        plt.Line2D([], [], color="#888888", linestyle=line, marker=marker, label=family,
                   markerfacecolor="#cccccc", markeredgecolor="#222222")
        for family, (marker, line) in styles.items()
    ]  # fmt: skip
    figure.legend(
        handles=handles, ncols=7, loc="lower center", bbox_to_anchor=(0.5, -0.13), fontsize=8.5
    )
    colours = mpl.cm.ScalarMappable(norm=norm, cmap="viridis")
    bar = figure.colorbar(colours, ax=list(panels[0]), pad=0.01, aspect=40)
    bar.set_label("compress, GB/s of input")
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    figure.suptitle(f"Error against bits, {about}; down and left is better", x=0.02, ha="left")
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)
