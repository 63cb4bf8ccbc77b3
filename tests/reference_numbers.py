"""The oracle's numbers: dtypes, rounding, checksum and random words (docs/format.md, 1 and 2)."""

from __future__ import annotations

import math

import numpy as np

DTYPE_IDS = {"float32": 1, "float16": 2, "bfloat16": 3}
DTYPE_NAMES = {number: name for name, number in DTYPE_IDS.items()}
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class RefusedError(ValueError):
    """The bytes are not a payload of version 1."""


def refuse_unless(condition: bool, reason: str) -> None:
    if not condition:
        raise RefusedError(reason)


# --- Section 2: numbers. ---


def dtype_of(x: np.ndarray) -> str:
    name = x.dtype.name
    return "bfloat16" if name == "uint16" else name


def widen(stored: np.ndarray, dtype: str) -> np.ndarray:
    """The float32 values of an array of `dtype`; exact."""
    if dtype == "bfloat16":
        return (stored.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def store(values: np.ndarray, dtype: str) -> np.ndarray:
    """`round(dtype, v)`: to nearest even, saturating. bfloat16 comes back as uint16 bits."""
    values = np.asarray(values, dtype=np.float32, order="C")
    if dtype == "bfloat16":
        bits = values.view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        overflow = (rounded & 0x7FFF) >= 0x7F80
        return np.where(overflow, (rounded & 0x8000) | 0x7F7F, rounded).astype(np.uint16)
    with np.errstate(over="ignore"):
        stored = values.astype(dtype)
    largest = np.finfo(dtype).max
    return np.where(np.isinf(stored), np.copysign(largest, stored), stored).astype(dtype)


def saturate(values: np.ndarray, dtype: str) -> np.ndarray:
    """`float32(round(dtype, v))`."""
    return widen(store(values, dtype), dtype)


def key(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.float32, order="C").view(np.uint32) & np.uint32(0x7FFFFFFF)


def is_finite(values: np.ndarray) -> bool:
    return bool((key(values) < 0x7F800000).all())


def accumulate(out: np.ndarray, decoded: np.ndarray, scale: float, dtype: str) -> np.ndarray:
    """`out + scale * d` in float32, rounded to the dtype of `out`."""
    total = np.asarray(widen(out, dtype) + np.float32(scale) * decoded)
    return total if dtype == "float32" else store(total, dtype)


# --- Section 1: checksum. ---


def _crc_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table


CRC_TABLE = _crc_table()
CRC_LIST = [int(entry) for entry in CRC_TABLE]
CRC_ROW_BYTES = 512


def _crc_bytes(register: int, data: bytes) -> int:
    for byte in data:
        register = CRC_LIST[(register ^ byte) & 0xFF] ^ (register >> 8)
    return register


def _row_shift_tables() -> list[list[int]]:
    """What a register becomes after CRC_ROW_BYTES zero bytes: linear, so a table per byte."""
    zeros = bytes(CRC_ROW_BYTES)
    single = [_crc_bytes(1 << bit, zeros) for bit in range(32)]
    tables = []
    for byte in range(4):
        table = [0] * 256
        for entry in range(256):
            for bit in range(8):
                if entry >> bit & 1:
                    table[entry] ^= single[8 * byte + bit]
        tables.append(table)
    return tables


CRC_SHIFT = _row_shift_tables()


def crc32c(data: bytes) -> int:
    """CRC-32C. Long inputs run as rows side by side, joined by linearity:
    crc(a + b) = shift(crc(a)) ^ crc0(b).
    """
    register = 0xFFFFFFFF
    rows = len(data) // CRC_ROW_BYTES
    if rows >= 8:
        block = np.frombuffer(data, np.uint8, rows * CRC_ROW_BYTES).reshape(rows, CRC_ROW_BYTES)
        partial = np.zeros(rows, np.uint32)
        for column in block.T:
            partial = CRC_TABLE[(partial ^ column) & 0xFF] ^ (partial >> 8)
        t0, t1, t2, t3 = CRC_SHIFT
        for row in partial.tolist():
            register = (
                t0[register & 0xFF]
                ^ t1[register >> 8 & 0xFF]
                ^ t2[register >> 16 & 0xFF]
                ^ t3[register >> 24]
                ^ row
            )
        data = data[rows * CRC_ROW_BYTES :]
    return _crc_bytes(register, data) ^ 0xFFFFFFFF


# --- Section 2: random numbers. ---


def philox(counters: np.ndarray, step: int, domain: int, seed: int) -> np.ndarray:
    """Philox4x32-7: an (N, 4) array of uint32 for N counters of 64 bits."""
    low = np.uint64(0xFFFFFFFF)
    c0 = counters.astype(np.uint64) & low
    c1 = counters.astype(np.uint64) >> np.uint64(32)
    c2 = np.full_like(c0, step)
    c3 = np.full_like(c0, domain)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(7):
        product0 = np.uint64(0xD2511F53) * c0
        product1 = np.uint64(0xCD9E8D57) * c2
        c0 = (product1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0)
        c2 = (product0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1)
        c1 = product1 & low
        c3 = product0 & low
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def rounding_noise(n: int, seed: int, step: int) -> np.ndarray:
    """16 random bits for each of `n` entries."""
    entry = np.arange(n, dtype=np.int64)
    words = philox(np.arange(16 * math.ceil(n / 128)), step, 0, seed)
    word = words[16 * (entry // 128) + entry % 16, (entry // 16) % 4].astype(np.int64)
    return np.where((entry // 64) % 2 == 0, word & 0xFFFF, word >> 16)


def random_indices(n: int, k: int, seed: int, step: int) -> np.ndarray:
    """One index from each of `k` strata."""
    start = np.array([j * n // k for j in range(k + 1)] if k else [0], dtype=np.uint64)
    word = philox(np.arange(k), step, 1, seed)[:, 0].astype(np.uint64)
    return (start[:-1] + ((word * (start[1:] - start[:-1])) >> np.uint64(32))).astype(np.int64)
