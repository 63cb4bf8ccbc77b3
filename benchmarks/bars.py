"""The bars of issues 2 and 3, each with what this machine measures now and whether it is met.

    python benchmarks/bars.py                    everything, about two minutes
    python benchmarks/bars.py --only topk        the bars whose text contains "topk", case ignored
    python benchmarks/bars.py --variant avx2     the same bars on other kernels

All times are ratios within one interleaved run. Writes benchmarks/results/bars.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and torch start their pools

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import bars_rows
import harness
import models_table
import roofline
from bars_memory import peak_extra_memory
from harness import Samples
from inputs import ADVERSARIES, cached
from report import markdown, save, show, significant

import tersegrad as tg

RowName = str
Found = tuple[float, str]  # a value, and its spread or the worst rows as text
COLUMNS = {
    "measure": "measure", "issue": "issue", "bar": "bar", "measured": "measured", "met": "met",
    "note": "quartiles or worst rows",
}  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """A promise: `measure` gives the value and its spread as text from the samples of the run."""

    issue: int
    text: str
    limit: float
    measure: Callable[[dict[RowName, Samples]], Found]
    above: bool = False  # whether more is better
    unit: str = "x"
    why: Callable[[dict[RowName, Samples]], str] | None = None  # should it be missed

    def met(self, value: float) -> bool:
        return value >= self.limit if self.above else value <= self.limit


def against(row: RowName, *roofline: RowName) -> Callable[[dict[RowName, Samples]], Found]:
    """Time of `row` over that of the rooflines."""

    def ratio(samples: dict[RowName, Samples]) -> Found:
        value, low, high = samples[row].ratio(*(samples[name] for name in roofline))
        return value, f"{low:.2f}-{high:.2f}"

    return ratio


def bytes_moved(
    row: RowName, read: RowName, write: RowName
) -> Callable[[dict[RowName, Samples]], Found]:
    """Time of `row` over that of reading its input and writing its output past the caches.

    That is the strictest reading of "read + write of its bytes"; the note adds the ratio with
    ordinary stores.
    """

    def ratio(samples: dict[RowName, Samples]) -> Found:
        value, low, high = samples[row].ratio(samples[read], samples[f"{write} streaming"])
        plain = samples[row].ratio(samples[read], samples[write])[0]
        return value, f"{low:.2f}-{high:.2f}; with ordinary stores {plain:.2f}"

    return ratio


def faster(row: RowName, peer: RowName) -> Callable[[dict[RowName, Samples]], Found]:
    """How many times faster `row` is than `peer`."""

    def ratio(samples: dict[RowName, Samples]) -> Found:
        value, low, high = samples[peer].ratio(samples[row])
        return value, f"{low:.1f}-{high:.1f}"

    return ratio


def worst(pairs: list[tuple[RowName, RowName]]) -> Callable[[dict[RowName, Samples]], Found]:
    """The largest ratio, per byte of input, of (row, roofline) pairs; the note names the worst."""

    def per_byte(samples: dict[RowName, Samples], row: RowName, base: RowName) -> float:
        scale = samples[base].row.bytes / samples[row].row.bytes
        return samples[row].ratio(samples[base])[0] * scale

    def ratio(samples: dict[RowName, Samples]) -> Found:
        found = sorted(((per_byte(samples, row, base), row) for row, base in pairs), reverse=True)
        if not found:
            return math.nan, "python benchmarks/gradients.py makes them"
        return found[0][0], "; ".join(f"{row} {value:.2f}" for value, row in found[:4])

    return ratio


def constant(value: float, note: str = "") -> Callable[[dict[RowName, Samples]], Found]:
    return lambda samples: (value, note)


def microseconds(rows: list[RowName]) -> Callable[[dict[RowName, Samples]], Found]:
    """The slowest of some rows in microseconds per call."""

    def slowest(samples: dict[RowName, Samples]) -> Found:
        found = sorted(((samples[row].median * 1e6, row) for row in rows), reverse=True)
        return found[0][0], "; ".join(f"{row} {value:.1f}" for value, row in found)

    return slowest


def per_tensor(rows: list[RowName], count: int) -> Callable[[dict[RowName, Samples]], Found]:
    """The slowest of some rows that do many tensors, in microseconds per tensor."""
    slowest = microseconds(rows)

    def each(samples: dict[RowName, Samples]) -> Found:
        value, note = slowest(samples)
        return value / count, note + " per call"

    return each


def all_bars(entries: int) -> list[Bar]:
    """The two tables, in the order of the issues."""
    return [
        Bar(2, "compress(x, TopK(0.01)) against torch.topk(x.abs(), k)", 20,
            faster("compress topk 1%", "torch.topk 1%"), above=True),
        Bar(2, "the same, with residual, against r += g", 2.2,
            against("compress topk 1% + residual", "r += g")),
        Bar(2, "compress(x, Quantize(4)) against a plain read", 1.8,
            against("compress quantize 4", "read")),
        Bar(2, "compress(x, Quantize(8)) against bitsandbytes quantize_blockwise", 5,
            faster("compress quantize 8", "bitsandbytes 8"), above=True),
        Bar(2, "one compress of 1,000 values from Python", 25,
            microseconds(list(bars_rows.SMALL)), unit="us"),
        Bar(2, "TopK(0.01, values=Quantize(4)), n = 2^24: bits per kept entry", 12.75,
            constant(bars_rows.bits_per_kept_entry()), unit="bits"),
        Bar(2, "peak extra memory of compress, top-k 1%, of the input", 5,
            lambda samples: peak_extra_memory(entries), unit="%"),
        *(
            Bar(3, f"exact top-k {name}, indices and values, against read", limit,
                against(f"select {name}", "read"))
            for name, limit in (("0.1%", 1.25), ("1%", 1.6), ("10%", 3.0))
        ),
        Bar(3, "exact top-k 1% against torch.topk", 35,
            faster("select 1%", "torch.topk 1%"), above=True),
        Bar(3, "error feedback + exact top-k 0.1%, against r += g", 1.15,
            against("select 0.1% + feedback", "r += g")),
        Bar(3, "error feedback + exact top-k 1%, against r += g", 1.35,
            against("select 1% + feedback", "r += g")),
        Bar(3, "feedback, topk 1%, 4-bit values, Elias-Fano, checksum, against r += g", 1.5,
            against("full compress", "r += g"), why=why_full_compress),
        Bar(3, 'the same with nonfinite="reset", against r += g', 1.5,
            against("full compress, reset", "r += g")),
        *(
            Bar(3, f"quantize {bits} nearest, against read + write of its bytes", 1.3,
                bytes_moved(f"quantize {bits}", "read", f"write {bits}"))
            for bits in (8, 4, 2)
        ),
        *(
            Bar(3, f"quantize {bits} stochastic, against read + write of its bytes", 1.6,
                bytes_moved(f"quantize {bits} stochastic", "read", f"write {bits}"))
            for bits in (8, 4, 2)
        ),
        *(
            Bar(3, f"quantize {bits} + feedback, against r += g", 1.35,
                against(f"quantize {bits} + feedback", "r += g"))
            for bits in (8, 4, 2)
        ),
        *(
            Bar(3, f"quantize {bits} stochastic + feedback, against r += g", 1.35,
                against(f"quantize {bits} stochastic + feedback", "r += g"))
            for bits in (8, 4, 2)
        ),
        Bar(3, "sign pack with scale, against read + write of its bytes", 1.3,
            bytes_moved("sign pack", "read", "write 1")),
        Bar(3, "sign unpack, against read + write of its bytes", 1.3,
            bytes_moved("sign unpack", "read 1", "write")),
        Bar(3, "decompress-and-add of a top-1% payload against torch index_add_", 1.0,
            against("decompress-add topk 1%", "index_add_ 1%")),
        Bar(3, "AVX2 against AVX-512, worst row", 1.35,
            worst([(f"{row} (avx2)", row) for row in bars_rows.KERNEL_ROWS]), why=why_avx2),
        *(
            Bar(3, f"worst adversarial input against the gaussian row, exact topk {share}", 4,
                worst([(f"select {share} {name}", f"select {share}") for name in ADVERSARIES]))
            for share in ("0.1%", "1%", "10%")
        ),
        Bar(3, "worst real gradient against the gaussian row, exact topk", 4,
            worst([(f"select {share} {name}", f"select {share}")
                   for share in ("0.1%", "1%", "10%") for name in cached()])),
        Bar(3, "compress_many of 161 tensors of 64 entries: per tensor", 2,
            per_tensor(models_table.SMALL_ROWS, 161), unit="us"),
        Bar(3, "2-byte inputs: seconds per byte over those of float32, worst row", 1.25,
            worst_per_byte(entries), why=why_two_bytes),
    ]  # fmt: skip


def worst_per_byte(entries: int) -> Callable[[dict[RowName, Samples]], Found]:
    """2-byte rows against their float32 rows, per byte of what they read.

    With feedback that includes the residual, float32 in both. Decoding has no 2-byte input and is
    left out.
    """

    def ratio(samples: dict[RowName, Samples]) -> Found:
        found = []
        for row in bars_rows.KERNEL_ROWS:
            if row == "sign unpack" or row.startswith("decompress"):
                continue
            residual = 4 * entries if "feedback" in row or row == "full compress" else 0
            for dtype in bars_rows.HALVES:
                half = samples[f"{row} ({dtype})"]
                scale = (4 * entries + residual) / (2 * entries + residual)
                found.append((half.ratio(samples[row])[0] * scale, half.row.name))
        found.sort(reverse=True)
        return found[0][0], "; ".join(f"{row} {value:.2f}" for value, row in found[:6])

    return ratio


def why_full_compress(samples: dict[RowName, Samples]) -> str:
    check, add = samples["all finite"], samples["r += g"]
    share = check.ratio(add)[0]
    reset = samples["full compress, reset"].ratio(add)[0]
    return (
        f"A residual must stay as it was when x holds a NaN, so x is read once before it is touched: {1e3 * check.median:.1f} ms, "
        f'{share:.2f} of r += g. Without that read (nonfinite="reset") the call takes {reset:.2f}.'
    )


def why_avx2(samples: dict[RowName, Samples]) -> str:
    calm = [row for row in bars_rows.KERNEL_ROWS if "stochastic" not in row]
    value, note = worst([(f"{row} (avx2)", row) for row in calm])(samples)
    return (
        "The noise of stochastic rounding is seven rounds of multiplications, half as many lanes at a time on AVX2. "
        f"Without noise the worst row is {value:.2f}: {note.split(';')[0]}."
    )


def why_two_bytes(samples: dict[RowName, Samples]) -> str:
    name = bars_rows.CACHED_ROW
    found = [
        f"{dtype} {samples[f'{name} ({dtype})'].gigabytes:.2f} from memory, "
        f"{samples[f'{name} ({dtype}, in cache)'].gigabytes:.2f} from the cache"
        for dtype in bars_rows.HALVES
    ]
    return (
        f"Instructions per entry, not memory, are the limit of quantization: `{name}` reads, in GB/s, {'; '.join(found)}. "
        "Half the bytes are as many entries to convert, scale, round and pack."
    )


class Needs(dict[str, Samples]):
    """Stands for the samples before there are any, to learn which rows a bar reads."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __missing__(self, name: str) -> Any:
        self.names.append(name)
        stand_in = harness.Row(name, lambda: None, 1)
        return Samples(stand_in, {0: 1.0})


