"""A native module of the device that is no device: the host's kernels behind the functions of `tersegrad._cuda`.

It says in few lines what that module promises, and stands in for it in tests of the Python code.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

import tersegrad as tg
from tersegrad import _core
from tersegrad._core import Codec
from tersegrad.codecs import Identity

TYPES = {1: np.float32, 2: np.float16, 3: np.uint16}
SENT, SKIPPED, NOT_FINITE, SUM_NOT_FINITE = range(4)
VALUES = (Identity, tg.Cast, tg.Quantize, tg.Sign)
SELECTIONS = (tg.TopK, tg.ChunkTopK, tg.RandomK)


def driver_version() -> int:
    return 13000


def device_count() -> int:
    return 1


def form_of(codec: tg.Codec) -> Codec:
    values = getattr(codec, "values", None) or Identity()
    known = type(codec) in VALUES or (type(codec) in SELECTIONS and type(values) in VALUES)
    if not known or not codec.is_fixed_size:
        raise tg.CodecError(f"{codec} has no form on the device; use .cpu()")
    native: Codec = codec._native  # type: ignore[attr-defined]
    return native


def workspace_bytes(codec: Codec, n: int, dtype: int) -> int:
    return 64


def encode(
    codec: Codec,
    x: int,
    x_dtype: int,
    n: int,
    residual: int,
    dtype: int,
    step: int,
    step_at: int,
    status: int,
    skip: int,
    body: int,
    checked: bool,
    *work: int,
) -> None:
    """Nothing but the body is written where the status is not SENT; `checked` would allow more."""
    entries, told = array(x, n, TYPES[x_dtype]), array(status, 1, np.int32)
    target = array(body, codec.body_bytes(n, dtype), np.uint8)
    kept = array(residual, n, np.float32) if residual else None
    number = int(array(step_at, 1, np.uint32)[0]) if step_at else step
    told[0] = SENT
    if skip and array(skip, 1, np.int32)[0]:
        told[0] = SKIPPED
    elif not _core.all_finite(entries):
        told[0] = NOT_FINITE
    else:
        before = None if kept is None else kept.copy()
        finite, _, _ = codec.encode(entries, kept, dtype, number, 0, target)
        if not finite:
            told[0] = SUM_NOT_FINITE
            if kept is not None:
                kept[:] = before
    if told[0] != SENT:
        codec.encode(np.zeros(n, entries.dtype), None, dtype, number, 0, target)


def decode(
    codec: Codec,
    body: int,
    dtype: int,
    n: int,
    step: int,
    step_at: int,
    out: int,
    out_dtype: int,
    accumulate: bool,
    scale: float,
    *work: int,
) -> None:
    source = array(body, codec.body_bytes(n, dtype), np.uint8)
    number = int(array(step_at, 1, np.uint32)[0]) if step_at else step
    codec.decode(source, dtype, number, array(out, n, TYPES[out_dtype]), accumulate, scale, False)


def is_zero(x: int, x_dtype: int, n: int, flag: int, stream: int) -> None:
    entries = array(x, n, TYPES[x_dtype])
    bits = entries & 0x7FFF if entries.dtype == np.uint16 else entries
    array(flag, 1, np.int32)[0] = not bits.any()


def not_finite(x: int, x_dtype: int, n: int, flag: int, stream: int) -> None:
    if not _core.all_finite(array(x, n, TYPES[x_dtype])):
        array(flag, 1, np.int32)[0] = 1


def copy_if(flag: int, source: int, target: int, nbytes: int, stream: int) -> None:
    if array(flag, 1, np.int32)[0]:
        array(target, nbytes, np.uint8)[:] = array(source, nbytes, np.uint8)


def zero_if(flag: int, target: int, nbytes: int, stream: int) -> None:
    if array(flag, 1, np.int32)[0]:
        array(target, nbytes, np.uint8)[:] = 0


def array(address: int, n: int, dtype: Any) -> Any:
    """The memory at an address."""
    nbytes = n * np.dtype(dtype).itemsize
    if not nbytes:
        return np.empty(0, dtype)
    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), dtype)
