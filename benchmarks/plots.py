"""The plots under benchmarks/results, drawn from the rows of the tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

Record = dict[str, Any]

# Colours that stay apart for colour-blind readers (Okabe and Ito); memory's own limits are grey.
_COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7")
_ROOFLINES = {"read": ("#222222", "-"), "copy": ("#777777", "--"), "r += g": ("#777777", ":")}


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _size(entries: int) -> str:
    for unit, name in ((2**20, " M"), (2**10, " K")):
        if entries >= unit:
            return f"{entries // unit}{name}"
    return str(entries)


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Positions moved apart to at least `gap`, order kept, so that labels do not overlap."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = [positions[i] for i in order]
    for _ in range(200):
        moved = False
        for i in range(1, len(placed)):
            short = gap - (placed[i] - placed[i - 1])
            if short > 1e-9:
                placed[i - 1] -= short / 2
                placed[i] += short / 2
                moved = True
        if not moved:
            break
    result = [0.0] * len(positions)
    for i, position in zip(order, placed, strict=True):
        result[i] = position
    return result


def sweep(
    records: Sequence[Record],
    series: Sequence[str],
    caches: dict[str, int],
    path: Path,
    about: str,
) -> None:
    """GB/s of input against entries, one line per operation, named at its right end."""
    figure, axes = plt.subplots(figsize=(9.5, 5.2), dpi=150)
    entries = [row["entries"] for row in records]
    colours = iter(_COLOURS)
    ends = []
    for name in series:
        colour, style = _ROOFLINES.get(name, ("", "-"))
        colour = colour or next(colours)
        values = [row[name] for row in records]
        width = 2.2 if name not in _ROOFLINES else 1.6
        axes.plot(entries, values, style, color=colour, linewidth=width)
        axes.fill_between(
            entries, [row[f"{name} q1"] for row in records], [row[f"{name} q3"] for row in records],
            color=colour, alpha=0.15, linewidth=0,
        )  # fmt: skip
        ends.append((name, values[-1], colour))
    axes.set_xscale("log", base=2)
    axes.set_xticks(entries[::2], [_size(n) for n in entries[::2]])
    axes.minorticks_off()
    low = min(row[name] for row in records for name in series)
    top = max(row[name] for row in records for name in series) * 1.5
    axes.set_yscale("log")
    axes.set_ylim(low / 1.3, top)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.set_xlim(entries[0], entries[-1])
    for name, size in caches.items():
        if entries[0] < size / 4 < entries[-1]:
            axes.axvline(size / 4, color="#999999", linewidth=0.8, linestyle=(0, (2, 3)))
            axes.text(size / 4, top / 1.05, f" {name}", fontsize=8, color="#666666", va="top")
    gap = math.log(top / low * 1.3) / 22
    heights = [math.exp(h) for h in spread([math.log(value) for _, value, _ in ends], gap)]
    for (name, value, colour), height in zip(ends, heights, strict=True):
        axes.annotate(
            name, (entries[-1], value), (entries[-1] * 1.5, height), fontsize=9, color=colour,
            va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "relpos": (0, 0.5)},
        )  # fmt: skip
    axes.set_xlabel("entries of the float32 tensor")
    axes.set_ylabel("GB/s of input")
    axes.set_title(f"Speed against size, {about}; bands are quartiles", loc="left")
    _plain(axes)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def codecs(records: Sequence[Record], read: float, path: Path, about: str) -> None:
    """Compress speed against ratio; colour is the error, squares are peers."""
    figure, axes = plt.subplots(figsize=(13, 7), dpi=150)
    shown = [row for row in records if "out given" not in row["name"]]  # all but on another point
    colours = mpl.colormaps["viridis_r"]
    norm = mpl.colors.LogNorm(1e-5, 1, clip=True)
    for marker, peer, label in (("o", False, "tersegrad"), ("s", True, "peers")):
        chosen = [row for row in shown if (row["peer"] == "peer") == peer]
        axes.scatter(
            [row["ratio"] for row in chosen], [row["compress_gbps"] for row in chosen],
            c=[row["nmse"] for row in chosen], cmap=colours, norm=norm, marker=marker,
            s=70 if not peer else 48, edgecolors="#222222", linewidths=0.8, label=label, zorder=3,
        )  # fmt: skip
    axes.axhline(read, color="#222222", linewidth=1, linestyle="--")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(top=read * 1.6)
    axes.set_xlim(0.8, max(row["ratio"] for row in records) * 2.2)
    axes.text(
        0.99, read * 1.06, "reading the tensor once", fontsize=8.5, ha="right",
        transform=axes.get_yaxis_transform(),
    )  # fmt: skip
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}x"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.set_xlabel("compression ratio")
    axes.set_ylabel("compress, GB/s of float32 input")
    axes.set_title(f"Speed against ratio, {about}; up and right is better", loc="left")
    _plain(axes)
    axes.legend(loc="lower right", frameon=False)
    bar = figure.colorbar(mpl.cm.ScalarMappable(norm, colours), ax=axes, pad=0.01)
    bar.set_label("normalised error (NMSE), before error feedback")
    figure.canvas.draw()
    points = [(row["ratio"], row["compress_gbps"], row["name"].split(" (")[0]) for row in shown]
    _label(axes, points, read)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


_DIRECTIONS = (
    (1, 0), (-1, 0), (0.7, 0.8), (0.7, -0.8), (-0.7, 0.8), (-0.7, -0.8), (0, 1), (0, -1),
)  # fmt: skip


def _label(axes: Axes, points: Sequence[tuple[float, float, str]], line: float) -> None:
    """Name points where there is room below the line: near them if possible, else further out."""
    pixel = axes.figure.dpi / 72
    pixels = [axes.transData.transform((x, y)) for x, y, _ in points]
    taken = [Bbox.from_bounds(px - 6, py - 6, 12, 12) for px, py in pixels]
    frame = axes.get_window_extent()
    top = axes.transData.transform((1, line))[1] - 2
    for (px, py), (x, y, name) in zip(pixels, points, strict=True):
        probe = axes.text(x, y, name, fontsize=7.5)
        extent = probe.get_window_extent()
        probe.remove()
        width, height = 1.02 * extent.width, 1.1 * extent.height
        spots = []
        for far in (8, 13, 20, 28, 38, 50, 64, 80, 100):
            for dx, dy in _DIRECTIONS:
                left = px + dx * far * pixel - (0 if dx > 0 else width if dx < 0 else width / 2)
                low = py + dy * far * pixel - height / 2
                spots.append((dx * far, dy * far, Bbox.from_bounds(left, low, width, height)))

        def free(box: Bbox) -> bool:
            inside = frame.x0 < box.x0 and box.x1 < frame.x1 and box.y1 < top
            return inside and not any(box.overlaps(other) for other in taken)

        dx, dy, box = next((spot for spot in spots if free(spot[2])), spots[0])
        taken.append(box)
        line_to = {"arrowstyle": "-", "linewidth": 0.5, "color": "#888888"}
        axes.annotate(
            name, (x, y), (dx, dy), textcoords="offset points", fontsize=7.5, va="center",
            ha="left" if dx > 0 else "right" if dx < 0 else "center", zorder=4,
            arrowprops=line_to if math.hypot(dx, dy) > 10 else None,
        )  # fmt: skip


def outer(records: Sequence[Record], path: Path, about: str) -> None:
    """Held-out loss against the bytes that a worker has sent; one line per method and seed."""
    figure, axes = plt.subplots(figsize=(9.5, 5.2), dpi=150)
    names = list(dict.fromkeys(row["name"] for row in records))
    for row in records:
        colour = _COLOURS[names.index(row["name"])]
        sent = [point["sent_bytes"] / 1e6 for point in row["curve"]]
        losses = [point["loss"] for point in row["curve"]]
        axes.plot(sent, losses, color=colour, linewidth=1.8, marker="o", markersize=3)
        if row["seed"] == 0:
            axes.annotate(
                row["name"], (sent[-1], losses[-1]), (0, -12), textcoords="offset points",
                fontsize=9, color=colour, ha="center", va="top",
            )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    low = min(point["loss"] for row in records for point in row["curve"])
    high = max(point["loss"] for row in records for point in row["curve"])
    axes.set_ylim(low - 0.12 * (high - low))
    axes.margins(x=0.15)
    axes.set_xlabel("MB that a worker has sent")
    axes.set_ylabel("loss on plays held out, nats per character")
    axes.set_title(f"Loss against bytes, {about}; down and left is better", loc="left")
    _plain(axes)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)
