"""Whether codecs that claim no bias have none: the mean over 10,000 seeds of what they decode to.

    python benchmarks/bias.py

The mean error over the seeds, projected on 22 directions (the signs of x, all ones, 20 random ones),
is divided by its standard error: without bias these quotients are standard normals, and the largest
stays below 4. Biased codecs stand beside: error feedback is what they need. One vector is normal;
in the other a few entries hold most of the energy, which the random Hadamard transform of `Rotated`
spreads well but not perfectly.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable

import harness
import numpy as np
import numpy.typing as npt
from rate import shorter
from report import Record, markdown, save, show
from rich.progress import track

import tersegrad as tg

Floats = npt.NDArray[np.float32]

COLUMNS = {
    "codec": "codec", "claims": "claims no bias", "z": "largest z, normal",
    "share": "squared bias / energy", "nmse": "NMSE of a call", "z_outliers": "largest z, outliers",
    "share_outliers": "squared bias / energy, outliers",
}  # fmt: skip

LIMIT = 4.0


def vectors(n: int) -> dict[str, Floats]:
    """A normal vector, and one with every 64th entry a hundred times as large."""
    x = np.random.default_rng(1).standard_normal(n).astype(np.float32)
    outliers = x.copy()
    outliers[::64] *= 100
    return {"": x, "_outliers": outliers}


def stochastic(codec: tg.Codec) -> Callable[[int], tg.Codec]:
    return lambda seed: dataclasses.replace(codec, seed=seed)  # type: ignore[type-var]


def codecs() -> dict[str, tuple[Callable[[int], tg.Codec], bool]]:
    """The codec of a seed, and whether it claims to be unbiased."""
    no_bias: list[tg.Codec] = [
        *(tg.Rotated(bits, block=1024) for bits in (0.25, 1, 2, 3, 4)),
        *(tg.Quantize(bits=bits, rounding="stochastic") for bits in (8, 4, 2)),
        *(tg.Quantize(bits=bits, rounding="stochastic", scale="l2") for bits in (8, 4, 2)),
        tg.Natural(rounding="stochastic"),
        tg.Float8("e4m3", rounding="stochastic"),
        tg.Float8("e5m2", rounding="stochastic"),
        tg.Integers(bits=16, scale=2.0**-6, rounding="stochastic"),
    ]
    biased: list[tg.Codec] = [
        tg.Rotated(1, block=1024, scale="mmse"),
        tg.RandomK(0.25),
        tg.Quantize(bits=4),
        tg.Sign(),
        tg.TopK(0.25, values=4),
    ]
    made: dict[str, tuple[Callable[[int], tg.Codec], bool]] = {}
    for codec in no_bias:
        made[shorter(codec)] = (stochastic(codec), True)
    for codec in biased:
        has_seed = "seed" in {field.name for field in dataclasses.fields(codec)}  # type: ignore[arg-type]
        made[shorter(codec)] = (stochastic(codec) if has_seed else lambda _, c=codec: c, False)
    return made


def measured(of_seed: Callable[[int], tg.Codec], x: Floats, seeds: int) -> Record:
    directions = np.random.default_rng(2).choice((-1.0, 1.0), (22, x.size))
    directions[0], directions[1] = np.sign(x), 1.0
    total, squares = np.zeros(x.size), 0.0
    along, along_squares = np.zeros(22), np.zeros(22)
    for seed in range(seeds):
        error = np.asarray(tg.decompress(tg.compress(x, of_seed(seed))), np.float64) - x
        total += error
        squares += float(error @ error)
        projected = directions @ error
        along += projected
        along_squares += projected * projected
    mean = along / seeds
    deviation = np.sqrt(np.maximum(along_squares / seeds - mean * mean, 0) / seeds)
    power = float(np.square(x, dtype=np.float64).sum())
    # What the mean's noise adds to its square is taken off.
    bias = float(total @ total) / seeds**2 - squares / seeds**2
    return {
        # Nothing to divide by: the error is the same for every seed.
        "z": float((np.abs(mean) / deviation).max()) if deviation.all() else math.inf,
        "share": max(bias, 0.0) / power,
        "nmse": squares / seeds / power,
    }


def main() -> int:
    parse = harness.parser(__doc__ or "", seconds=0)
    parse.set_defaults(entries=1024)
    parse.add_argument("--seeds", type=int, default=10_000)
    options = parse.parse_args()
    harness.start(options)
    seeds = 500 if options.quick else options.seeds
    records: list[Record] = []
    for name, (of_seed, claims) in track(codecs().items(), "codecs", disable=options.quiet):
        record: Record = {"codec": name, "claims": "yes" if claims else "no"}
        for suffix, x in vectors(options.entries).items():
            record |= {key + suffix: value for key, value in measured(of_seed, x, seeds).items()}
        records.append(record)
    show(f"bias over {seeds:,} seeds", COLUMNS, records)
    text = [
        "# Bias",
        f"{options.entries:,} entries, {seeds:,} seeds.",
        "",
        *markdown(COLUMNS, records),
    ]
    save("bias", options, records, text)
    failed = [r["codec"] for r in records if r["claims"] == "yes" and r["z"] > LIMIT]
    print(*(f"{name} is biased" for name in failed), sep="\n", end="\n" if failed else "")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
