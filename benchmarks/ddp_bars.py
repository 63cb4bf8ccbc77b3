"""What ddp.py must show, beside what it has measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ddp_methods import METHODS

if TYPE_CHECKING:
    from ddp_report import Results

Record = dict[str, Any]
COLUMNS = {"measure": "measure", "row": "row", "bar": "bar", "measured": "measured", "met": "met"}


def bars(results: Results) -> list[Record]:
    """The bars whose tables have been measured, each for the best of our rows that has a loss."""
    perceptron, transformer = "perceptron, 100 Mbit/s", "transformer, 10 Mbit/s"
    lines = []
    if rows := results.rows(2, "mlp", 100, 1500):
        ours = _fastest([row for row in rows if _ours(row)])
        lines += [
            _line(f"{perceptron}: steps per second over float32", ours, "over_fp32", at_least=20),
            _line(
                f"{perceptron}: steps per second over the bf16 hook", ours, "over_bf16", at_least=10
            ),
            _first(f"{perceptron}: seconds to float32's last loss", rows, "seconds_to"),
            _line(f"{perceptron}: wire / payload", ours, "overhead", at_most=1.05),
        ]
    if rows := results.rows(2, "mlp", 100, 9000):
        ours = _fastest([row for row in rows if _ours(row)])
        lines.append(
            _line(f"{perceptron}, MTU 9000: wire / payload", ours, "overhead", at_most=1.05)
        )
    if rows := results.rows(2, "mlp", 1000, 1500):
        lines += [
            _first("perceptron, 1 Gbit/s: seconds to float32's last loss", rows, "seconds_to"),
            _first("perceptron, 1 Gbit/s: ms of a step", rows, "step"),
        ]
    if rows := results.rows(2, "transformer", 10, 1500):
        ours = _nearest([row for row in rows if _ours(row)])
        lines += [
            _line(f"{transformer}: steps per second over float32", ours, "over_fp32", at_least=50),
            _line(
                f"{transformer}: loss over float32 at equal steps, %",
                ours,
                "loss_change",
                at_most=1,
            ),
        ]
    return [line for line in lines if line is not None]


def _ours(row: Record) -> bool:
    return METHODS[row["method"]].ours


def _fastest(rows: Sequence[Record]) -> Record:
    """The first at float32's last loss; where no row has losses, the one with the fastest step."""
    return min(rows, key=lambda row: (row.get("seconds_to", float("inf")), row["step"]))


def _nearest(rows: Sequence[Record]) -> Record:
    """The fastest within one percent of float32's loss; where there is none, the one nearest to it."""
    change = {row["method"]: row.get("loss_change", float("inf")) for row in rows}
    return min(rows, key=lambda row: (max(change[row["method"]], 1), row["step"]))


def _line(
    measure: str,
    row: Record,
    key: str,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Record | None:
    if row.get(key) is None:
        return None
    value = row[key]
    met = value >= at_least if at_least is not None else value <= at_most
    bar = f">= {at_least:g}" if at_least is not None else f"<= {at_most:g}"
    return {
        "measure": measure,
        "row": row["label"],
        "bar": bar,
        "measured": f"{value:.4g}",
        "met": "yes" if met else "no",
    }


def _first(measure: str, rows: Sequence[Record], key: str) -> Record | None:
    """The fastest of our rows against the fastest of PyTorch's."""
    rows = [row for row in rows if row.get(key) is not None and row["method"] != "noop"]
    if len({_ours(row) for row in rows}) < 2:
        return None
    ours = min((row for row in rows if _ours(row)), key=lambda row: row[key])
    peer = min((row for row in rows if not _ours(row)), key=lambda row: row[key])
    return {
        "measure": measure,
        "row": ours["label"],
        "bar": f"<= {peer[key]:.4g} ({peer['label']})",
        "measured": f"{ours[key]:.4g}",
        "met": "yes" if ours[key] <= peer[key] else "no",
    }
