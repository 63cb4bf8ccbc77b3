"""The oracle's packed arrays and index streams (docs/format.md, section 3)."""

from __future__ import annotations

import math

import numpy as np
from reference_numbers import RefusedError, refuse_unless

INDEX_FORMS = {"elias-fano": 1, "bitmap": 2, "u16": 3, "rice": 4, "runs": 5}


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
    """Of the forms whose size follows from n and k: all but Rice and runs."""
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
    if form == 4:
        return encode_rice(indices, n)
    if form == 5:
        return encode_runs(indices, n)
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
    elif form == 4:
        indices = decode_rice(data, n, k)
    elif form == 5:
        indices = decode_runs(data, n, k)
    else:
        ranges = math.ceil(n / 65536)
        counts = np.frombuffer(data, "<u4", ranges).astype(np.int64)
        refuse_unless(int(counts.sum()) == k, f"{counts.sum()} indices instead of {k}")
        offsets = np.frombuffer(data, "<u2", k, 4 * ranges).astype(np.int64)
        indices = np.repeat(np.arange(ranges) << 16, counts) + offsets
    refuse_unless(bool((np.diff(indices) > 0).all()), "indices do not strictly increase")
    refuse_unless(k == 0 or int(indices[-1]) < n, "an index reaches n")
    return indices


# Form 4: Rice codes of gaps, in groups of sixteen.


def rice_parameter(gaps: list[int]) -> int:
    """floor(log2(mean)), or zero for a mean below one."""
    return max(1, sum(gaps) // len(gaps)).bit_length() - 1


def encode_rice(indices: np.ndarray, n: int) -> bytes:
    k = len(indices)
    if k == 0:
        return b""
    gaps = (np.diff(indices.astype(np.int64), prepend=-1) - 1).tolist()
    parameters: list[int] = []
    lows: list[int] = []
    highs: list[int] = []
    previous = low_bits(n, k)
    for group in (gaps[first : first + 16] for first in range(0, k, 16)):
        low = rice_parameter(group)
        step = (low - previous + 16) % 32 - 16
        parameters += [0] * (2 * step if step >= 0 else -2 * step - 1) + [1]
        for gap in group:
            lows += [gap >> bit & 1 for bit in range(low)]
            highs += [0] * (gap >> low) + [1]
        previous = low
    return b"".join(pack(np.array(bits, np.int64), 1) for bits in (parameters, lows, highs))


class Bits:
    """The bits of a section, read one by one; refuses to read beyond them."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> int:
        refuse_unless(self.at + count <= 8 * len(self.data), "the stream ends too early")
        bits = [self.data[at // 8] >> at % 8 & 1 for at in range(self.at, self.at + count)]
        self.at += count
        return sum(bit << place for place, bit in enumerate(bits))

    def zeros(self, most: int) -> int:
        """How many zeros come before the next one."""
        for count in range(most + 1):
            if self.take(1):
                return count
        raise RefusedError(f"more than {most} zeros")

    def rest(self) -> Bits:
        """What comes after the byte in which the last bit was."""
        while self.at % 8:
            refuse_unless(self.take(1) == 0, "padding bits are set")
        return Bits(self.data[self.at // 8 :])


def decode_rice(data: bytes, n: int, k: int) -> np.ndarray:
    indices, rest = read_rice(data, n, k)
    refuse_unless(not rest, "bytes after the last index")
    return indices


def read_rice(data: bytes, n: int, k: int) -> tuple[np.ndarray, bytes]:
    """Indices, and the bytes after their stream."""
    if k == 0:
        return np.zeros(0, np.int64), data
    counts = [min(16, k - first) for first in range(0, min(k, 8 * 16 * len(data) + 1), 16)]
    section, parameters = Bits(data), []
    previous = low_bits(n, k) if k else 0
    for _ in counts:
        number = section.zeros(31)
        previous = (previous + (number // 2 if number % 2 == 0 else -(number // 2) - 1)) % 32
        parameters.append(previous)
    section = section.rest()
    lows = [
        [section.take(low) for _ in range(c)] for low, c in zip(parameters, counts, strict=True)
    ]
    section = section.rest()
    indices: list[int] = []
    last = -1
    for low, parts in zip(parameters, lows, strict=True):
        gaps = [(section.zeros(n >> low) << low) + part for part in parts]
        refuse_unless(rice_parameter(gaps) == low, f"{low} is not the parameter of {gaps}")
        for gap in gaps:
            last += gap + 1
            indices.append(last)
    refuse_unless(len(indices) == k, f"{len(indices)} indices instead of {k}")
    return np.array(indices, np.int64), section.rest().data


# Form 5: runs of neighbours, where they start and where they end, or the indices where runs are short.


def encode_runs(indices: np.ndarray, n: int) -> bytes:
    k = len(indices)
    if k < 64:
        return encode_rice(indices, n)
    firsts = np.flatnonzero(
        np.diff(indices.astype(np.int64), prepend=-2) != 1
    )  # numbers of indices
    runs = len(firsts)
    if 2 * runs > k:
        return (0).to_bytes(4, "little") + encode_rice(indices, n)
    starts = encode_rice(indices[firsts] - firsts, n - k + 1)
    return runs.to_bytes(4, "little") + starts + encode_rice(firsts[1:] - 1, k - 1)


def decode_runs(data: bytes, n: int, k: int) -> np.ndarray:
    if k < 64:
        return decode_rice(data, n, k)
    refuse_unless(len(data) >= 4, "no number of runs")
    runs, data = int.from_bytes(data[:4], "little"), data[4:]
    if runs == 0:
        indices = decode_rice(data, n, k)
        refuse_unless(2 * int((np.diff(indices, prepend=-2) != 1).sum()) > k, "they are runs")
        return indices
    refuse_unless(2 * runs <= k and runs <= n - k + 1, f"{runs} runs of {k} indices below {n}")
    starts, data = read_rice(data, n - k + 1, runs)
    refuse_unless(int(starts[-1]) <= n - k, "a run starts too late")
    lasts = np.append(decode_rice(data, k - 1, runs - 1), k - 1)
    refuse_unless(bool((np.diff(lasts, prepend=-1) > 0).all()), "a run has no index")
    return np.repeat(starts, np.diff(lasts, prepend=-1)) + np.arange(k)
