"""What survivors' indices cost: bits for each, and speed, for every form; and what Zstandard saves.

    python benchmarks/indices.py

Beside the forms stand two bounds: the entropy of a uniform set of that size, log2(n over k) / k,
and gzip of the gaps as u32, which finds repetitions but is slow. Real gradients are those that
gradients.py has made.
"""

from __future__ import annotations

import argparse
import gzip
import math
import sys
from collections.abc import Iterator

import harness
import numpy as np
import numpy.typing as npt
from harness import Row, Samples
from inputs import gaussian, real
from report import Record, markdown, save, show

import tersegrad as tg
from tersegrad import _core

FORMS = {"elias-fano": 1, "rice": 4, "runs": 5}
DENSITIES = {"10%": 0.1, "1%": 0.01, "0.1%": 0.001}
COLUMNS = {
    "input": "indices", "k": "k", "entropy bits": "uniform entropy", "gzip bits": "gzip of gaps",
    "elias-fano bits": "Elias-Fano", "rice bits": "Rice", "runs bits": "runs",
    "rice encode": "Rice encode, M/s", "rice decode": "Rice decode, M/s",
    "runs encode": "runs encode, M/s", "runs decode": "runs decode, M/s",
    "elias-fano encode": "Elias-Fano encode, M/s", "elias-fano decode": "Elias-Fano decode, M/s",
}  # fmt: skip
ZSTD_COLUMNS = {
    "input": "gradient", "codec": "codec", "bytes": "bytes", "zstd bytes": "with Zstd",
    "share": "share", "encode": "compress, ms", "encode zstd": "with Zstd, ms",
    "decode": "decompress, ms", "decode zstd": "with Zstd, ms",
}  # fmt: skip

Indices = npt.NDArray[np.uint32]


def entropy(n: int, k: int) -> float:
    """Bits for an index of a uniform set."""
    nats = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return nats / math.log(2) / k


def rows_of_set(name: str, index: Indices, n: int, record: Record) -> Iterator[Row]:
    """Fills in the bits; gives the rows to time. A decoded stream is compared before."""
    k = index.size
    gaps = np.diff(index, prepend=np.uint32(0)).astype("<u4")
    record |= {"input": name, "k": k, "entropy bits": entropy(n, k)}
    record["gzip bits"] = 8 * len(gzip.compress(gaps.tobytes(), 6)) / k
    for form, number in FORMS.items():
        stream = np.zeros(_core.index_bytes(number, n, k), np.uint8)
        used = stream[: _core.encode_index(number, index, n, stream)].copy()
        assert np.array_equal(_core.decode_index(number, used, n, k), index), form
        record[f"{form} bits"] = 8 * used.size / k
        calls = max(1, 200_000 // k)
        yield Row(
            f"{name} {form} encode",
            lambda number=number, stream=stream: _core.encode_index(number, index, n, stream),  # type: ignore[misc]
            4 * k, calls=calls,
        )  # fmt: skip
        yield Row(
            f"{name} {form} decode",
            lambda number=number, used=used: _core.decode_index(number, used, n, k),  # type: ignore[misc]
            4 * k, calls=calls,
        )  # fmt: skip


def millions(sample: Samples) -> float:
    return sample.gigabytes * 1e3 / 4


def rows_of_codec(
    name: str, gradient: npt.NDArray[np.float32], codec: tg.Codec, record: Record
) -> Iterator[Row]:
    """A body without and with Zstandard."""
    plain, packed = tg.compress(gradient, codec), tg.compress(gradient, tg.Zstd(codec))
    assert np.array_equal(tg.decompress(packed), tg.decompress(plain))
    record |= {"input": name, "codec": str(codec), "bytes": plain.nbytes}
    record |= {"zstd bytes": packed.nbytes, "share": packed.nbytes / plain.nbytes}
    key = f"{name} {codec}"
    for suffix, form, payload in (("", codec, plain), (" zstd", tg.Zstd(codec), packed)):
        yield Row(f"{key} encode{suffix}", lambda f=form: tg.compress(gradient, f), plain.nbytes)  # type: ignore[misc]
        yield Row(f"{key} decode{suffix}", lambda p=payload: tg.decompress(p), plain.nbytes)  # type: ignore[misc]


def main() -> int:
    parse = harness.parser(__doc__ or "", seconds=60)
    options: argparse.Namespace = parse.parse_args()
    harness.start(options)
    found, hint = real()
    if hint:
        print(hint)
    gradients = {"uniform": gaussian(options.entries), **found}
    if options.quick:
        gradients = {name: x[: options.entries] for name, x in gradients.items()}
    rows: list[Row] = []
    sets: list[Record] = []
    for name, x in gradients.items():
        for share, density in DENSITIES.items():
            index = _core.select_topk(x, None, max(1, round(density * x.size)))[0]
            sets.append({})
            rows += rows_of_set(f"{name} {share}", index, x.size, sets[-1])
    bodies: list[Record] = []
    four_bits = tg.Quantize(bits=4)
    for name, x in gradients.items():
        for codec in (four_bits, tg.TopK(density=0.01, values=four_bits, indices="rice")):
            bodies.append({})
            rows += rows_of_codec(name, x, codec, bodies[-1])
    samples = harness.measure(rows, seconds=options.seconds, quiet=options.quiet)
    for record in sets:
        for form in FORMS:
            for what in ("encode", "decode"):
                record[f"{form} {what}"] = millions(samples[f"{record['input']} {form} {what}"])
    for record in bodies:
        for what in ("encode", "decode"):
            for suffix in ("", " zstd"):
                sample = samples[f"{record['input']} {record['codec']} {what}{suffix}"]
                record[what + suffix] = sample.median * 1e3
    show("bits for an index", COLUMNS, sets)
    show("Zstandard", ZSTD_COLUMNS, bodies)
    text = [
        "# Indices", "Bits for an index, and million indices a second.", "", *markdown(COLUMNS, sets), "",
        "What Zstandard (level 1) makes of payloads, and the time of both.", "",
        *markdown(ZSTD_COLUMNS, bodies),
    ]  # fmt: skip
    if hint:
        text += ["", f"Missing: {hint}."]
    save("indices", options, [*sets, *bodies], text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
