"""The rows of benchmarks/cuda.py: ours, what memory itself allows, and peers. Names are fixed, so that the table exists without a GPU."""

from __future__ import annotations

from typing import Any

import cuda_peers as peers
import torch
from cuda_clock import Row, Setting, Work

import tersegrad as tg

TOPK = (0.01, 0.001)
#: The codecs of whole rows, with error feedback.
FUSED = {
    "topk 1 %, 4-bit values": tg.TopK(
        density=0.01, values=tg.Quantize(bits=4), indices="elias-fano"
    ),
    "quantize 4 bit stochastic": tg.Quantize(bits=4, rounding="stochastic"),
    "quantize 8 bit": tg.Quantize(bits=8),
    "sign": tg.Sign(),
    "magnitudes 4 bit": tg.Magnitudes(bits=4),
    "float8": tg.Float8(),
    "topk 1 %, values=4": tg.TopK(density=0.01, values=4),
    "chunk topk 64 of 4096": tg.ChunkTopK(),
    "random k 1 %": tg.RandomK(density=0.01),
    "rotated 4 bit": tg.Rotated(4),
}
#: Decoders with a bar.
DECODED = {
    "dequantize 4 bit, add": tg.Quantize(bits=4),
    "dequantize 8 bit, add": tg.Quantize(bits=8),
    "decode magnitudes 4 bit, add": tg.Magnitudes(bits=4),
    "decode float8, add": tg.Float8(),
    "scatter-add topk 1 %": tg.TopK(density=0.01),
    "scatter-add topk 10 %": tg.TopK(density=0.1),
}
#: And one that has to transform what it reads.
ROTATED = {"rotated 4 bit, add": tg.Rotated(4)}
CASTS = {"cast bfloat16": "bfloat16", "cast float16": "float16"}


def selection(n: int, density: float) -> str:
    return f"topk {100 * density:g} % of {n:,}"


def rows_of(n: int, slow_peers: bool) -> list[Row]:
    """All rows of one size."""
    rows = [
        Row(f"read of {n:,}", n, 4 * n, _read(n)),
        Row(f"copy of {n:,}", n, 8 * n, _copy(n)),
        Row(f"r.add_(g) of {n:,}", n, 12 * n, _add(n)),
    ]
    for density in TOPK:
        k = max(1, round(density * n))
        codec = tg.TopK(density=density)
        rows.append(Row(selection(n, density), n, 4 * n, _compress(n, codec)))
        rows.append(Row(f"torch.topk {selection(n, density)}", n, 4 * n, peers.torch_topk(n, k)))
        rows.append(Row(f"cub::DeviceTopK {selection(n, density)}", n, 4 * n, peers.cub_topk(n, k)))
        rows.append(
            Row(f"DGC sampling {selection(n, density)}", n, 4 * n, peers.sampled_topk(n, k))
        )
        if slow_peers:
            rows.append(
                Row(f"torch.kthvalue {selection(n, density)}", n, 4 * n, peers.kthvalue(n, k))
            )
    for name, codec in FUSED.items():
        moved = 12 * n + codec.body_size(n)
        rows.append(Row(f"feedback, {name} of {n:,}", n, moved, _feedback(n, codec)))
    for name, codec in {**DECODED, **ROTATED}.items():
        touched = 8 * (n if not codec.is_sparse else codec._native.survivors(n))  # type: ignore[attr-defined]
        rows.append(Row(f"{name} of {n:,}", n, codec.body_size(n) + touched, _decode(n, codec)))
    for name, dtype in CASTS.items():
        rows.append(Row(f"{name} of {n:,}", n, 6 * n, _compress(n, tg.Cast(dtype))))
        rows.append(
            Row(f"torch {name} of {n:,}", n, 6 * n, peers.torch_cast(n, getattr(torch, dtype)))
        )
    rows.append(Row(f"bitsandbytes 8 bit of {n:,}", n, 5 * n, peers.bitsandbytes(n, 8)))
    rows.append(Row(f"bitsandbytes 4 bit of {n:,}", n, 5 * n, peers.bitsandbytes(n, 4)))
    return rows


def _read(n: int) -> Any:
    def make(setting: Setting) -> Work:
        xs = setting.normal(n)
        return lambda number: xs[number % len(xs)].amax()

    return make


def _copy(n: int) -> Any:
    def make(setting: Setting) -> Work:
        xs = setting.normal(n)
        out = torch.empty_like(xs[0])
        return lambda number: out.copy_(xs[number % len(xs)])

    return make


def _add(n: int) -> Any:
    def make(setting: Setting) -> Work:
        xs = setting.normal(n)
        sums = [torch.zeros_like(x) for x in xs]
        return lambda number: sums[number % len(xs)].add_(xs[number % len(xs)])

    return make


def _compress(n: int, codec: tg.Codec) -> Any:
    def make(setting: Setting) -> Work:
        xs = setting.normal(n)
        return lambda number: tg.compress(xs[number % len(xs)], codec, nonfinite="reset")

    return make


def _feedback(n: int, codec: tg.Codec) -> Any:
    """The residual of each input moves on from call to call, as in training."""

    def make(setting: Setting) -> Work:
        xs = setting.normal(n)
        feedback = tg.ErrorFeedback(codec, nonfinite="reset")
        keys = [str(number) for number in range(len(xs))]
        return lambda number: feedback.compress(xs[number % len(xs)], keys[number % len(xs)])

    return make


def _decode(n: int, codec: tg.Codec) -> Any:
    def make(setting: Setting) -> Work:
        payloads = [tg.compress(x, codec) for x in setting.normal(n)]
        totals = [torch.zeros(n, device=setting.device) for _ in payloads]

        def work(number: int) -> object:
            at = number % len(payloads)
            return tg.decompress(payloads[at], out=totals[at], accumulate=True, scale=0.5)

        return work

    return make
