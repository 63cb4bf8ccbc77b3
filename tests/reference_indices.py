"""The oracle's packed arrays and index streams (docs/format.md, section 3)."""

from __future__ import annotations

import math

import numpy as np
from reference_numbers import refuse_unless

INDEX_FORMS = {"elias-fano": 1, "bitmap": 2, "u16": 3}


# --- Packed arrays, low bit first. ---


def pack(items: np.ndarray, bits: int) -> bytes:
    expanded = (items.astype(np.int64)[:, None] >> np.arange(bits)) & 1
    return np.packbits(expanded.astype(np.uint8).ravel(), bitorder="little").tobytes()


def unpack(data: bytes, count: int, bits: int) -> np.ndarray:
    """`count` unsigned items; refuses set bits after the last."""
    flat = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    refuse_unless(not flat[count * bits :].any(), "padding bits are set")
    weights = np.int64(1) << np.arange(bits, dtype=np.int64)
    return flat[: count * bits].reshape(count, bits) @ weights


def bytes_of(bits: int) -> int:
    return (bits + 7) // 8


# --- Section 3: index streams. ---


def low_bits(n: int, k: int) -> int:
    """floor(log2(n / k))."""
    return (n // k).bit_length() - 1


def index_bytes(form: int, n: int, k: int) -> int:
    if form == 1:
        if k == 0:
            return 0
        low = low_bits(n, k)
        return bytes_of(k * low) + bytes_of(k + (n >> low) + 1)
    if form == 2:
        return bytes_of(n)
    return 4 * math.ceil(n / 65536) + 2 * k


def index_form(name: str, n: int, k: int) -> int:
    if name == "auto":
        return min((1, 2, 3), key=lambda form: (index_bytes(form, n, k), form))
    return INDEX_FORMS[name]


def encode_indices(form: int, indices: np.ndarray, n: int) -> bytes:
    k = len(indices)
    if form == 1:
        if k == 0:
            return b""
        low = low_bits(n, k)
        high = np.zeros(k + (n >> low) + 1, np.uint8)
        high[(indices >> low) + np.arange(k)] = 1
        return pack(indices & ((1 << low) - 1), low) + pack(high, 1)
    if form == 2:
        present = np.zeros(n, np.uint8)
        present[indices] = 1
        return pack(present, 1)
    counts = np.bincount(indices >> 16, minlength=math.ceil(n / 65536))
    return counts.astype("<u4").tobytes() + (indices & 0xFFFF).astype("<u2").tobytes()


def decode_indices(form: int, data: bytes, n: int, k: int) -> np.ndarray:
    if form == 1:
        if k == 0:
            return np.zeros(0, np.int64)
        low = low_bits(n, k)
        split = bytes_of(k * low)
        positions = np.flatnonzero(unpack(data[split:], k + (n >> low) + 1, 1))
        refuse_unless(len(positions) == k, f"{len(positions)} indices instead of {k}")
        indices = ((positions - np.arange(k)) << low) | unpack(data[:split], k, low)
    elif form == 2:
        indices = np.flatnonzero(unpack(data, n, 1))
        refuse_unless(len(indices) == k, f"{len(indices)} indices instead of {k}")
    else:
        ranges = math.ceil(n / 65536)
        counts = np.frombuffer(data, "<u4", ranges).astype(np.int64)
        refuse_unless(int(counts.sum()) == k, f"{counts.sum()} indices instead of {k}")
        offsets = np.frombuffer(data, "<u2", k, 4 * ranges).astype(np.int64)
        indices = np.repeat(np.arange(ranges) << 16, counts) + offsets
    refuse_unless(bool((np.diff(indices) > 0).all()), "indices do not strictly increase")
    refuse_unless(k == 0 or int(indices[-1]) < n, "an index reaches n")
    return indices
