"""Whether codecs that claim no bias have none: the mean over 10,000 seeds of what they decode to.

    python benchmarks/bias.py

For each entry of a fixed vector, the mean error over the seeds is divided by its standard error;
without bias that quotient is a standard normal, and the largest of them all stays below 4. Biased
codecs stand beside: error feedback is what they need.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable

import harness
import numpy as np
import numpy.typing as npt
from report import Record, markdown, save, show
from rich.progress import track

import tersegrad as tg

Floats = npt.NDArray[np.float32]

COLUMNS = {
    "codec": "codec", "claims": "claims no bias", "z": "largest |mean error| / standard error",
    "share": "squared bias / |x|^2", "nmse": "NMSE of a call",
}  # fmt: skip

LIMIT = 4.0


def vector(n: int = 64) -> Floats:
    """Entries of many sizes, a spike among them, and a length that no block divides."""
    draw = np.random.default_rng(1)
    x = draw.standard_normal(n - 1) * np.exp(draw.standard_normal(n - 1))
    return np.append(x, 9.0).astype(np.float32)


def stochastic(codec: tg.Codec) -> Callable[[int], tg.Codec]:
    return lambda seed: dataclasses.replace(codec, seed=seed)  # type: ignore[type-var]


def codecs() -> dict[str, tuple[Callable[[int], tg.Codec], bool]]:
    """The codec of a seed, and whether it claims to be unbiased."""
    no_bias: list[tg.Codec] = [
        *(tg.Rotated(bits, block=64) for bits in (0.25, 1, 2, 3, 4)),
        *(tg.Quantize(bits=bits, rounding="stochastic") for bits in (8, 4, 2)),
        *(tg.Quantize(bits=bits, rounding="stochastic", scale="l2") for bits in (8, 4, 2)),
        tg.Natural(rounding="stochastic"),
        tg.Float8("e4m3", rounding="stochastic"),
        tg.Float8("e5m2", rounding="stochastic"),
        tg.Integers(bits=16, scale=2.0**-8, rounding="stochastic"),
    ]
    biased: list[tg.Codec] = [
        tg.Rotated(1, block=64, scale="mmse"),
        tg.RandomK(0.25),
        tg.Quantize(bits=4),
        tg.Sign(),
        tg.TopK(0.25, values=4),
    ]
    made: dict[str, tuple[Callable[[int], tg.Codec], bool]] = {}
    for codec in no_bias:
        made[repr(codec)] = (stochastic(codec), True)
    for codec in biased:
        has_seed = "seed" in {field.name for field in dataclasses.fields(codec)}  # type: ignore[arg-type]
        made[repr(codec)] = (stochastic(codec) if has_seed else lambda _, c=codec: c, False)
    return made


def measured(of_seed: Callable[[int], tg.Codec], x: Floats, seeds: int) -> Record:
    total, squares = np.zeros(x.size), np.zeros(x.size)
    for seed in range(seeds):
        error = np.asarray(tg.decompress(tg.compress(x, of_seed(seed))), np.float64) - x
        total += error
        squares += error * error
    mean = total / seeds
    deviation = np.sqrt(np.maximum(squares / seeds - mean * mean, 0) / seeds)
    power = float(np.square(x, dtype=np.float64).sum())
    # An entry that decodes to the same value for every seed has no spread: it is exact, or biased.
    rounding = 1e-6 * np.abs(x)
    z = np.abs(mean) / np.maximum(deviation, rounding + 1e-12)
    return {
        "z": float(z.max()),
        "share": float(mean @ mean) / power,
        "nmse": float(squares.sum()) / seeds / power,
    }


def main() -> int:
    parse = harness.parser(__doc__ or "", seconds=0)
    parse.set_defaults(entries=64)
    parse.add_argument("--seeds", type=int, default=10_000)
    options = parse.parse_args()
    harness.start(options)
    seeds = 500 if options.quick else options.seeds
    x = vector(options.entries)
    records: list[Record] = []
    for name, (of_seed, claims) in track(codecs().items(), "codecs", disable=options.quiet):
        record = {"codec": name, "claims": "yes" if claims else "no"}
        records.append(record | measured(of_seed, x, seeds))
    show(f"bias over {seeds:,} seeds", COLUMNS, records)
    text = ["# Bias", f"{x.size} entries, {seeds:,} seeds.", "", *markdown(COLUMNS, records)]
    save("bias", options, records, text)
    failed = [r["codec"] for r in records if r["claims"] == "yes" and r["z"] > LIMIT]
    print(*(f"{name} is biased" for name in failed), sep="\n", end="\n" if failed else "")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
