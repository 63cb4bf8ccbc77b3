"""A native module of the device that is no device: the host's kernels, behind the addresses that `tersegrad._cuda` takes."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

import tersegrad as tg
from tersegrad import _core
from tersegrad.codec import Call
from tersegrad.codecs.native import Native

TYPES = {1: np.float32, 2: np.float16, 3: np.uint16}
NAMES = {1: "float32", 2: "float16", 3: "bfloat16"}


def array(address: int, n: int, dtype: Any) -> Any:
    nbytes = n * np.dtype(dtype).itemsize
    if not nbytes:
        return np.empty(0, dtype)
    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), dtype)


def form_of(codec: tg.Codec) -> Any:
    if not isinstance(codec, Native) or not codec._is_native or not codec.is_fixed_size:
        raise tg.CodecError(f"{codec} has no form on the device; .cpu()")
    return codec


def workspace_bytes(form: Any, n: int, dtype: int) -> int:
    return 64


def encode(
    form, x, x_dtype, n, residual, dtype, step, step_at, status, skip, body, checked, *work
) -> None:
    entries = array(x, n, TYPES[x_dtype])
    name = NAMES[dtype]
    kept = array(residual, n, np.float32) if residual else None
    told = array(status, 1, np.int32)
    target = array(body, form.body_size(n, name), np.uint8)
    if step_at:
        step = int(array(step_at, 1, np.uint32)[0])
    told[0] = 0
    if skip and array(skip, 1, np.int32)[0]:
        told[0] = 1
    elif not (checked or _core.all_finite(entries)):
        told[0] = 2
    else:
        before = None if kept is None else kept.copy()
        if not form._compress(entries, name, target, kept, Call(step)):
            told[0] = 2 if before is None or checked else 3
            if before is not None:
                kept[:] = before
    if told[0]:
        form._compress(np.zeros(n, entries.dtype), name, target, None, Call(step))


def decode(form, body, dtype, n, step, step_at, out, out_dtype, accumulate, scale, *work) -> None:
    name = NAMES[dtype]
    if step_at:
        step = int(array(step_at, 1, np.uint32)[0])
    source = array(body, form.body_size(n, name), np.uint8)
    form._decompress(source, name, step, array(out, n, TYPES[out_dtype]), accumulate, scale, False)


def is_zero(x, x_dtype, n, flag, stream) -> None:
    bits = array(x, n, TYPES[x_dtype])
    if bits.dtype == np.uint16:
        bits = bits & 0x7FFF
    array(flag, 1, np.int32)[0] = not bits.any()


def copy_if(flag, source, target, nbytes, stream) -> None:
    if array(flag, 1, np.int32)[0]:
        array(target, nbytes, np.uint8)[:] = array(source, nbytes, np.uint8)


def zero_if(flag, target, nbytes, stream) -> None:
    if array(flag, 1, np.int32)[0]:
        array(target, nbytes, np.uint8)[:] = 0


def not_finite(x, x_dtype, n, flag, stream) -> None:
    if not _core.all_finite(array(x, n, TYPES[x_dtype])):
        array(flag, 1, np.int32)[0] = 1
