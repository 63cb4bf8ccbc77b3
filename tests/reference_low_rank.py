"""The NumPy oracle of codec 17, LowRank: sums in the order that docs/format.md gives."""

from __future__ import annotations

from typing import Any

import numpy as np
from reference_numbers import ITEM_BYTES, key, philox, refuse_unless, saturate, store, widen

SMALLEST_NORMAL = 0x00800000
NOTHING_LEFT = int(np.float32(2.0**-12).view(np.uint32))
ONE = np.float32(1)


def rows_of(codec: Any, n: int, dtype: str) -> int:
    """Rows of the matrix, or 0 where the entries travel as they are."""
    if codec.columns is None or n % codec.columns:
        return 0
    rows = n // codec.columns
    smaller = factor_bytes(codec, rows) < n * ITEM_BYTES[dtype]
    return rows if smaller and codec.rank <= min(rows, codec.columns) else 0


def factor_bytes(codec: Any, rows: int) -> int:
    return int(codec.rank * (rows + codec.columns) * ITEM_BYTES[codec.factors])


def dots(m: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The product of each row of `m` with `v`: sixteen lanes, then 8, 4, 2, 1."""
    n = m.shape[1]
    lanes = np.zeros((len(m), 16), np.float32)
    for start in range(0, n, 16):
        width = min(16, n - start)
        lanes[:, :width] = lanes[:, :width] + m[:, start : start + width] * v[start : start + width]
    for half in (8, 4, 2, 1):
        lanes[:, :half] = lanes[:, :half] + lanes[:, half : 2 * half]
    return lanes[:, 0].copy()


def power_of_two(column: np.ndarray) -> np.float32:
    """What brings the largest magnitude to 2 or more and below 4."""
    exponent = int(key(column).max()) >> 23
    return np.uint32(255 - exponent << 23).view(np.float32)


def cold(codec: Any, k: int) -> np.ndarray:
    i = np.arange(k * codec.columns, (k + 1) * codec.columns)
    words = philox(np.arange(i[-1] // 4 + 1), 0, 4, codec.seed)[i // 4, i % 4]
    return words.astype(np.int32).astype(np.float32) * np.float32(2.0**-31)


def start(codec: Any, memory: np.ndarray | None) -> np.ndarray:
    """Q to begin with: rank rows, one for each column of it."""
    q = np.zeros((codec.rank, codec.columns), np.float32)
    for k in range(codec.rank):
        if memory is not None:
            q[k] = memory[k]
        if int(key(q[k]).max()) < SMALLEST_NORMAL:
            q[k] = cold(codec, k)
        q[k] = q[k] * power_of_two(q[k]) * np.float32(2.0**-34)
    return q


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    return saturate(values, dtype)


def orthonormal(p: np.ndarray, factors: str) -> np.ndarray:
    for k in range(len(p)):
        largest = int(key(p[k]).max())
        if largest >= SMALLEST_NORMAL:
            p[k] = p[k] * power_of_two(p[k])
            for _ in range(2):
                for before in range(k):
                    c = dots(p[k : k + 1], p[before])[0]
                    p[k] = p[k] + -c * p[before]
            largest = int(key(p[k]).max())
        if largest < NOTHING_LEFT:
            p[k] = 0
            continue
        p[k] = p[k] * (ONE / np.sqrt(dots(p[k : k + 1], p[k])[0]))
        p[k] = np.copysign(np.minimum(np.abs(p[k]), ONE), p[k])
    return rounded(p, factors)


def factors_of(
    codec: Any, a: np.ndarray, rows: int, memory: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(over="ignore", under="ignore"):
        m = a.reshape(rows, codec.columns)
        p = np.stack([dots(m, column) for column in start(codec, memory)])
        p = orthonormal(p, codec.factors)
        q = np.zeros((codec.rank, codec.columns), np.float32)
        for row in range(rows):
            q = q + m[row] * p[:, row : row + 1]
        return p, rounded(q, codec.factors)


def encode(codec: Any, a: np.ndarray, rows: int, memory: np.ndarray | None = None) -> bytes:
    return b"".join(
        store(f.ravel(), codec.factors).tobytes() for f in factors_of(codec, a, rows, memory)
    )


def decode(codec: Any, body: bytes, rows: int, dtype: str) -> np.ndarray:
    kind = "<u2" if codec.factors == "bfloat16" else codec.factors
    values = widen(np.frombuffer(body, kind), codec.factors)
    split = codec.rank * rows
    p, q = (
        values[:split].reshape(codec.rank, rows),
        values[split:].reshape(codec.rank, codec.columns),
    )
    refuse_unless(bool((key(p) <= key(ONE)).all()), "an entry of P is beyond one")
    refuse_unless(bool((key(q) < 0x7F800000).all()), "an entry of Q is infinite or NaN")
    with np.errstate(over="ignore", under="ignore"):
        product = p[0][:, None] * q[0]
        for k in range(1, codec.rank):
            product = product + p[k][:, None] * q[k]
        return saturate(product.ravel(), dtype)
