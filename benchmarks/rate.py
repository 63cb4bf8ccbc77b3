"""Error against bits, for every codec: one call, no error feedback, all bytes of the payload counted.

    python benchmarks/rate.py            gaussian entries, and the gradients that gradients.py has made

bits      of the payload, header and scales included, for each entry
NMSE      |x - decoded|^2 / |x|^2
cosine    of the angle between x and decoded
GB/s      of the float32 tensor, by the public `compress`

On independent gaussian entries no code of R bits an entry gets below an NMSE of 2^(-2R) (Shannon
1959); the line is drawn in. On gradients, whose entries differ in size, sparse codecs go below it.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and torch start their pools

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import harness
import numpy as np
import numpy.typing as npt
import rate_plot
from checks import nmse
from harness import Row, Samples
from inputs import real
from report import Record, about_run, markdown, place, save

import tersegrad as tg

Floats = npt.NDArray[np.float32]

COLUMNS = {
    "codec": "codec", "bits": "bits", "nmse": "NMSE", "bound": "gaussian bound",
    "cosine": "cosine", "gbps": "compress GB/s", "x_read": "x read",
}  # fmt: skip

DENSITIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


def families() -> dict[str, list[tg.Codec]]:
    """The curves: codecs of one kind, from few bits to many."""
    return {
        "TopK, 4-bit": [tg.TopK(d, values=4) for d in DENSITIES],
        "TopK, 4-bit, rice": [tg.TopK(d, values=4, indices="rice") for d in DENSITIES],
        "TopK, Quantize(4)": [tg.TopK(d, values=tg.Quantize(bits=4)) for d in DENSITIES],
        "TopK, Sign": [tg.TopK(d, values=tg.Sign()) for d in DENSITIES],
        "Threshold, 4-bit": [tg.Threshold(density=d, values=4) for d in DENSITIES],
        "ChunkTopK, 2-bit": [
            tg.ChunkTopK(k=k, chunk=4096, values=2) for k in (4, 16, 64, 256, 1024)
        ],
        "RandomK": [tg.RandomK(d) for d in DENSITIES],
        "Rotated": [tg.Rotated(bits) for bits in (0.1, 0.25, 0.5, 1, 2, 3, 4)],
        "Rotated, mmse": [tg.Rotated(bits, scale="mmse") for bits in (0.1, 0.25, 0.5, 1, 2, 3, 4)],
        "Quantize": [tg.Quantize(bits=bits) for bits in (2, 4, 8)],
        "Quantize, stochastic": [
            tg.Quantize(bits=bits, rounding="stochastic") for bits in (2, 4, 8)
        ],
        "Quantize, l2": [
            tg.Quantize(bits=bits, rounding="stochastic", scale="l2") for bits in (2, 4, 8)
        ],
        "Magnitudes": [tg.Magnitudes(bits=bits) for bits in range(2, 9)],
        "Sign": [tg.Sign()],
        "Ternary": [tg.Ternary()],
        "Natural": [tg.Natural()],
        "Float8": [tg.Float8("e4m3"), tg.Float8("e5m2")],
        "NF4": [tg.NF4()],
        "Cast": [tg.Cast("bfloat16"), tg.Cast("float16")],
    }


def inputs(options: Any) -> Iterator[tuple[str, Floats]]:
    draw = np.random.default_rng(0)
    yield "gaussian", draw.standard_normal(options.entries, dtype=np.float32)
    found, hint = real()
    for name in ("minilm", "cnn"):
        if name in found:
            yield name, found[name][: options.entries]
    if hint:
        print(hint, file=sys.stderr)


def cosine(x: Floats, decoded: Floats) -> float:
    a, b = x.astype(np.float64), decoded.astype(np.float64)
    norms = float(np.sqrt(a @ a) * np.sqrt(b @ b))
    return float(a @ b) / norms if norms else 0.0


def bound(bits: float) -> float:
    """The least NMSE that `bits` an entry allow on independent gaussian entries."""
    return float(2.0 ** (-2 * bits))


def shorter(codec: tg.Codec) -> str:
    """As one would write it: the fields that are not the defaults."""
    from dataclasses import MISSING, fields

    words = []
    for field in fields(codec):  # type: ignore[arg-type]
        value = getattr(codec, field.name)
        if field.default is MISSING or value != field.default:
            text = shorter(value) if isinstance(value, tg.Codec) else repr(value)
            words.append(f"{field.name}={text}")
    return f"{type(codec).__name__}({', '.join(words)})"


def records_of(name: str, x: Floats) -> Iterator[tuple[Record, Row]]:
    for family, codecs in families().items():
        for codec in codecs:
            payload = tg.compress(x, codec)
            decoded = np.asarray(tg.decompress(payload))
            bits = 8 * payload.nbytes / x.size
            record = {
                "input": name,
                "family": family,
                "codec": shorter(codec),
                "bits": bits,
                "nmse": nmse(x, decoded),
                "bound": bound(bits) if name == "gaussian" else None,
                "cosine": cosine(x, decoded),
            }
            if name == "gaussian":
                assert record["nmse"] > 0.999 * bound(bits), f"{codec} is below the bound"
            yield record, Row(f"{family} {codec}", partial(tg.compress, x, codec), 4 * x.size)


def measured(name: str, x: Floats, options: Any) -> list[Record]:
    pairs = list(records_of(name, x))
    rows = [Row("read", partial(np.max, x), 4 * x.size), *(row for _, row in pairs)]
    samples: dict[str, Samples] = harness.measure(
        rows, seconds=options.seconds, rounds=(3, 31), quiet=options.quiet
    )
    for record, row in pairs:
        sample = samples[row.name]
        record["gbps"], record["x_read"] = sample.gigabytes, sample.ratio(samples["read"])[0]
    return [record for record, _ in pairs]


def _part(name: str) -> str:
    return ", the first of its word embedding" if name == "minilm" else ""


def main() -> int:
    parse = harness.parser(__doc__ or "", seconds=40)
    parse.set_defaults(entries=2**22)
    options = parse.parse_args()
    harness.start(options)
    records: list[Record] = []
    text = ["# Error against bits", "", f"![error against bits]({place('rate', options).name}.png)"]
    for name, x in inputs(options):
        own = measured(name, x, options)
        records += own
        kept = COLUMNS if name == "gaussian" else {k: v for k, v in COLUMNS.items() if k != "bound"}
        text += ["", f"## {name}, {x.size:,} entries" + _part(name), "", *markdown(kept, own)]
    text += ["", "`x read` is time over `numpy.max` of the tensor, which reads it once."]
    save("rate", options, records, text)
    rate_plot.draw(records, place("rate", options).with_suffix(".png"), about_run(options))
    print(*text, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
