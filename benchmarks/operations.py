"""Every native operation on one tensor, by name: what kernels.py, bars.py and compare.py time.

A builder takes a `Context` and gives the call to time, what to do before each call, and the bytes
of its input. Buffers are allocated once, outside of the timed call, so a row is the operation and
not the page faults of a fresh array; `compress` itself, which allocates its payload, is timed by
codecs.py and by the bars of issue 2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from harness import Row
from inputs import gaussian

import tersegrad as tg
from tersegrad import _core
from tersegrad import codec as package_codec
from tersegrad.buffers import view
from tersegrad.codec import decode_into, encode_into

DENSITIES = {"0.01%": 0.0001, "0.1%": 0.001, "1%": 0.01, "10%": 0.1}
INDEX_FORMS = {"elias-fano": 1, "bitmap": 2, "u16": 3, "rice": 4}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
QUANTIZERS = {
    f"quantize {bits}{name}": tg.Quantize(bits=bits, rounding=rounding)  # type: ignore[arg-type]
    for bits in (8, 4, 2)
    for name, rounding in (("", "nearest"), (" stochastic", "stochastic"))
}


class Work(NamedTuple):
    run: Callable[[], object]
    bytes: int
    before: Callable[[], object] | None = None


class Context:
    """One gradient and the buffers its rows share, so that all meet the same caches and the run
    fits into memory.
    """

    def __init__(self, gradient: torch.Tensor, pool: Pool) -> None:
        self.gradient = gradient
        seen = view(gradient)
        self.flat: npt.NDArray[Any] = seen.array
        self.dtype = seen.dtype
        self.n = gradient.numel()
        self.bytes = self.n * gradient.element_size()
        self.pool = pool


class Pool:
    """Residual, payload bodies and outputs for tensors of n entries."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.residual = np.zeros(n, np.float32)
        tg.compress(gaussian(n, seed=100), tg.TopK(0.01), residual=self.residual)
        self.start = self.residual.copy()
        self._bodies: dict[int, npt.NDArray[np.uint8]] = {}
        self._outs: dict[torch.dtype, torch.Tensor] = {}

    def restore(self) -> None:
        """The residual as one step of error feedback on another gradient leaves it."""
        np.copyto(self.residual, self.start)

    def body(self, size: int) -> npt.NDArray[np.uint8]:
        return self._bodies.setdefault(size, np.zeros(size, np.uint8))

    def out(self, dtype: torch.dtype) -> torch.Tensor:
        if dtype not in self._outs:
            self._outs[dtype] = torch.zeros(self.n, dtype=dtype)
        return self._outs[dtype]


Builder = Callable[[Context], "Work | None"]


def select(density: float) -> Builder:
    """Indices and values of the exact top-k."""

    def build(c: Context) -> Work:
        k = max(1, round(density * c.n))
        return Work(lambda: _core.select_topk(c.flat, None, k), c.bytes)

    return build


def select_with_feedback(density: float) -> Builder:
    """x + residual, its top-k, and the new residual: every pass of error feedback."""

    def build(c: Context) -> Work:
        k, r = max(1, round(density * c.n)), c.pool.residual
        warm: list[int] = []  # the last k-th key, in versions that start from it

        def run() -> None:
            index, value, _, *warm[:] = _core.select_topk(c.flat, r, k, *warm)
            _core.settle(r, index, value, value)

        return Work(run, c.bytes, c.pool.restore)

    return build


def select_chunks(feedback: bool) -> Builder:
    def build(c: Context) -> Work:
        if feedback:
            return Work(
                lambda: _core.select_chunks(c.flat, c.pool.residual, 64, 4096),
                c.bytes,
                c.pool.restore,
            )
        return Work(lambda: _core.select_chunks(c.flat, None, 64, 4096), c.bytes)

    return build


def encoder(codec: tg.Codec) -> Builder:
    """A dense codec into a body that is there already."""

    def build(c: Context) -> Work:
        body = c.pool.body(codec.body_size(c.n, c.dtype))
        return Work(lambda: encode_into(c.gradient, codec, body), c.bytes)

    return build


def encoder_checked(codec: tg.Codec) -> Builder:
    """With a residual, as `compress` does it by default: x is first read once to see that it is
    finite.
    """

    def build(c: Context) -> Work:
        body, r = c.pool.body(codec.body_size(c.n, c.dtype)), torch.from_numpy(c.pool.residual)
        run = lambda: encode_into(c.gradient, codec, body, residual=r)  # noqa: E731
        return Work(run, c.bytes, c.pool.restore)

    return build


def encoder_with_feedback(codec: tg.Codec) -> Builder:
    """With a residual in one pass, as nonfinite="reset" does it."""

    def build(c: Context) -> Work:
        body, r = c.pool.body(codec.body_size(c.n, c.dtype)), c.pool.residual
        call: Any = package_codec.Call() if hasattr(package_codec, "Call") else 0  # an int once
        run = partial(codec._compress, c.flat, c.dtype, body, r, call)
        return Work(run, c.bytes, c.pool.restore)

    return build


def decoder(codec: tg.Codec, accumulate: bool = False) -> Builder:
    def build(c: Context) -> Work:
        body = np.zeros(codec.body_size(c.n, c.dtype), np.uint8)
        assert encode_into(c.gradient, codec, body)
        out = c.pool.out(c.gradient.dtype)
        return Work(lambda: decode_into(body, codec, out, accumulate=accumulate), c.bytes)

    return build


def integers(make: Callable[[tg.Codec], Builder], bits: int, rounding: str = "nearest") -> Builder:
    """`make` of a shared grid that cuts few entries."""

    def build(c: Context) -> Work | None:
        if not hasattr(tg, "Integers"):  # an older version
            return None
        return make(tg.Integers(bits=bits, clip=4.0, rounding=rounding))(c)  # type: ignore[arg-type]

    return build