def needed_rows(bars: list[Bar]) -> set[str]:
    """The rows that some bars read."""
    needs = Needs()
    for bar in bars:
        if "memory" not in bar.text:
            bar.measure(needs)
        if bar.why is not None:
            bar.why(needs)
    return set(needs.names)


def main() -> int:
    parse = harness.parser(__doc__ or "", seconds=60)
    parse.add_argument("--only", default="", help="only bars whose text contains this")
    options = parse.parse_args()
    harness.start(options)
    bars = [bar for bar in all_bars(options.entries) if options.only.lower() in bar.text.lower()]
    if "avx512" not in tg.kernels.available() or options.variant != "avx512":
        bars = [bar for bar in bars if not bar.text.startswith("AVX2")]
    if not bars:
        sys.exit(f"no bar contains {options.only!r}")
    rows = bars_rows.build(options.entries, needed_rows(bars), options.variant, options.quiet)
    samples = harness.measure(rows, seconds=options.seconds, quiet=options.quiet)
    report(bars, samples, options)
    return 0


def report(bars: list[Bar], samples: dict[str, Samples], options: Any) -> None:
    """Print the table and save it."""
    rows, missed, reasons = [], 0, []
    for bar in bars:
        try:
            value, note = bar.measure(samples)
        except (KeyError, RuntimeError) as error:  # a peer or an operation is not there
            value, note = math.nan, f"not measured: {error}"
        missed += not bar.met(value)
        if bar.why is not None and not bar.met(value):
            reasons.append(f"* **{bar.text}**: {bar.why(samples)}")
        rows.append(
            {
                "issue": str(bar.issue),
                "measure": bar.text,
                "bar": f"{'>=' if bar.above else '<='} {bar.limit:g} {bar.unit}",
                "measured": f"{value:.{2 if value < 100 else 0}f} {bar.unit}",
                "met": "yes" if bar.met(value) else "NO",
                "note": note,
            }
        )
    count = f"{len(bars) - missed} of {len(bars)} bars met"
    show(f"{count}; kernels {options.variant}, {options.threads} thread(s)", COLUMNS, rows)
    behind = []
    for name, sample in samples.items():
        low, high = (1e3 * seconds for seconds in sample.quartiles)
        spread = f"{significant(low)}-{significant(high)}"
        ms, gbps = sample.median * 1e3, sample.gigabytes
        behind.append({"row": name, "ms": ms, "spread": spread, "gbps": gbps})
    columns = {"row": "row", "ms": "ms", "spread": "quartiles", "gbps": "GB/s of input"}
    text = ["# The bars", f"**{count}.** {roofline.how()}.", "", *markdown(COLUMNS, rows), ""]
    text += [
        "Not measured here: the accuracy of the demo (`make demo`); bit-identity (`make test`)."
    ]
    if reasons:
        text += ["", "## Why the misses", "", *reasons]
    text += ["", "## The rows behind them", "", *markdown(columns, behind)]
    if not options.only:
        save("bars", options, rows, text)


if __name__ == "__main__":
    sys.exit(main())
