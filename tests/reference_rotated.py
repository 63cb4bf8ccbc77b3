"""Codec 10 of docs/format.md in NumPy: part of the oracle in reference.py.

Whole blocks are rows of a table; the last block, if it is shorter, is a table of one row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from reference_indices import bytes_of, pack, unpack
from reference_numbers import key, philox, refuse_unless

LEVELS = {
    1: [0.797884583],
    2: [0.452780038, 1.51041758],
    3: [0.24509418, 0.756005287, 1.34390926, 2.15194559],
    4: [0.128395036, 0.388048291, 0.656759143, 0.942340434, 1.25623119, 1.6180464, 2.06901717, 2.73258948],
}  # fmt: skip
LIMITS = {
    1: [],
    2: [0.981598794],
    3: [0.500549734, 1.04995728, 1.74792755],
    4: [0.258221656, 0.522403717, 0.799549758, 1.09928584, 1.4371388, 1.84353185, 2.40080333],
}  # fmt: skip
LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True)
class Rotated:
    bits: float = 4
    block: int = 4096
    scale: str = "unbiased"
    seed: int = 0


def width_of(codec: Any) -> int:
    return codec.bits if isinstance(codec.bits, int) else 1


def share_of(codec: Any) -> int:
    """How many entries of a whole block are sent, as the parameters say it: 0 for all."""
    if isinstance(codec.bits, int):
        return 0
    return min(math.ceil(codec.bits * codec.block), codec.block - 1)


def kept_of(codec: Any, length: int) -> int:
    share = share_of(codec)
    if share == 0 or length == 0:
        return length
    return max(1, (length * share + codec.block // 2) // codec.block)


def lengths(codec: Any, n: int) -> list[tuple[int, int, int]]:
    """First entry, rows and length of the table of whole blocks and of that of the rest."""
    whole, rest = divmod(n, codec.block)
    tables = [(0, whole, codec.block), (whole * codec.block, 1, rest)]
    return [table for table in tables if table[1] * table[2]]


def block_bytes(codec: Any, length: int) -> int:
    return bytes_of(kept_of(codec, length) * width_of(codec))


def body_size(codec: Any, n: int) -> int:
    return sum(rows * (4 + block_bytes(codec, length)) for _, rows, length in lengths(codec, n))


def signs(codec: Any, step: int, first: int, count: int, second: bool) -> np.ndarray:
    """The random signs, 1 or -1, of `count` entries from `first` on."""
    entry = np.arange(first, first + count, dtype=np.int64)
    counter = 16 * (entry // 2048) + entry % 16 + (2**31 if second else 0)
    bit = entry // 16 % 128
    word = np.take_along_axis(philox(counter, step, 2, codec.seed), bit[:, None] // 32, 1)[:, 0]
    return np.where(word.astype(np.int64) >> (31 - bit % 32) & 1, -1, 1).astype(np.float32)


def hadamard(table: np.ndarray) -> np.ndarray:
    """The transform of each row: stages ascending."""
    rows, n = table.shape
    step = 1
    while step < n:
        pairs = table.reshape(rows, n // (2 * step), 2, step)
        low, high = pairs[:, :, 0], pairs[:, :, 1]
        table = np.stack([low + high, low - high], axis=2).reshape(rows, n)
        step *= 2
    return table


def norm_of(power: int) -> np.float32:
    return np.float32(1 / math.sqrt(power))


def passes(length: int) -> tuple[int, int]:
    """The length of a pass, and where the second begins; 0: there is none."""
    power = 1 << (length.bit_length() - 1)
    return power, length - power


def rotate(codec: Any, step: int, first: int, table: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Rows rotated; `factor` is the power of two that each is multiplied by."""
    rows, length = table.shape
    power, offset = passes(length)
    own = signs(codec, step, first, rows * length, False).reshape(rows, length)
    out = table * factor
    out[:, :power] = hadamard(own[:, :power] * (table[:, :power] * (norm_of(power) * factor)))
    if offset:
        other = signs(codec, step, first, power, True)
        out[:, offset:] = hadamard(other * (out[:, offset:] * norm_of(power)))
    return out


def unrotate(codec: Any, step: int, first: int, table: np.ndarray, scale: np.ndarray) -> np.ndarray:
    rows, length = table.shape
    power, offset = passes(length)
    own = signs(codec, step, first, rows * length, False).reshape(rows, length)
    out = table.copy()
    if offset:
        other = signs(codec, step, first, power, True)
        out[:, offset:] = other * (hadamard(out[:, offset:]) * norm_of(power))
    out[:, :power] = own[:, :power] * (hadamard(out[:, :power]) * norm_of(power))
    with np.errstate(over="ignore"):
        out = np.clip(out * scale, -LARGEST, LARGEST)
    return np.where(scale == 0, np.float32(0), out)


