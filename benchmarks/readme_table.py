"""The README's measured table, from benchmarks/results/codecs.json, so that no figure in it is
typed by hand.

    python benchmarks/readme_table.py                     print it
    python benchmarks/readme_table.py --write README.md   put it between the marks
    python benchmarks/readme_table.py --check README.md   exit with status 1 unless it is there

The marks are the lines <!-- table:begin --> and <!-- table:end -->.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"

#: Rows of codecs.json and what the README calls them.
ROWS = {
    "TopK 1%, 4-bit": "`TopK(0.01, values=Quantize(4))`",
    "TopK 1%": "`TopK(0.01)`",
    "torch.topk 0.01": "torch.topk of abs, int64 indices",
    "numpy argpartition 0.01": "numpy argpartition, int64 indices",
    "Quantize 4": "`Quantize(4)`",
    "Quantize 8": "`Quantize(8)`",
    "bitsandbytes 8-bit": "bitsandbytes 8-bit",
    "bitsandbytes nf4": "bitsandbytes nf4 (4-bit)",
    "Sign": "`Sign()`",
    "numpy packbits signs": "numpy packbits",
    "Cast bfloat16": '`Cast("bfloat16")`',
    "torch to bfloat16": "torch to bfloat16",
}


def significant(value: float) -> str:
    return f"{value:.0f}" if value >= 99.5 else f"{value:.2g}" if value < 10 else f"{value:.3g}"


def error(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def table(result: dict[str, Any]) -> str:
    """The table and the line under it."""
    rows = {row["name"]: row for row in result["rows"]}
    machine, read = result["machine"], rows["read"]["compress_gbps"]
    lines = [
        "| | ratio | NMSE | compress GB/s | decompress GB/s |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, label in ROWS.items():
        row = rows.get(name)
        if row is None:
            continue
        cells = [f"{significant(row['ratio'])}x", error(row["nmse"])]
        cells += [significant(row[f"{side}_gbps"]) for side in ("compress", "decompress")]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"One thread, {machine['kernels']}, {machine['processor']}, {machine['entries']:,} float32 "
        f"gaussian x uniform^3; GB/s of input, medians of one interleaved run in which reading the "
        f"tensor once ran at {significant(read)} GB/s. NMSE is |x - decoded|^2 / |x|^2 of a call, "
        "before error feedback sends the rest. All rows, also those that lose: "
        "[benchmarks/results/codecs.md](benchmarks/results/codecs.md).",
    ]
    return "\n".join(lines)


def section(text: str, path: Path) -> tuple[int, int]:
    """Where the table goes: from after the first mark to before the second."""
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        sys.exit(f"{path} has no section between {BEGIN} and {END}")
    return begin + len(BEGIN), end


def main() -> int:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parse.add_argument(
        "--check", type=Path, metavar="FILE", help="compare with this file's section"
    )
    parse.add_argument("--write", type=Path, metavar="FILE", help="replace this file's section")
    options = parse.parse_args()
    source = RESULTS / "codecs.json"
    if not source.exists():
        sys.exit(f"{source} is missing: run python benchmarks/codecs.py first")
    made = table(json.loads(source.read_text()))
    path = options.check or options.write
    if path is None:
        print(made)
        return 0
    text = path.read_text()
    begin, end = section(text, path)
    if options.write:
        path.write_text(text[:begin] + "\n" + made + "\n" + text[end:])
        return 0
    if text[begin:end].strip() != made:
        print(f"the table of {path} is not that of {source}: run with --write {path}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
