"""One row per codec and per peer: ratio, error and speed together, since each is worth little
without the others.

    python benchmarks/codecs.py                     on gaussian x uniform^3
    python benchmarks/codecs.py --input minilm      on a real gradient (see gradients.py)

ratio     bytes of the float32 tensor over bytes sent
NMSE      |x - decoded|^2 / |x|^2: 0 is lossless, 1 is sending nothing; feedback sends the rest
GB/s      of the float32 tensor, by the public `compress` and `decompress`, allocation included
x read    time over that of reading the tensor once

Rows that lose stay. Peers keep what would be sent as tensors or arrays; writing it to one buffer
is not in their time, nor in that of `compress`. The checksum of `bytes(payload)` is in the row "to
bytes".
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and torch start their pools

import importlib.metadata
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import harness
import peers
import plots
import roofline
import torch
from checks import check_codec, nmse
from harness import Row, Samples
from inputs import gaussian, real
from report import Record, about_run, markdown, place, save, show

import tersegrad as tg

COLUMNS = {
    "name": "codec", "ratio": "ratio", "nmse": "NMSE", "compress_gbps": "compress GB/s",
    "compress_x_read": "x read", "decompress_gbps": "decompress GB/s",
    "decompress_x_read": "x read",
}  # fmt: skip


def ours() -> dict[str, tg.Codec]:
    """The rows of this package."""
    four = tg.Quantize(bits=4)
    return {
        "TopK 10%": tg.TopK(0.1),
        "TopK 1%": tg.TopK(0.01),
        "TopK 0.1%": tg.TopK(0.001),
        "TopK 10%, 4-bit": tg.TopK(0.1, values=four),
        "TopK 1%, 8-bit": tg.TopK(0.01, values=tg.Quantize(bits=8)),
        "TopK 1%, 4-bit": tg.TopK(0.01, values=four),
        "TopK 0.1%, 4-bit": tg.TopK(0.001, values=four),
        "ChunkTopK 64 of 4096": tg.ChunkTopK(k=64, chunk=4096),
        "ChunkTopK, 2-bit": tg.ChunkTopK(k=64, chunk=4096, values=tg.Quantize(bits=2)),
        "RandomK 1%": tg.RandomK(0.01),
        "Quantize 8": tg.Quantize(bits=8),
        "Quantize 4": four,
        "Quantize 4 stochastic": tg.Quantize(bits=4, rounding="stochastic"),
        "Quantize 2": tg.Quantize(bits=2),
        "Sign": tg.Sign(),
        "Rotated 4": tg.Rotated(4),
        "Rotated 2": tg.Rotated(2),
        "Rotated 1": tg.Rotated(1),
        "Rotated 0.25": tg.Rotated(0.25),
        "Cast float16": tg.Cast(dtype="float16"),
        "Cast bfloat16": tg.Cast(dtype="bfloat16"),
    }


def our_rows(x: torch.Tensor) -> tuple[list[Row], list[Record]]:
    rows, records = [], []
    n_bytes = 4 * x.numel()
    part = x[: min(x.numel(), 1_000_001)].numpy()
    for name, codec in ours().items():
        check_codec(part, codec)
        payload = tg.compress(x, codec)
        error = nmse(x.numpy(), tg.decompress(payload, kind="numpy"))
        rows.append(Row(f"compress {name}", partial(tg.compress, x, codec), n_bytes))
        rows.append(Row(f"decompress {name}", partial(tg.decompress, payload), n_bytes))
        records.append({"name": name, "peer": "", "ratio": payload.ratio, "nmse": error})
    payload = tg.compress(x, tg.Quantize(bits=8))
    rows.append(Row("compress Quantize 8 to bytes", _to_bytes(x), n_bytes))
    rows.append(
        Row("decompress Quantize 8 to bytes", partial(tg.decompress, bytes(payload)), n_bytes)
    )
    records.append({**records[10], "name": "Quantize 8 to bytes"})
    return rows, records


def _to_bytes(x: torch.Tensor) -> Callable[[], object]:
    codec = tg.Quantize(bits=8)
    return lambda: bytes(tg.compress(x, codec))


def peer_rows(x: torch.Tensor, found: list[peers.Peer]) -> tuple[list[Row], list[Record]]:
    rows, records = [], []
    n_bytes = 4 * x.numel()
    exact = nmse(x.numpy(), tg.decompress(tg.compress(x, tg.TopK(0.01)), kind="numpy"))
    for peer in found:
        packed = peer.pack(x)
        error = nmse(x.numpy(), peer.unpack(packed).numpy())
        if peer.name in ("torch.topk 0.01", "torch.kthvalue 0.01", "numpy argpartition 0.01"):
            assert abs(error - exact) < 1e-5 * exact + 1e-12, f"{peer.name}: not the same top-k"
        rows.append(Row(f"compress {peer.name}", partial(peer.pack, x), n_bytes))
        if peer.unpack_timed:
            rows.append(Row(f"decompress {peer.name}", partial(peer.unpack, packed), n_bytes))
        ratio = n_bytes / peer.size(packed)
        name = peer.name + (f" ({peer.note})" if peer.note else "")
        records.append(
            {"name": name, "key": peer.name, "peer": "peer", "ratio": ratio, "nmse": error}
        )
    return rows, records


def fill(record: Record, samples: dict[str, Samples]) -> Record:
    """The record with its speeds."""
    key = record.pop("key", record["name"])
    for side in ("compress", "decompress"):
        sample = samples.get(f"{side} {key}")
        if sample is None:
            continue
        low, high = sample.quartiles
        record[f"{side}_ms"], record[f"{side}_gbps"] = sample.median * 1e3, sample.gigabytes
        record[f"{side}_ms_q1"], record[f"{side}_ms_q3"] = low * 1e3, high * 1e3
        record[f"{side}_x_read"] = sample.ratio(samples["read"])[0]
    return record


def tensor(options: Any) -> torch.Tensor:
    if options.input == "gaussian":
        return torch.from_numpy(gaussian(options.entries))
    found, hint = real()
    if options.input not in found:
        sys.exit(f"no input {options.input!r}; there are gaussian {' '.join(found)}. {hint}")
    x = torch.from_numpy(found[options.input])
    options.entries = min(options.entries, x.numel()) if options.quick else x.numel()
    return x[: options.entries]


def main() -> int:
    parse = harness.parser(__doc__ or "", seconds=90)
    parse.add_argument(
        "--input", default="gaussian", help="gaussian, or a gradient of gradients.py"
    )
    options = parse.parse_args()
    harness.start(options)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|hivemind|bitsandbytes")
    x = tensor(options)
    found, missing = peers.available()
    rows = roofline.rows(x.numpy(), x, torch.zeros_like(x))
    own, records = our_rows(x)
    others, peer_records = peer_rows(x, found)
    samples = harness.measure(rows + own + others, seconds=options.seconds, quiet=options.quiet)
    records = [fill(record, samples) for record in records + peer_records]

    memory = [
        {"name": row.name, "peer": "memory", "compress_gbps": samples[row.name].gigabytes,
         "compress_x_read": samples[row.name].ratio(samples["read"])[0]}
        for row in rows
    ]  # fmt: skip
    show(f"{options.input}, {x.numel():,} entries", COLUMNS, [*records, *memory])
    print(*missing, sep="\n", end="\n" if missing else "")
    stem = "codecs" if options.input == "gaussian" else f"codecs-{options.input}"
    path = place(stem, options).with_suffix(".png")
    text = [
        f"# Codecs and peers on {options.input}",
        _versions(),
        "",
        f"![speed against ratio]({path.name})",
    ]
    text += ["", *markdown(COLUMNS, records), "", "Memory of this machine:", ""]
    text += markdown({k: COLUMNS[k] for k in ("name", "compress_gbps", "compress_x_read")}, memory)
    text += ["", *(f"* {line}" for line in missing)]
    save(stem, options, [*records, *memory], text)
    plots.codecs(records, samples["read"].gigabytes, path, f"{options.input}, {about_run(options)}")
    return 0


def _versions() -> str:
    names = []
    for package in ("bitsandbytes", "hivemind"):
        try:
            names.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            names.append(f"no {package}")
    return ", ".join(names) + ". " + roofline.how() + "."


if __name__ == "__main__":
    sys.exit(main())
