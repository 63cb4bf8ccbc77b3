"""Tables and progress bars: with rich where it is installed, else plain text."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

#: Columns of a table where no terminal says how wide it is.
WIDTH = 120

_STYLES = {"best": "bold green", "over": "dim", "": ""}


def has_rich() -> bool:
    """Whether tables can be drawn."""
    return importlib.util.find_spec("rich") is not None


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    marks: Sequence[str] | None = None,
    *,
    left: int = 1,
) -> None:
    """Print to standard output. The first `left` columns are text, the others numbers; a mark is "best", "over" or "" for each row."""
    marks = [""] * len(rows) if marks is None else marks
    if not has_rich():
        _print_plain(title, columns, rows, left)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for place, column in enumerate(columns):
        if place < left:
            table.add_column(column, overflow="fold")
        else:
            table.add_column(column, justify="right", no_wrap=True)
    for row, mark in zip(rows, marks, strict=True):
        table.add_row(*(Text(cell) for cell in row), style=_STYLES[mark])
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    console.print(table)


def _print_plain(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int
) -> None:
    print(title)
    lines = [[column.replace("\n", " ") for column in columns], *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    for line in lines:
        cells = [
            cell.rjust(width) if place >= left else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """Gives a function that takes how much is done, of how much, and what comes next. All goes to standard error."""
    if not has_rich():
        with _plain_progress() as show:
            yield show
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    with Progress(
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total, what: progress.update(
            task, completed=done, total=total, description=what
        )


@contextmanager
def _plain_progress() -> Iterator[Callable[[int, int, str], None]]:
    terminal = sys.stderr.isatty()

    def show(done: int, total: int, what: str) -> None:
        if terminal:
            print(f"\r{done} of {total}: {what:<70.70}", end="", file=sys.stderr, flush=True)

    yield show
    if terminal:
        print("\r" + " " * 90 + "\r", end="", file=sys.stderr, flush=True)
