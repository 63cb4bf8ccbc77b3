"""The README's measured tables, so that no figure in them is typed by hand: the one at its head from
benchmarks/results/codecs.json, that of all codecs from rate.json, that of slow cables from ddp.json.

    python benchmarks/readme_table.py                     print them
    python benchmarks/readme_table.py --write README.md   put them between the marks
    python benchmarks/readme_table.py --check README.md   exit with status 1 unless they are there

The marks are the lines <!-- table:begin --> and <!-- table:end -->, and the same with `codecs` and `cables`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ddp_report import Results

RESULTS = Path(__file__).parent / "results"
#: Hosts, model, Mbit/s and MTU of the two halves of the table of cables, and what the README calls them.
CABLES = {
    (2, "mlp", 100, 1500): "10 M perceptron, 100 Mbit/s",
    (2, "transformer", 10, 1500): "3.2 M transformer, 10 Mbit/s",
}

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

#: Every codec: its row in rate.json if one call on gaussian entries says anything of it; bias, state,
#: sums, use.
CODECS: dict[str, tuple[str, str, str, str, str]] = {
    "`TopK(density, values=, indices=)`": (
        "TopK(density=0.01, values=Magnitudes())", "yes", "yes", "",
        "slow links: exact top-k, with error feedback; a number of bits as `values` is `Magnitudes`",
    ),
    "`Threshold(value=)` or `(density=)`": (
        "Threshold(density=0.01, values=Magnitudes())", "yes", "yes", "",
        "messages as large as the gradient makes them: a threshold, given or fitted (SIDCo)",
    ),
    "`ChunkTopK(k, chunk, values=)`": (
        "ChunkTopK(values=Magnitudes(bits=2))", "yes", "yes", "", "as `TopK`, and no layer starves",
    ),
    "`RandomK(density, seed)`": (
        "RandomK(density=0.01)", "yes", "yes", "yes", "cheapest; both sides draw the mask, no indices travel",
    ),
    "`LowRank(rank, factors=)`": (
        "", "yes", "yes", "", "large matrices (PowerSGD); averaged by all-reduce in the DDP hook",
    ),
    "`Rotated(bits, block, scale)`": (
        "Rotated()", "none", "no", "", "many senders without state; 4, 3, 2, 1, down to 0.1 bits",
    ),
    "`Quantize(bits, block_size, rounding, scale=)`": (
        "Quantize(bits=4)", "none with `stochastic`", "for 2 bits", "", "first thing to try; `scale=\"l2\"` is QSGD",
    ),
    "`Magnitudes(bits, block_size, grid)`": (
        "Magnitudes()", "yes", "yes", "", "what a top-k keeps",
    ),
    "`NF4(block_size)`": ("NF4()", "yes", "no", "", "bell-shaped blocks"),
    "`Float8(format, block_size, rounding)`": (
        "Float8()", "none with `stochastic`", "no", "", "blocks with outliers",
    ),
    "`Natural(block_size, rounding)`": ("Natural()", "none", "no", "", "entries of many orders of magnitude"),
    "`Sign(block_size)`": ("Sign()", "yes", "yes", "", "one bit, with error feedback"),
    "`Ternary(block_size, threshold)`": (
        "Ternary()", "yes", "yes", "", "STC: `TopK(0.01, values=Ternary(), indices=\"rice\")`",
    ),
    "`Integers(bits, scale=, addends=)`": (
        "", "none with `stochastic`", "no", "yes", "all-reduce, secure aggregation ([sums](docs/sums.md))",
    ),
    "`Zstd(codec)`": ("", "as inside", "as inside", "", "4-bit bodies on slow links (extra `zstd`)"),
    "`Cast(dtype)`": ('Cast(dtype=\'bfloat16\')', "hardly", "no", "yes", "the baseline to beat"),
    "`Identity()`": ("", "none", "no", "yes", "what must be exact"),
}  # fmt: skip


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


def codecs_table(result: dict[str, Any]) -> str:
    """All codecs: what they cost and what they need."""
    rows = {row["codec"]: row for row in result["rows"] if row["input"] == "gaussian"}
    lines = [
        "| codec | bits | NMSE | GB/s | bias | needs state | sums compressed | use it |",
        "|---|---:|---:|---:|---|---|---|---|",
    ]
    for label, (key, *words) in CODECS.items():
        row = rows.get(key)
        cells = ["", "", ""]
        if row is not None:
            cells = [significant(row["bits"]), error(row["nmse"]), significant(row["gbps"])]
        lines.append(f"| {label} | " + " | ".join([*cells, *words]) + " |")
    machine = result["machine"]
    lines += [
        "",
        "Bits for an entry with all bytes of the payload, error of one call, and input compressed a second, for "
        f"{machine['entries']:,} independent gaussian entries (of those nothing is easy to leave out; gradients are "
        f"kinder to sparse codecs), one thread, {machine['kernels']}, {machine['processor']} under load "
        f'{machine["load"]}. State is what error feedback keeps; "sums" says whether payloads add without decoding.',
    ]
    return "\n".join(lines)


def cables_table(results: Results) -> str:
    """Steps and losses on slow cables, of the rows that some table has a loss for."""
    tables = [{row["method"]: row for row in results.rows(*setting)} for setting in CABLES]
    heads = [f"{name}: steps a second | loss | seconds to float32's" for name in CABLES.values()]
    lines = [f"| gradients travel as | {' | '.join(heads)} |", "|---|" + "---:|" * 3 * len(CABLES)]
    for method in dict.fromkeys(method for rows in tables for method in rows):
        found = [rows.get(method, {}) for rows in tables]
        if all("loss" not in row for row in found):
            continue
        label = next(row["label"] for row in found if row)
        cells = [cell for row in found for cell in cable_cells(row)]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Steps a second over those of float32; test loss over float32's, after as many steps; seconds to the loss that float32 ends with.",
    ]
    return "\n".join(lines)


def cable_cells(row: dict[str, Any]) -> list[str]:
    if not row:
        return ["", "", ""]
    change, seconds = row.get("loss_change"), row.get("seconds_to")
    loss = "" if change is None else f"{change:+.1f} %"
    return [
        f"{significant(row['over_fp32'])}x",
        loss,
        "" if seconds is None else significant(seconds),
    ]


def made() -> dict[str, str]:
    """The tables by the name of their marks."""
    makers = {"table": ("codecs.json", table), "codecs": ("rate.json", codecs_table)}
    found = {"cables": cables_table(Results(RESULTS / "ddp"))}
    for name, (file, maker) in makers.items():
        source = RESULTS / file
        if not source.exists():
            sys.exit(f"{source} is missing: run python benchmarks/{source.stem}.py first")
        found[name] = maker(json.loads(source.read_text()))
    return found


def section(text: str, name: str, path: Path) -> tuple[int, int]:
    """Where a table goes: from after the first of its marks to before the second."""
    first, second = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    begin, end = text.find(first), text.find(second)
    if begin < 0 or end < begin:
        sys.exit(f"{path} has no section between {first} and {second}")
    return begin + len(first), end


def main() -> int:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parse.add_argument(
        "--check", type=Path, metavar="FILE", help="compare with this file's sections"
    )
    parse.add_argument("--write", type=Path, metavar="FILE", help="replace this file's sections")
    options = parse.parse_args()
    tables = made()
    path = options.check or options.write
    if path is None:
        print(*tables.values(), sep="\n\n")
        return 0
    text = path.read_text()
    differing = []
    for name, lines in tables.items():
        begin, end = section(text, name, path)
        if text[begin:end].strip() != lines:
            differing.append(name)
        text = text[:begin] + "\n" + lines + "\n" + text[end:]
    if options.write:
        path.write_text(text)
        return 0
    if differing:
        print(f"{path}: not as measured are {', '.join(differing)}: run with --write {path}")
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
