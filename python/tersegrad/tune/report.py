"""What `tersegrad tune` shows: the table, the JSON, the rate-distortion plot."""

from __future__ import annotations

import importlib.util
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__, kernels
from ..codec import Codec
from ..terminal import print_table
from .measure import Row, codec_line
from .recommend import Budget
from .units import format_bytes, format_rate
from .updates import Updates

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
_COLOURS = ("#000000", "#777777", "#009E73", "#CC79A7", "#0072B2", "#56B4E9", "#D55E00", "#E69F00")
_MARKERS = "Psd*o^vD"
_SIGNS = {"best": "*", "over": "-", "": ""}


def show_table(rows: Sequence[Row], budget: Budget, best: Row | None) -> None:
    """All candidates, the largest message first; the best row marked, rows over the budget dim."""
    feedback = any(row.feedback_nmse is not None for row in rows)
    columns = ["", "codec", "bytes\na round", "ratio", "NMSE,\n1 round"]
    columns += ["NMSE,\nfeedback"] if feedback else []
    columns += ["cosine", "compress,\ndecompress ms"]
    columns += [] if budget.uplink is None else ["until\nsent, s"]
    lines, marks = [], []
    for row in sorted(rows, key=lambda row: -row.nbytes):
        mark = "best" if row is best else "" if budget.fits(row) else "over"
        line = [_SIGNS[mark], codec_line(row.codec), f"{row.nbytes:,}", _digits(row.ratio)]
        line.append(_digits(row.nmse))
        line += [] if row.feedback_nmse is None else [_digits(row.feedback_nmse)]
        times = (row.compress_seconds, row.decompress_seconds)
        line += [f"{row.cosine:.4f}", "  ".join(f"{_digits(1000 * t):>5}" for t in times)]
        seconds = budget.seconds(row)
        line += [] if seconds is None else [_digits(seconds)]
        lines.append(line)
        marks.append(mark)
    title = f"{len(rows)} codecs" + (f" for {budget}" if budget.limits else "")
    print_table(title, columns, lines, marks, left=2)
    if budget.limits:
        print("* best   - over the budget")


def as_dict(
    rows: Sequence[Row], budget: Budget, best: Row | None, updates: Updates
) -> dict[str, Any]:
    """The same for machines: plain data."""
    return {
        "tersegrad": __version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "kernels": kernels.active(),
        "threads": kernels.get_num_threads(),
        "update": {
            "tensors": len(updates.names),
            "entries": updates.entries,
            "bytes": updates.dense_bytes,
            "rounds": len(updates.rounds),
        },
        "budget": {
            "uplink": budget.uplink,
            "deadline": budget.deadline,
            "max_bytes": budget.max_bytes,
        },
        "best": None if best is None else _row(best, budget),
        "rows": [_row(row, budget) for row in rows],
    }


def _row(row: Row, budget: Budget) -> dict[str, Any]:
    return {
        "codec": row.codec.to_dict(),
        "python": codec_line(row.codec, "tg."),
        "nbytes": row.nbytes,
        "ratio": row.ratio,
        "nmse": _finite(row.nmse),
        "feedback_nmse": _finite(row.feedback_nmse),
        "error": _finite(row.error),
        "cosine": row.cosine,
        "compress_seconds": row.compress_seconds,
        "decompress_seconds": row.decompress_seconds,
        "seconds": budget.seconds(row),
        "fits": budget.fits(row),
    }


