"""The rows that the bars are made of. Rows are built only when a bar needs them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import models_table
import numpy as np
import roofline
import torch
from checks import check_codec, check_topk
from harness import Row
from inputs import ADVERSARIES, cached, gaussian, tensor
from operations import DENSITIES, DTYPES, QUANTIZERS, Context, Pool, rows_of

import tersegrad as tg
from tersegrad import _core

SELECTED = {name: DENSITIES[name] for name in ("0.1%", "1%", "10%")}
HALVES = ("float16", "bfloat16")
SMALL = {
    "small topk": tg.TopK(0.01),
    "small topk 4-bit": tg.TopK(0.01, values=tg.Quantize(bits=4)),
    "small quantize 4": tg.Quantize(bits=4),
    "small sign": tg.Sign(),
}
#: A row that instructions bound, and a size that stays in the second cache.
CACHED_ROW, CACHED_ENTRIES = "quantize 2 stochastic", 2**18
#: The operations that every variant and every dtype is measured on.
KERNEL_ROWS = (
    *(f"select {name}" for name in SELECTED),
    "select 0.1% + feedback",
    "select 1% + feedback",
    "full compress",
    "full compress, reset",
    *QUANTIZERS,
    *(f"{name} + feedback" for name in QUANTIZERS),
    "sign pack",
    "sign unpack",
    "decompress-add topk 1%",
)


def bits_per_kept_entry(n: int = 2**24) -> float:
    """Of a whole payload, header included."""
    payload = tg.compress(gaussian(n), tg.TopK(0.01, values=tg.Quantize(bits=4)))
    return len(bytes(payload)) * 8 / round(0.01 * n)


def build(n: int, needed: set[str], variant: str, quiet: bool) -> list[Row]:
    """The rows, their answers checked."""
    x = gaussian(n)
    gradient = torch.from_numpy(x)
    pool = Pool(n)
    k = round(0.01 * n)
    _check(x, needed)
    rows = _rooflines(x, gradient, pool)
    rows += _peers(gradient, k, needed)
    rows += _compress_rows(gradient, pool)
    context = Context(gradient, pool)
    rows += _operations(context, needed, variant, "")
    rows += _operations(context, needed, "avx2", " (avx2)")
    for name in HALVES:
        half = Context(gradient.to(DTYPES[name]), pool)
        rows += _operations(half, needed, variant, f" ({name})")
        if f"{CACHED_ROW} ({name}, in cache)" in needed:
            cached_half = Context(half.gradient[:CACHED_ENTRIES], Pool(CACHED_ENTRIES))
            (row,) = rows_of(cached_half, [CACHED_ROW], suffix=f" ({name}, in cache)")
            rows.append(replace(row, calls=20))
    for name in [*ADVERSARIES, *cached()]:
        shares = [share for share in SELECTED if f"select {share} {name}" in needed]
        bad = tensor(name, n) if shares else x
        for share in shares:
            kept = max(1, round(SELECTED[share] * bad.size))
            check_topk(bad, *_core.select_topk(bad, None, kept)[:2])
            row = Row(f"select {share} {name}", _selector(bad, kept), bad.nbytes, None, variant)
            rows.append(row)
    rows.append(Row("all finite", partial(_core.all_finite, x), x.nbytes))
    small = torch.from_numpy(gaussian(1000))
    for name, codec in SMALL.items():
        rows.append(Row(name, _compressor(small, codec), 4000, None, variant, calls=300))
    rows += models_table.overhead_rows()
    return [row for row in rows if row.name in needed or row.name in ("read", "r += g")]


def _operations(context: Context, needed: set[str], variant: str, suffix: str) -> list[Row]:
    names = [name for name in KERNEL_ROWS if name + suffix in needed]
    return rows_of(context, names, variant=variant, suffix=suffix)


def _selector(x: np.ndarray, k: int) -> Callable[[], object]:
    return lambda: _core.select_topk(x, None, k)


def _compressor(x: torch.Tensor, codec: tg.Codec, **keywords: Any) -> Callable[[], object]:
    return lambda: tg.compress(x, codec, **keywords)


def _check(x: np.ndarray, needed: set[str]) -> None:
    for name, density in SELECTED.items():
        if f"select {name}" in needed:
            check_topk(x, *_core.select_topk(x, None, round(density * x.size))[:2])
    part = x[:300_001]
    for codec in (*QUANTIZERS.values(), tg.Sign(), tg.TopK(0.01, values=tg.Quantize(bits=4))):
        check_codec(part, codec)


def _rooflines(x: np.ndarray, gradient: torch.Tensor, pool: Pool) -> list[Row]:
    rows = roofline.rows(x, gradient, torch.from_numpy(pool.residual), pool.restore)
    for bits in (8, 4, 2, 1):
        codec: tg.Codec = tg.Sign() if bits == 1 else tg.Quantize(bits=bits)
        body = pool.body(codec.body_size(x.size))
        rows.append(Row(f"write {bits}", partial(body.fill, 1), body.nbytes))
        rows.append(Row(f"write {bits} streaming", roofline.writer(body), body.nbytes))
    signs = pool.body(tg.Sign().body_size(x.size))
    rows.append(Row("read 1", roofline.reader(signs), signs.nbytes))
    return rows


def _peers(gradient: torch.Tensor, k: int, needed: set[str]) -> list[Row]:
    if not needed & {"torch.topk 1%", "index_add_ 1%", "bitsandbytes 8"}:
        return []
    n_bytes = 4 * gradient.numel()
    index = torch.topk(gradient.abs(), k, sorted=False).indices.sort().values
    value, total = gradient[index], torch.zeros_like(gradient)
    rows = [
        Row("torch.topk 1%", lambda: torch.topk(gradient.abs(), k, sorted=False), n_bytes),
        Row("index_add_ 1%", lambda: total.index_add_(0, index, value), n_bytes),
    ]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            from bitsandbytes.functional import quantize_blockwise

            quantize_blockwise(gradient[:4096])
    except Exception as error:  # an optional peer: any failure means "not here"
        print(f"bitsandbytes does not run here ({error!r}); its bar is left out")
    else:
        rows.append(Row("bitsandbytes 8", lambda: quantize_blockwise(gradient), n_bytes))
    return rows


def _compress_rows(gradient: torch.Tensor, pool: Pool) -> list[Row]:
    n_bytes = 4 * gradient.numel()
    topk = tg.TopK(0.01)
    kept = _compressor(gradient, topk, residual=torch.from_numpy(pool.residual))
    return [
        Row("compress topk 1%", _compressor(gradient, topk), n_bytes),
        Row("compress topk 1% + residual", kept, n_bytes, pool.restore),
        Row("compress quantize 4", _compressor(gradient, tg.Quantize(bits=4)), n_bytes),
        Row("compress quantize 8", _compressor(gradient, tg.Quantize(bits=8)), n_bytes),
    ]  # fmt: skip
