"""The oracle of values on fitted levels: docs/format.md, codec 11."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from reference_indices import pack, unpack
from reference_numbers import refuse_unless

SPACINGS = ("uniform", "square", "logarithmic")
F = np.float32


def coordinates(keys: np.ndarray, spacing: str, low_key: int) -> np.ndarray:
    keys = np.asarray(keys, np.uint32)
    if spacing == "uniform":
        return keys.view(F)
    if spacing == "square":
        return np.sqrt(keys.view(F))
    return (keys.astype(np.int64) - low_key).astype(F)


def ladder(low: int, high: int, spacing: str, bits: int) -> tuple[F, F]:
    """The coordinate of the first level, and the step, for bounds that are bfloat16 bits."""
    levels = 2 ** (bits - 1)
    begin, end = coordinates(np.array([low << 16, high << 16]), spacing, low << 16)
    step = (end - begin) / F(levels if low else levels - 1)
    return (begin + F(0.5) * step if low else begin), step


def values_of_levels(low: int, high: int, spacing: str, bits: int) -> np.ndarray:
    base, step = ladder(low, high, spacing, bits)
    at = base + np.arange(2 ** (bits - 1), dtype=np.int64).astype(F) * step
    if spacing == "uniform":
        return at
    if spacing == "square":
        return at * at
    return ((low << 16) + np.rint(at).astype(np.int64)).astype(np.uint32).view(F)


def nearest_levels(keys: np.ndarray, low: int, high: int, spacing: str, bits: int) -> np.ndarray:
    base, step = ladder(low, high, spacing, bits)
    inverse = F(65536) / step if step >= F(2.0**-100) else F(0)
    distance = coordinates(keys, spacing, low << 16) - base
    level = (np.rint(distance * inverse).astype(np.int64) + 32768) >> 16
    return np.clip(level, 0, 2 ** (bits - 1) - 1)


def lane_sum(squares: np.ndarray) -> F:
    """In the order of codec 4."""
    table = np.pad(squares, (0, -len(squares) % 64)).reshape(-1, 64)
    lanes = np.zeros(64, F)
    for row in table:
        lanes = lanes + row
    for half in (32, 16, 8, 4, 2, 1):
        lanes = lanes[:half] + lanes[half : 2 * half]
    return lanes[0]


def encode_block(codec: Any, a: np.ndarray) -> tuple[int, np.ndarray]:
    """The bounds of a block and its codes."""
    keys = a.view(np.uint32) & np.uint32(0x7FFFFFFF)
    low = int(keys.min()) >> 16
    high = min((int(keys.max()) + 0xFFFF) >> 16, 0x7F7F)
    tried = [codec.grid]
    if codec.grid == "auto":
        tried = ["square", "logarithmic"]
    if low == 0 and codec.grid in ("auto", "logarithmic"):
        tried = ["square"]
    best: tuple[F, str, np.ndarray] | None = None
    for spacing in tried:
        level = nearest_levels(keys, low, high, spacing, codec.bits)
        with np.errstate(over="ignore"):
            error = keys.view(F) - values_of_levels(low, high, spacing, codec.bits)[level]
            total = lane_sum(error * error)
        if best is None or total < best[0]:
            best = total, spacing, level
    assert best is not None
    _, spacing, level = best
    form = SPACINGS.index(spacing)
    bounds = low | high << 16 | (form & 1) << 15 | (form >> 1) << 31
    return bounds, level + (np.signbit(a).astype(np.int64) << (codec.bits - 1))


def encode_magnitudes(codec: Any, a: np.ndarray) -> bytes:
    bounds, codes = [], [np.zeros(0, np.int64)]
    for start in range(0, len(a), codec.block_size):
        word, block = encode_block(codec, np.ascontiguousarray(a[start : start + codec.block_size]))
        bounds.append(word)
        codes.append(block)
    return np.array(bounds, "<u4").tobytes() + pack(np.concatenate(codes), codec.bits)


def decode_magnitudes(codec: Any, body: bytes, n: int) -> np.ndarray:
    rows = math.ceil(n / codec.block_size)
    words = np.frombuffer(body, "<u4", rows).tolist()
    codes = unpack(body[4 * rows :], n, codec.bits)
    values = np.zeros(n, F)
    for row, word in enumerate(words):
        low, high, form = word & 0x7FFF, word >> 16 & 0x7FFF, word >> 15 & 1 | word >> 31 << 1
        refuse_unless(low <= high <= 0x7F7F, "the bounds of a block are out of order or infinite")
        refuse_unless(form < 3, "the spacing of a block is unknown")
        here = slice(row * codec.block_size, (row + 1) * codec.block_size)
        level = codes[here] & (2 ** (codec.bits - 1) - 1)
        magnitude = values_of_levels(low, high, SPACINGS[form], codec.bits)[level]
        values[here] = np.where(codes[here] >> (codec.bits - 1), -magnitude, magnitude)
    return values