def _finite(number: float | None) -> float | None:
    """JSON has no infinity, which the error is when updates sum up to nothing."""
    return number if number is not None and math.isfinite(number) else None


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def plot(
    rows: Sequence[Row], budget: Budget, best: Row | None, path: Path, about: str = ""
) -> None:
    """Error against bytes, both on log scales; a line through the codecs that no other beats in both."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 5.8), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    # Nearer than this is as good as exact, and would squeeze the others together.
    rows = [row for row in rows if math.isfinite(row.error)]
    floor = 1e-4 * max((row.error for row in rows), default=0.0) or 1.0

    def height(row: Row) -> float:
        return max(row.error, floor)

    front = pareto(rows)
    axes.plot(
        [row.nbytes for row in front], [height(row) for row in front],
        color="#bbbbbb", linewidth=6, alpha=0.6, zorder=1, solid_capstyle="round",
        label="no other codec is smaller and closer",
    )  # fmt: skip
    for number, (name, members) in enumerate(_series(rows).items()):
        colour, marker = _COLOURS[number % 8], _MARKERS[(number + number // 8) % 8]
        axes.plot(
            [row.nbytes for row in members], [height(row) for row in members],
            color=colour, marker=marker, markersize=6, linewidth=1.2, label=name, zorder=3,
        )  # fmt: skip
        side = (
            1 if number % 2 == 0 else -1
        )  # labels above and to the right, or below and to the left
        for row in members:
            axes.annotate(
                _point(row), (row.nbytes, height(row)), (4 * side, 4 * side),
                textcoords="offset points", fontsize=7.5, color=colour, zorder=4,
                ha="left" if side > 0 else "right", va="bottom" if side > 0 else "top",
            )  # fmt: skip
    if best in rows:
        axes.plot(
            best.nbytes, height(best), "o", markersize=16, markerfacecolor="none", zorder=5,
            markeredgecolor="black", markeredgewidth=1.8, label=f"best: {codec_line(best.codec)}",
            linestyle="none",
        )  # fmt: skip
    _limits(axes, budget)
    axes.margins(x=0.08)
    axes.set_xscale("log")
    axes.set_yscale("log")
    if any(row.error < floor for row in rows):
        axes.axhline(floor, color="#999999", linewidth=0.8, linestyle=":")
        axes.annotate(
            f"{floor:.1g} and less", (0, floor), (4, 3), xycoords=("axes fraction", "data"),
            textcoords="offset points", fontsize=8, color="#555555",
        )  # fmt: skip
    axes.xaxis.set_major_formatter(lambda size, _: format_bytes(size))
    many = any(row.feedback_nmse is not None for row in rows)
    axes.set_xlabel("bytes of one round's message (log scale)")
    axes.set_ylabel(f"error: NMSE {'with error feedback' if many else 'of one round'} (log scale)")
    axes.set_title(f"Error against size{about}; down and left is better", loc="left", fontsize=10)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    figure.savefig(path)


def pareto(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other beats in bytes and error at once, the smallest first."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.nbytes, row.error)):
        if not front or row.error < front[-1].error:
            front.append(row)
    return front


def _limits(axes: Any, budget: Budget) -> None:
    """Vertical lines at what the budget allows."""
    lines: list[tuple[float, str]] = []
    if budget.max_bytes is not None:
        lines.append((budget.max_bytes, format_bytes(budget.max_bytes)))
    if budget.deadline is not None and budget.uplink is not None:
        carried = budget.uplink * budget.deadline / 8
        lines.append((carried, f"{budget.deadline:g} s at {format_rate(budget.uplink)}"))
    for place, text in lines:
        axes.axvline(place, color="#555555", linewidth=1, linestyle="--", zorder=2)
        axes.annotate(
            f"{text} ", (place, 0.5), xycoords=("data", "axes fraction"), fontsize=8, color="#555555",
            ha="right", va="top", rotation=90,
        )  # fmt: skip


def _series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by class, value codec and index form: what is drawn as one line."""
    series: dict[str, list[Row]] = {}
    for row in rows:
        values = getattr(row.codec, "values", None)
        name = type(row.codec).__name__
        if isinstance(values, Codec):
            name += f", values {codec_line(values)}"
        form = getattr(row.codec, "indices", "auto")
        name += "" if form == "auto" else f", {form}"
        series.setdefault(name, []).append(row)
    return {name: sorted(own, key=lambda row: row.nbytes) for name, own in series.items()}


def _point(row: Row) -> str:
    """What tells a codec from others of its series."""
    codec = row.codec
    density, k = getattr(codec, "density", None), getattr(codec, "k", None)
    if density or k:
        return f"{100 * density:.2g} %" if density else f"k={k}"
    bits = getattr(codec, "bits", None)
    return str(getattr(codec, "dtype", "")) if bits is None else f"{bits} bits"


def _digits(number: float) -> str:
    """Three digits, without an exponent where that is short."""
    if number == 0:
        return "0"
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"