def drawn(codec: Any, step: int, first: int, rows: int, length: int) -> np.ndarray:
    """Which entries of each row are sent."""
    kept = kept_of(codec, length)
    start = np.arange(kept + 1, dtype=np.uint64) * np.uint64(length) // np.uint64(kept)
    number = first + np.arange(rows)[:, None] * length + np.arange(kept)
    words = philox(number.ravel() // 4, step, 3, codec.seed)
    word = np.take_along_axis(words, number.reshape(-1, 1) % 4, 1).reshape(rows, kept)
    width = start[1:] - start[:-1]
    return (start[:-1] + (word.astype(np.uint64) * width >> np.uint64(32))).astype(np.int64)


def lane_sums(table: np.ndarray) -> np.ndarray:
    """Sums of the rows in the order of codec 4."""
    rows, n = table.shape
    padded = np.zeros((rows, -(-n // 64) * 64), np.float32)
    padded[:, :n] = table
    lanes = np.zeros((rows, 64), np.float32)
    for part in padded.reshape(rows, -1, 64).transpose(1, 0, 2):
        lanes = lanes + part
    for half in (32, 16, 8, 4, 2, 1):
        lanes = lanes[:, :half] + lanes[:, half : 2 * half]
    return lanes[:, :1]


def encode(codec: Any, a: np.ndarray, step: int) -> bytes:
    width = width_of(codec)
    levels, limits = (np.array(t[width], np.float32) for t in (LEVELS, LIMITS))
    scales, packed = b"", b""
    for first, rows, length in lengths(codec, len(a)):
        table = a[first : first + rows * length].reshape(rows, length)
        largest = key(table).max(axis=1, keepdims=True)
        exponent = np.clip((largest >> np.uint32(23)).astype(np.int64) - 127, -100, 100)
        power = np.float32(2) ** exponent.astype(np.float32)
        z = rotate(codec, step, first, table, np.float32(1) / power)
        kept = kept_of(codec, length)
        if kept < length:
            z = np.take_along_axis(z, drawn(codec, step, first, rows, length), 1)
        squares = lane_sums(z * z)
        deviation = np.sqrt(squares / np.float32(kept))
        magnitude = np.abs(z)
        code = np.zeros(z.shape, np.int64)
        for limit in limits:
            code += magnitude > limit * deviation
        level = levels[code]
        products, level_squares = lane_sums(level * magnitude), lane_sums(level * level)
        divisor = np.where(products > 0, products, np.float32(1))
        share = np.float32(length) / np.float32(kept)
        unbiased = codec.scale == "unbiased"
        scale = squares / divisor * share if unbiased else products / level_squares
        with np.errstate(over="ignore"):
            scale = np.minimum(scale * power, LARGEST)
        zero = largest == 0
        scales += np.where(zero | (products == 0), np.float32(0), scale).astype("<f4").tobytes()
        code |= np.signbit(z).astype(np.int64) << (width - 1)
        for row in np.where(zero, 0, code):
            packed += pack(row, width)
    return scales + packed


def decode(codec: Any, body: bytes, n: int, step: int) -> np.ndarray:
    width = width_of(codec)
    levels = np.array(LEVELS[width], np.float32)
    rows_in_all = math.ceil(n / codec.block)
    scales = np.frombuffer(body, "<f4", rows_in_all)
    refuse_unless(
        bool((scales.view(np.uint32) < 0x7F800000).all()), "a scale is negative, infinite or NaN"
    )
    at = 4 * rows_in_all
    out = np.zeros(n, np.float32)
    for first, rows, length in lengths(codec, n):
        kept, size = kept_of(codec, length), block_bytes(codec, length)
        code = np.stack(
            [unpack(body[at + r * size : at + (r + 1) * size], kept, width) for r in range(rows)]
        )
        at += rows * size
        level = levels[code & ((1 << (width - 1)) - 1)]
        values = np.where(code >> (width - 1), -level, level)
        if kept < length:
            full = np.zeros((rows, length), np.float32)
            np.put_along_axis(full, drawn(codec, step, first, rows, length), values, 1)
            values = full
        scale = scales[first // codec.block :][:rows, None]
        out[first : first + rows * length] = unrotate(codec, step, first, values, scale).ravel()
    return out