def decompress_topk(accumulate: bool) -> Builder:
    """Of a 1 % payload, indices decoded and checked."""

    def build(c: Context) -> Work:
        payload, out = tg.compress(c.gradient, tg.TopK(0.01)), c.pool.out(c.gradient.dtype)
        return Work(lambda: tg.decompress(payload, out=out, accumulate=accumulate), c.bytes)

    return build


def full_compress(**options: Any) -> Builder:
    """As a user keeps it: ErrorFeedback, top-1 %, 4-bit values, and the bytes for the wire,
    checksum included.
    """

    def build(c: Context) -> Work | None:
        try:
            feedback = tg.ErrorFeedback(tg.TopK(0.01, values=tg.Quantize(bits=4)), **options)
        except (TypeError, ValueError):  # a version without the option
            return None
        feedback.compress(c.gradient, "x")
        residual: torch.Tensor = feedback.residual("x")
        restore = partial(residual.copy_, torch.from_numpy(c.pool.start))
        return Work(lambda: bytes(feedback.compress(c.gradient, "x")), c.bytes, restore)

    return build


def _sorted_indices(c: Context, density: float) -> npt.NDArray[np.uint32]:
    index, _ = _core.select_topk(c.flat, None, max(1, round(density * c.n)))[:2]
    return index


def _stream(form: str, n: int, k: int) -> npt.NDArray[np.uint8] | None:
    try:
        return np.zeros(_core.index_bytes(INDEX_FORMS[form], n, k), np.uint8)
    except TypeError:  # a version without the form
        return None


def index_encoder(form: str, density: float) -> Builder:
    def build(c: Context) -> Work | None:
        index = _sorted_indices(c, density)
        stream = _stream(form, c.n, index.size)
        if stream is None:
            return None
        return Work(lambda: _core.encode_index(INDEX_FORMS[form], index, c.n, stream), index.nbytes)

    return build


def index_decoder(form: str, density: float) -> Builder:
    def build(c: Context) -> Work | None:
        index = _sorted_indices(c, density)
        room = _stream(form, c.n, index.size)
        if room is None:
            return None
        stream = room[: _core.encode_index(INDEX_FORMS[form], index, c.n, room)]
        found = _core.decode_index(INDEX_FORMS[form], stream, c.n, index.size)
        assert np.array_equal(found, index), f"{form} does not round-trip"
        return Work(
            lambda: _core.decode_index(INDEX_FORMS[form], stream, c.n, index.size), index.nbytes
        )

    return build


def checksum(c: Context) -> Work:
    data = c.flat.view(np.uint8)
    return Work(lambda: _core.crc32c(data), c.bytes)


def catalogue() -> dict[str, Builder]:
    """All operations, in the order of the table."""
    rows: dict[str, Builder] = {}
    for name, density in reversed(DENSITIES.items()):
        rows[f"select {name}"] = select(density)
    for name, density in reversed(DENSITIES.items()):
        rows[f"select {name} + feedback"] = select_with_feedback(density)
    rows["full compress"] = full_compress()
    rows["full compress, reset"] = full_compress(nonfinite="reset")
    rows["chunk topk 64 of 4096"] = select_chunks(False)
    rows["chunk topk 64 of 4096 + feedback"] = select_chunks(True)
    for name, codec in QUANTIZERS.items():
        rows[name] = encoder(codec)
    for name, codec in QUANTIZERS.items():
        rows[f"{name} + feedback"] = encoder_with_feedback(codec)
    rows["quantize 4 + feedback, checked"] = encoder_checked(QUANTIZERS["quantize 4"])
    for bits in (8, 16, 32):
        rows[f"integers {bits}"] = integers(encoder, bits)
    rows["integers 8 stochastic"] = integers(encoder, 8, "stochastic")
    rows["integers 8 + feedback"] = integers(encoder_with_feedback, 8)
    rows["sign pack"] = encoder(tg.Sign())
    rows["sign pack + feedback"] = encoder_with_feedback(tg.Sign())
    for dtype in ("float16", "bfloat16"):
        rows[f"cast {dtype}"] = encoder(tg.Cast(dtype=dtype))
        rows[f"cast {dtype} + feedback"] = encoder_with_feedback(tg.Cast(dtype=dtype))
    for bits in (8, 4, 2):
        rows[f"dequantize {bits}"] = decoder(tg.Quantize(bits=bits))
    rows["dequantize-add 4"] = decoder(tg.Quantize(bits=4), accumulate=True)
    rows["from integers 8"] = integers(decoder, 8)
    rows["sign unpack"] = decoder(tg.Sign())
    rows["uncast bfloat16"] = decoder(tg.Cast(dtype="bfloat16"))
    rows["decompress topk 1%"] = decompress_topk(False)
    rows["decompress-add topk 1%"] = decompress_topk(True)
    for form, share in (("elias-fano", "1%"), ("rice", "1%"), ("u16", "1%"), ("bitmap", "10%")):
        rows[f"index encode {form} {share}"] = index_encoder(form, DENSITIES[share])
        rows[f"index decode {form} {share}"] = index_decoder(form, DENSITIES[share])
    rows["crc-32c"] = checksum
    return rows


def rows_of(
    context: Context, names: list[str], *, variant: str | None = None, suffix: str = ""
) -> list[Row]:
    """Rows for the named operations on one tensor; without those that this version does not
    have.
    """
    builders = catalogue()
    rows = []
    for name in names:
        work = builders[name](context)
        if work is None:
            continue
        rows.append(Row(name + suffix, work.run, work.bytes, work.before, variant))
    return rows
