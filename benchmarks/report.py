"""Results on disk: machine and versions, and the rows as JSON, CSV and Markdown."""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import tersegrad as tg

#: Kept in the repository: the README's table and plots are made from it.
RESULTS = Path(__file__).parent / "results"

Record = dict[str, Any]


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def commit() -> str:
    """The commit measured; with `+` when the working tree differs from it."""
    git = ["git", "-C", str(Path(tg.__file__).parent)]

    def ask(*words: str) -> str:
        return subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout

    try:
        dirty = ask("status", "--porcelain", "--untracked-files=no", ":/csrc", ":/python")
        return ask("rev-parse", "--short=10", "HEAD").strip() + ("+" if dirty.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "no commit"


def machine(options: argparse.Namespace) -> Record:
    """What a figure depends on."""
    return {
        "processor": processor(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "tersegrad": tg.__version__,
        "commit": commit(),
        "kernels": options.variant,
        "threads": options.threads,
        "clock": "processor time" if options.threads == 1 else "wall time",
        "memory": "fresh" if options.fresh_memory else "kept",
        "entries": options.entries,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def machine_line(m: Mapping[str, Any]) -> str:
    """The same as one Markdown paragraph."""
    return (
        f"{m['processor']}, {m['cpus']} CPUs (load {m['load']}), {m['system']}; "
        f"kernels **{m['kernels']}**, **{m['threads']} thread{'s' if m['threads'] > 1 else ''}** "
        f"({m['clock']}, {m['memory']} memory), n = {m['entries']:,} unless a row says otherwise; "
        f"Python {m['python']}, NumPy {m['numpy']}, torch {m['torch']}, "
        f"tersegrad {m['tersegrad']} at {m['commit']}; {m['date']}."
    )


def about_run(options: argparse.Namespace) -> str:
    """Threads and kernels, for a plot's title."""
    threads = "one thread" if options.threads == 1 else f"{options.threads} threads"
    return f"{threads}, {options.variant}"


def significant(value: Any, digits: int = 3) -> str:
    """Three significant digits: no more are known. Text stays as it is."""
    if not isinstance(value, float):
        return "" if value is None else str(value)
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    if abs(value) < 1e-3:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{digits}g}"


def markdown(columns: Mapping[str, str], rows: Sequence[Record]) -> list[str]:
    """A Markdown table; `columns` maps keys of the rows to headings."""
    first, *others = columns
    lines = ["| " + " | ".join(columns.values()) + " |", "|---" + "|---:" * len(others) + "|"]
    for row in rows:
        cells = [str(row.get(first, "")), *(significant(row.get(key)) for key in others)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def show(title: str, columns: Mapping[str, str], rows: Sequence[Record]) -> None:
    """The same table on the terminal."""
    table = Table(title=title)
    for i, heading in enumerate(columns.values()):
        table.add_column(heading, justify="right" if i else "left")
    for row in rows:
        table.add_row(*(significant(row.get(key)) for key in columns))
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)


def place(stem: str, options: argparse.Namespace) -> Path:
    """Where a result goes; other kernels or threads than the usual do not overwrite the usual.

    A --quick run writes to results/quick, which git ignores.
    """
    folder = RESULTS / "quick" if options.quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    if options.variant != tg.kernels.available()[0]:
        stem += f"-{options.variant}"
    if options.threads > 1:
        stem += f"-{options.threads}threads"
    if options.fresh_memory:
        stem += "-fresh"
    return folder / stem


def save(
    stem: str, options: argparse.Namespace, rows: Sequence[Record], text: Sequence[str]
) -> None:
    """Write the rows as JSON and CSV, and `text`, heading first, as Markdown."""
    path = place(stem, options)
    about = machine(options)
    rounded = [{key: _rounded(value) for key, value in row.items()} for row in rows]
    result = {"machine": about, "rows": rounded}
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    keys = list(dict.fromkeys(key for row in rounded for key in row))
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, keys, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rounded)
    heading, *rest = text
    lines = [heading, "", machine_line(about), "", *rest]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
