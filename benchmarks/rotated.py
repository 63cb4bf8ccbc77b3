"""What `Rotated` loses and how fast it is, beside its bars and `Quantize` of as many bits.

    python benchmarks/rotated.py

The error, |decoded - x|^2 / |x|^2, of one payload of 2^20 entries, normal ones and a single spike; bits per entry count all bytes of the
message. Encoding and decode-and-add are timed in memory of the caller, input and output from memory.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and torch start their pools

import argparse
import sys
from functools import partial

import harness
import numpy as np
from checks import nmse
from harness import Row
from report import Record, markdown, save, show

import tersegrad as tg
from tersegrad.codec import decode_into, encode_into

#: The most that bits may lose, and the least GB/s of 4 bits.
BARS = {1: 0.59, 2: 0.137, 3: 0.037, 4: 0.0100}
LEAST_SPEED = 4.0
ERROR_ENTRIES = 2**20
COLUMNS = {
    "codec": "codec", "bits": "bits per entry", "normal": "NMSE, normal", "spike": "NMSE, spike", "bar": "bar",
    "encode": "encode GB/s", "add": "decode-add GB/s", "met": "met",
}  # fmt: skip


def codecs() -> dict[str, tg.Codec]:
    found: dict[str, tg.Codec] = {}
    for bits in (4, 3, 2, 1, 0.25):
        found[f"Rotated({bits})"] = tg.Rotated(bits)
        found[f'Rotated({bits}, scale="mmse")'] = tg.Rotated(bits, scale="mmse")
    for bits in (4, 2):
        found[f'Quantize({bits}, rounding="stochastic")'] = tg.Quantize(bits, rounding="stochastic")
    return found


def errors(codec: tg.Codec) -> Record:
    normal = np.random.default_rng(0).standard_normal(ERROR_ENTRIES, np.float32)
    spike = np.zeros(ERROR_ENTRIES, np.float32)
    spike[12345] = 3
    payloads = [tg.compress(x, codec) for x in (normal, spike)]
    return {
        "bits": len(bytes(payloads[0])) * 8 / ERROR_ENTRIES,
        "normal": nmse(normal, tg.decompress(payloads[0])),
        "spike": nmse(spike, tg.decompress(payloads[1])),
    }


def main() -> int:
    parse = harness.parser(__doc__ or "", seconds=60)
    options: argparse.Namespace = parse.parse_args()
    harness.start(options)
    x = np.random.default_rng(1).standard_normal(options.entries, np.float32)
    total = np.zeros_like(x)
    records: list[Record] = []
    rows: list[Row] = [Row("read", partial(np.max, x), x.nbytes)]
    for name, codec in codecs().items():
        records.append({"codec": name, **errors(codec)})
        body = np.zeros(codec.body_size(x.size), np.uint8)
        assert encode_into(x, codec, body)
        add = partial(decode_into, body, codec, total, accumulate=True, scale=0.5)
        rows.append(Row(f"{name} encode", partial(encode_into, x, codec, body), x.nbytes))
        rows.append(Row(f"{name} add", add, x.nbytes))
    samples = harness.measure(rows, seconds=options.seconds, quiet=options.quiet)
    for record in records:
        encode, add_speed = (
            samples[f"{record['codec']} {what}"].gigabytes for what in ("encode", "add")
        )
        record |= {"encode": encode, "add": add_speed, "bar": "", "met": ""}
        codec = codecs()[record["codec"]]
        if not isinstance(codec, tg.Rotated) or codec.scale != "unbiased" or codec.bits not in BARS:
            continue
        limit = BARS[int(codec.bits)]
        met = max(record["normal"], record["spike"]) <= limit
        record["bar"] = f"NMSE <= {limit}"
        if codec.bits == 4:
            record["bar"] += f", >= {LEAST_SPEED:g} GB/s"
            met &= min(encode, add_speed) >= LEAST_SPEED
        record["met"] = "yes" if met else "NO"
    show("rotated", COLUMNS, records)
    read = f"Reading the input takes one thread {samples['read'].gigabytes:.1f} GB/s."
    save("rotated", options, records, ["# Rotated", read, "", *markdown(COLUMNS, records)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
