"""The NumPy oracle: docs/format.md, version 1, written from the document alone.

Every kernel variant must give these bytes. Nothing here is clever: each function is one paragraph
of the document. Codec arguments are duck-typed: a codec is known by the name of its class and by
its fields, so tersegrad's dataclasses and the small ones below serve alike. Inside the oracle a
bfloat16 array is an array of uint16 bits.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import reference_low_rank as low_rank
import reference_rotated as rotated
from reference_indices import (
    INDEX_FORMS,
    bytes_of,
    decode_indices,
    encode_indices,
    index_bytes,
    index_form,
    low_bits,
    pack,
    unpack,
)
from reference_levels import decode_magnitudes, encode_magnitudes
from reference_numbers import (
    DTYPE_IDS,
    DTYPE_NAMES,
    ITEM_BYTES,
    RefusedError,
    accumulate,
    crc32c,
    dtype_of,
    is_finite,
    key,
    philox,
    random_indices,
    refuse_unless,
    rounding_noise,
    saturate,
    store,
    widen,
)
from reference_rotated import Rotated
from reference_smallfloat import SMALL_FLOATS, decode_small, encode_small
from reference_threshold import threshold_of

# What the tests use of the other files.
__all__ = ["RefusedError", "Rotated", "accumulate", "low_bits", "philox"]


# --- Codecs: the fields of section 4 with the defaults of the package. ---


@dataclass(frozen=True)
class Identity:
    pass


@dataclass(frozen=True)
class Cast:
    dtype: str = "float16"


@dataclass(frozen=True)
class Quantize:
    bits: int = 8
    block_size: int = 256
    rounding: str = "nearest"
    seed: int = 0
    scale: str = "max"


@dataclass(frozen=True)
class Sign:
    block_size: int = 1024


@dataclass(frozen=True)
class Ternary:
    block_size: int = 1024
    threshold: float = 0.0


@dataclass(frozen=True)
class Integers:
    bits: int = 16
    scale: float | None = None
    addends: int = 1
    rounding: str = "nearest"
    seed: int = 0


@dataclass(frozen=True)
class Magnitudes:
    bits: int = 4
    block_size: int = 256
    grid: str = "auto"


@dataclass(frozen=True)
class Natural:
    block_size: int = 1024
    rounding: str = "stochastic"
    seed: int = 0


@dataclass(frozen=True)
class Float8:
    format: str = "e4m3"
    block_size: int = 256
    rounding: str = "nearest"
    seed: int = 0


@dataclass(frozen=True)
class NF4:
    block_size: int = 64


@dataclass(frozen=True)
class LowRank:
    rank: int = 4
    factors: str = "float32"
    columns: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class TopK:
    density: float | None = None
    k: int | None = None
    values: Any = None
    indices: str = "auto"


@dataclass(frozen=True)
class Threshold:
    value: float | None = None
    density: float | None = None
    values: Any = None
    indices: str = "auto"


@dataclass(frozen=True)
class ChunkTopK:
    k: int = 64
    chunk: int = 4096
    values: Any = None
    indices: str = "auto"


@dataclass(frozen=True)
class RandomK:
    density: float | None = None
    seed: int = 0
    k: int | None = None
    values: Any = None


CODEC_IDS = {
    "Identity": 1,
    "Cast": 2,
    "Quantize": 3,
    "Sign": 4,
    "TopK": 5,
    "ChunkTopK": 6,
    "RandomK": 7,
    "Ternary": 8,
    "Rotated": 10,
    "Magnitudes": 11,
    "Natural": 12,
    "Float8": 13,
    "NF4": 14,
    "Integers": 15,
    "Threshold": 16,
    "LowRank": 17,
}
VALUE_CODECS = (
    "Identity",
    "Cast",
    "Quantize",
    "Sign",
    "Ternary",
    "Integers",
    "Magnitudes",
    *SMALL_FLOATS,
)


def kind_of(codec: Any) -> str:
    return type(codec).__name__


def values_of(codec: Any) -> Any:
    return Identity() if codec.values is None else codec.values


# --- Section 4: codecs. ---


def count_of(codec: Any, n: int) -> int:
    """The number of survivors of a sparse codec."""
    if kind_of(codec) == "ChunkTopK":
        full, rest = divmod(n, codec.chunk)
        return full * min(codec.k, codec.chunk) + min(codec.k, rest)
    if n == 0:
        return 0
    return min(n, codec.k if codec.k is not None else max(1, round(codec.density * n)))


def select(codec: Any, a: np.ndarray, step: int) -> np.ndarray:
    """The indices of the survivors, ascending."""
    n = len(a)
    if kind_of(codec) == "RandomK":
        return random_indices(n, count_of(codec, n), codec.seed, step)
    if kind_of(codec) == "Threshold":
        if codec.density is None or n == 0:
            return np.flatnonzero(np.abs(a) >= np.float32(codec.value or 0))
        k = min(n, max(1, round(codec.density * n)))
        return np.flatnonzero(np.abs(a) >= threshold_of(a, k))
    rank = np.uint32(0x7FFFFFFF) - key(
        a
    )  # ascending rank is descending key; a stable sort keeps lower indices first
    if kind_of(codec) == "TopK":
        return np.sort(np.argsort(rank, kind="stable")[: count_of(codec, n)])
    parts = []
    whole = n - n % codec.chunk
    for first, chunks in (
        (0, rank[:whole].reshape(-1, codec.chunk)),
        (whole, rank[whole:].reshape(1, -1)),
    ):
        best = np.sort(np.argsort(chunks, axis=1, kind="stable")[:, : codec.k], axis=1)
        parts.append((best + first + codec.chunk * np.arange(len(chunks))[:, None]).ravel())
    return np.concatenate(parts)


def is_fixed_size(codec: Any) -> bool:
    growing = getattr(codec, "indices", "") in ("rice", "runs")
    return not growing and kind_of(codec) != "Threshold"


def body_size(codec: Any, n: int, dtype: str) -> int:
    """Of a codec with a fixed size."""
    kind = kind_of(codec)
    if kind == "Identity":
        return n * ITEM_BYTES[dtype]
    if kind == "Cast":
        return n * ITEM_BYTES[codec.dtype]
    if kind == "Quantize":
        return 4 * math.ceil(n / codec.block_size) + bytes_of(n * codec.bits)
    if kind == "Sign":
        return 4 * math.ceil(n / codec.block_size) + bytes_of(n)
    if kind == "Ternary":
        full, rest = divmod(n, codec.block_size)
        digits = full * math.ceil(codec.block_size / 5) + math.ceil(rest / 5)
        return 4 * math.ceil(n / codec.block_size) + digits
    if kind == "Integers":
        return n * codec.bits // 8
    if kind == "Rotated":
        return rotated.body_size(codec, n)
    if kind in SMALL_FLOATS:
        return 4 * math.ceil(n / codec.block_size) + bytes_of(n * (4 if kind == "NF4" else 8))
    if kind == "Magnitudes":
        return 4 * math.ceil(n / codec.block_size) + bytes_of(n * codec.bits)
    if kind == "LowRank":
        rows = low_rank.rows_of(codec, n, dtype)
        return low_rank.factor_bytes(codec, rows) if rows else n * ITEM_BYTES[dtype]
    k = count_of(codec, n)
    indices = 0 if kind == "RandomK" else index_bytes(index_form(codec.indices, n, k), n, k)
    return indices + body_size(values_of(codec), k, dtype)


def blocks(a: np.ndarray, block_size: int) -> np.ndarray:
    """The entries as one row per block, the last row filled up with zeros."""
    rows = math.ceil(len(a) / block_size)
    padded = np.zeros(rows * block_size, np.float32)
    padded[: len(a)] = a
    return padded.reshape(rows, block_size)


def encode_quantize(codec: Any, a: np.ndarray, step: int) -> bytes:
    largest_code = 2 ** (codec.bits - 1) - 1
    table = blocks(a, codec.block_size)
    largest = np.abs(table).max(axis=1, initial=0)
    used = largest >= np.float32(2.0**-100)
    if codec.scale == "l2":
        share = np.float32(1) / np.where(used, largest, np.float32(1))
        shares = (table * share[:, None]).ravel()[: len(a)]
        with np.errstate(over="ignore"):
            norm = largest * np.sqrt(sums(shares * shares, codec.block_size))
        norm = np.minimum(norm, np.finfo(np.float32).max)
        largest = np.where(used, np.maximum(norm, largest), largest)
    scale = np.where(used, largest / np.float32(largest_code), np.float32(0))
    inverse = np.float32(largest_code * 65536) / np.where(used, largest, np.float32(1))
    scaled = np.rint(np.where(used[:, None], table, np.float32(0)) * inverse[:, None])
    fixed = scaled.astype(np.int64).ravel()[: len(a)]
    noise = rounding_noise(len(a), codec.seed, step) if codec.rounding == "stochastic" else 32768
    codes = np.where(used.repeat(codec.block_size)[: len(a)], (fixed + noise) >> 16, 0)
    return scale.astype("<f4").tobytes() + pack(codes, codec.bits)


def sums(a: np.ndarray, block_size: int) -> np.ndarray:
    """The magnitudes of each block, added in the order of codec 4."""
    table = np.abs(blocks(a, block_size)).reshape(-1, block_size // 64, 64)
    lanes = np.zeros((len(table), 64), np.float32)
    with np.errstate(over="ignore"):
        for row in range(table.shape[1]):
            lanes = lanes + table[:, row]
        for half in (32, 16, 8, 4, 2, 1):
            lanes = lanes[:, :half] + lanes[:, half : 2 * half]
    return lanes[:, 0]


def means(a: np.ndarray, block_size: int, count: np.ndarray) -> np.ndarray:
    return np.minimum(sums(a, block_size) / count.astype(np.float32), np.finfo(np.float32).max)


def block_counts(n: int, block_size: int) -> np.ndarray:
    return np.minimum(n - np.arange(math.ceil(n / block_size)) * block_size, block_size)


def encode_sign(codec: Any, a: np.ndarray) -> bytes:
    scale = means(a, codec.block_size, block_counts(len(a), codec.block_size))
    return scale.astype("<f4").tobytes() + pack(np.signbit(a), 1)


def digit_bytes(codec: Any, n: int) -> list[int]:
    """How many bytes the digits of each block fill."""
    return [math.ceil(count / 5) for count in block_counts(n, codec.block_size).tolist()]


def encode_ternary(codec: Any, a: np.ndarray) -> bytes:
    counts = block_counts(len(a), codec.block_size)
    with np.errstate(over="ignore"):
        limit = np.float32(codec.threshold) * means(a, codec.block_size, counts)
    kept = (np.abs(a) >= limit.repeat(counts)) & (a != 0)
    blockwise = blocks(kept.astype(np.float32), codec.block_size).sum(axis=1)
    mean = means(np.where(kept, a, np.float32(0)), codec.block_size, np.maximum(blockwise, 1))
    scale = np.where(blockwise > 0, mean, np.float32(0))
    digits = np.where(kept, 1 + np.signbit(a), 0)
    packed = b""
    for block in np.split(digits, np.cumsum(counts)[:-1]):
        padded = np.pad(block, (0, -len(block) % 5)).reshape(-1, 5)
        packed += (padded @ (3 ** np.arange(5))).astype(np.uint8).tobytes()
    return scale.astype("<f4").tobytes() + packed


def decode_ternary(codec: Any, packed: bytes, n: int, scales: np.ndarray) -> np.ndarray:
    sizes, counts = digit_bytes(codec, n), block_counts(n, codec.block_size)
    digits = []
    start = 0
    for size, count in zip(sizes, counts.tolist(), strict=True):
        table = np.frombuffer(packed, np.uint8, size, start).astype(np.int64)
        refuse_unless(bool((table < 243).all()), "a byte of digits above 242")
        block = (table[:, None] // 3 ** np.arange(5) % 3).ravel()
        refuse_unless(not block[count:].any(), "digits after the last of a block")
        digits.append(block[:count])
        start += size
    flat = np.concatenate(digits) if digits else np.zeros(0, np.int64)
    return np.choose(flat, [np.zeros_like(scales), scales, -scales])


def unit_of(codec: Any) -> np.float32:
    """The scale that travels."""
    return np.float32(getattr(codec, "unit", codec.scale))


def encode_integers(codec: Any, a: np.ndarray, step: int) -> bytes:
    limit = (2 ** (codec.bits - 1) - 1) // codec.addends
    while limit >= 2**24 and limit % 2 ** (limit.bit_length() - 24):
        limit -= 1
    with np.errstate(over="ignore"):
        units = a * (np.float32(1) / unit_of(codec))
    units = np.clip(units, np.float32(-limit), np.float32(limit))
    nearest = np.rint(units)
    codes = nearest.astype(np.int64)
    if codec.rounding == "stochastic":
        rest = np.rint((units - nearest) * np.float32(65536)).astype(np.int64)
        codes += (rest + rounding_noise(len(a), codec.seed, step)) >> 16
    return codes.astype(f"<i{codec.bits // 8}").tobytes()


def encode_body(codec: Any, a: np.ndarray, dtype: str, step: int) -> bytes:
    kind = kind_of(codec)
    if kind == "Identity":
        return store(a, dtype).tobytes()
    if kind == "Cast":
        return store(a, codec.dtype).tobytes()
    if kind == "Quantize":
        return encode_quantize(codec, a, step)
    if kind == "Sign":
        return encode_sign(codec, a)
    if kind == "Ternary":
        return encode_ternary(codec, a)
    if kind == "Integers":
        return encode_integers(codec, a, step)
    if kind == "Rotated":
        return rotated.encode(codec, a, step)
    if kind == "Magnitudes":
        return encode_magnitudes(codec, a)
    if kind in SMALL_FLOATS:
        return encode_small(codec, a, step)
    if kind == "LowRank":
        rows = low_rank.rows_of(codec, len(a), dtype)
        return low_rank.encode(codec, a, rows) if rows else store(a, dtype).tobytes()
    indices = select(codec, a, step)
    values = encode_body(values_of(codec), a[indices], dtype, step)
    if kind == "RandomK":
        return values
    count = struct.pack("<I", len(indices)) if kind == "Threshold" else b""
    form = index_form(codec.indices, len(a), len(indices))
    return count + encode_indices(form, indices, len(a)) + values


def read_values(body: bytes, n: int, dtype: str) -> np.ndarray:
    stored = np.frombuffer(body, "<u2" if dtype == "bfloat16" else dtype, n)
    values = widen(stored, dtype)
    refuse_unless(is_finite(values), "a dense value is infinite or NaN")
    return values


def read_scales(body: bytes, n: int, block_size: int) -> tuple[np.ndarray, bytes]:
    """One scale per entry, and the rest of the body."""
    rows = math.ceil(n / block_size)
    scales = np.frombuffer(body, "<f4", rows)
    refuse_unless(
        bool((scales.view(np.uint32) < 0x7F800000).all()), "a scale is negative, infinite or NaN"
    )
    return scales.repeat(block_size)[:n], body[4 * rows :]


def decode_body(codec: Any, body: bytes, n: int, dtype: str, step: int) -> np.ndarray:
    """The decoded values, as float32."""
    kind = kind_of(codec)
    if kind == "Identity":
        return read_values(body, n, dtype)
    if kind == "Cast":
        return saturate(read_values(body, n, codec.dtype), dtype)
    if kind == "Quantize":
        scales, packed = read_scales(body, n, codec.block_size)
        codes = unpack(packed, n, codec.bits)
        codes = np.where(codes >> (codec.bits - 1), codes - (1 << codec.bits), codes)
        with np.errstate(over="ignore"):
            return saturate(codes.astype(np.float32) * scales, dtype)
    if kind == "Sign":
        scales, packed = read_scales(body, n, codec.block_size)
        return saturate(np.where(unpack(packed, n, 1), -scales, scales), dtype)
    if kind == "Ternary":
        scales, packed = read_scales(body, n, codec.block_size)
        return saturate(decode_ternary(codec, packed, n, scales), dtype)
    if kind == "Integers":
        codes = np.frombuffer(body, f"<i{codec.bits // 8}", n)
        with np.errstate(over="ignore"):
            return saturate(codes.astype(np.float32) * unit_of(codec), dtype)
    if kind == "LowRank":
        rows = low_rank.rows_of(codec, n, dtype)
        return low_rank.decode(codec, body, rows, dtype) if rows else read_values(body, n, dtype)
    if kind == "Rotated":
        return saturate(rotated.decode(codec, body, n, step), dtype)
    if kind == "Magnitudes":
        return saturate(decode_magnitudes(codec, body, n), dtype)
    if kind in SMALL_FLOATS:
        scales, packed = read_scales(body, n, codec.block_size)
        return saturate(decode_small(codec, scales, packed, n), dtype)
    if kind == "Threshold":
        refuse_unless(len(body) >= 4, "too short for its count")
        k, body = struct.unpack_from("<I", body)[0], body[4:]
        refuse_unless(k <= n, f"{k} of {n} entries")
    else:
        k = count_of(codec, n)
    if kind == "RandomK":
        indices, values = random_indices(n, k, codec.seed, step), body
    else:
        form = index_form(codec.indices, n, k)
        split = len(body) - body_size(values_of(codec), k, dtype)
        refuse_unless(split >= 0, "too short for its values")
        if kind == "Threshold" and form != 4:
            refuse_unless(split == index_bytes(form, n, k), f"a stream of {split} bytes")
        indices, values = decode_indices(form, body[:split], n, k), body[split:]
    decoded = np.zeros(n, np.float32)
    decoded[indices] = decode_body(values_of(codec), values, k, dtype, step)
    return decoded


# --- Section 1: the header. ---


def parameters(codec: Any, n: int, step: int) -> bytes:
    """The parameter bytes of a codec, without the zeros that fill them up."""
    kind = kind_of(codec)
    if kind == "Identity":
        return b""
    if kind == "Cast":
        return struct.pack("<B", DTYPE_IDS[codec.dtype])
    if kind in ("Quantize", "Magnitudes"):
        return struct.pack("<BH", codec.bits, codec.block_size // 64)
    if kind == "Float8":
        return struct.pack("<BH", 1 + (codec.format == "e5m2"), codec.block_size // 64)
    if kind in ("Sign", "Ternary", "Natural", "NF4"):
        return struct.pack("<BH", 0, codec.block_size // 64)
    if kind == "Integers":
        return struct.pack("<BH", codec.bits, int(unit_of(codec).view(np.uint32)) >> 16)
    if kind == "Rotated":
        log2 = codec.block.bit_length() - 1
        share = rotated.share_of(codec)
        return struct.pack("<BBHQI", rotated.width_of(codec), log2, share, codec.seed, step)
    if kind == "LowRank":
        return struct.pack("<BBHI", codec.rank, DTYPE_IDS[codec.factors], 0, codec.columns or 0)
    inner = values_of(codec)
    word = bytes([CODEC_IDS[kind_of(inner)]]) + parameters(inner, 0, 0).ljust(3, b"\0")
    if kind == "Threshold":
        return struct.pack("<B3x", INDEX_FORMS.get(codec.indices, 0)) + word
    if kind == "RandomK":
        return struct.pack("<IQI", count_of(codec, n), codec.seed, step) + word
    form = index_form(codec.indices, n, count_of(codec, n))
    if kind == "TopK":
        return struct.pack("<IB3x", count_of(codec, n), form) + word
    return struct.pack("<IB3x", codec.k, form) + word + struct.pack("<I", codec.chunk)


def read_codec(
    number: int, raw: bytes, n: int, allowed: tuple[str, ...] = tuple(CODEC_IDS)
) -> tuple[Any, int]:
    """The codec that parameter bytes name, and its step."""
    kind = {value: name for name, value in CODEC_IDS.items()}.get(number, "")
    refuse_unless(kind in allowed, f"codec id {number}")
    step = 0
    codec: Any
    if kind == "Identity":
        codec = Identity()
    elif kind == "Cast":
        refuse_unless(raw[0] in DTYPE_NAMES, f"cast to dtype {raw[0]}")
        codec = Cast(DTYPE_NAMES[raw[0]])
    elif kind in ("Quantize", "Magnitudes", "Sign", "Ternary", *SMALL_FLOATS):
        bits, units = struct.unpack_from("<BH", raw)
        refuse_unless(1 <= units <= 1024, f"block of {units} * 64 entries")
        allowed_bits = {"Quantize": (8, 4, 2), "Magnitudes": range(2, 9), "Float8": (1, 2)}.get(
            kind, (0,)
        )
        refuse_unless(bits in allowed_bits, f"{bits} bits")
        sizes = {"Sign": Sign, "Ternary": Ternary, "Natural": Natural, "NF4": NF4}
        coded = {"Quantize": Quantize, "Magnitudes": Magnitudes}
        if kind == "Float8":
            codec = Float8(("e4m3", "e5m2")[bits - 1], 64 * units)
        else:
            codec = sizes[kind](64 * units) if bits == 0 else coded[kind](bits, 64 * units)
    elif kind == "Integers":
        bits, brain = struct.unpack_from("<BH", raw)
        scale = np.uint32(brain << 16).view(np.float32)
        refuse_unless(bits in (8, 16, 32), f"{bits} bits")
        refuse_unless(bool(2.0**-100 <= scale <= 2.0**100), f"a scale of {scale}")
        codec = Integers(bits, float(scale))
    elif kind == "LowRank":
        rank, factors, _, columns = struct.unpack_from("<BBHI", raw)
        refuse_unless(1 <= rank <= 128, f"rank {rank}")
        refuse_unless(factors in (1, 3), f"factors of dtype {factors}")
        codec = LowRank(rank, DTYPE_NAMES[factors], columns or None)
    elif kind == "Rotated":
        bits, log2, share, seed, step = struct.unpack_from("<BBHQI", raw)
        refuse_unless(1 <= bits <= 4 and 6 <= log2 <= 16, f"{bits} bits, blocks of 2**{log2}")
        least = math.ceil(0.1 * 2**log2)
        refuse_unless(not share or (bits == 1 and least <= share < 2**log2), f"{share} sent")
        codec = Rotated(share / 2**log2 if share else bits, 2**log2, seed=seed)
    elif kind == "Threshold":
        forms = {form: name for name, form in INDEX_FORMS.items()} | {0: "auto"}
        refuse_unless(raw[0] in forms, f"index form {raw[0]}")
        inner, _ = read_codec(raw[4], raw[5:8], n, VALUE_CODECS)
        codec = Threshold(value=0.0, values=inner, indices=forms[raw[0]])
    else:
        k = struct.unpack_from("<I", raw)[0]
        word = raw[16:20] if kind == "RandomK" else raw[8:12]
        inner, _ = read_codec(word[0], word[1:], n, VALUE_CODECS)
        forms = {form: name for name, form in INDEX_FORMS.items()}
        if kind != "RandomK":
            refuse_unless(raw[4] in forms, f"index form {raw[4]}")
        if kind == "ChunkTopK":
            chunk = struct.unpack_from("<I", raw, 12)[0]
            refuse_unless(1 <= chunk <= 65536 and k >= 1, f"{k} of chunks of {chunk}")
            codec = ChunkTopK(k, chunk, inner, forms[raw[4]])
        else:
            refuse_unless(k <= n and (k > 0 or n == 0), f"{k} of {n} entries")
            if kind == "TopK":
                codec = TopK(k=k, values=inner, indices=forms[raw[4]])
            else:
                seed, step = struct.unpack_from("<QI", raw, 4)
                codec = RandomK(k=k, seed=seed, values=inner)
    refuse_unless(
        parameters(codec, n, step).ljust(len(raw), b"\0") == raw,
        "an unused parameter byte is not zero",
    )
    return codec, step


def seal(payload: bytes) -> bytes:
    """The same payload with a correct checksum."""
    return payload[:36] + struct.pack("<I", crc32c(payload[:36] + payload[40:])) + payload[40:]


def compress(
    x: np.ndarray, codec: Any, residual: np.ndarray | None = None, step: int = 0
) -> tuple[bytes, np.ndarray]:
    """The payload of `x`, and the residual it leaves."""
    if kind_of(codec) == "LowRank" and codec.columns is None and x.ndim > 1:
        codec = replace(codec, columns=math.prod(x.shape[1:]) or None)
    dtype = dtype_of(x)
    a = widen(np.ascontiguousarray(x).ravel(), dtype)
    if residual is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            a = a + residual.ravel()
    if not is_finite(a):
        raise FloatingPointError("an entry is infinite or NaN")
    n = len(a)
    body = encode_body(codec, a, dtype, step)
    assert not is_fixed_size(codec) or len(body) == body_size(codec, n, dtype)
    header = struct.pack(
        "<4sBBBB20sQI",
        b"TGRD",
        1,
        CODEC_IDS[kind_of(codec)],
        DTYPE_IDS[dtype],
        x.ndim,
        parameters(codec, n, step),
        len(body),
        0,
    )
    payload = seal(header + struct.pack(f"<{x.ndim}Q", *x.shape) + body)
    with np.errstate(
        over="ignore"
    ):  # at the limit of float32, Rotated may decode to the other sign
        new_residual = a - decode_body(codec, body, n, dtype, step)
    return payload, new_residual.reshape(x.shape)


def decompress(payload: bytes) -> tuple[np.ndarray, str, tuple[int, ...]]:
    """Decoded float32 values in their shape, the dtype they were rounded to, and the shape."""
    refuse_unless(len(payload) >= 40, "shorter than a header")
    magic, version, number, dtype_id, rank, raw, body_bytes, checksum = struct.unpack_from(
        "<4sBBBB20sQI", payload
    )
    refuse_unless(magic == b"TGRD", f"magic {magic!r}")
    refuse_unless(version == 1, f"version {version}")
    refuse_unless(dtype_id in DTYPE_NAMES, f"dtype {dtype_id}")
    refuse_unless(rank <= 32 and len(payload) >= 40 + 8 * rank, f"rank {rank}")
    shape = struct.unpack_from(f"<{rank}Q", payload, 40)
    n = math.prod(shape)
    refuse_unless(n < 2**32, f"shape {shape}")
    codec, step = read_codec(number, raw, n)
    dtype = DTYPE_NAMES[dtype_id]
    if is_fixed_size(codec):
        refuse_unless(body_bytes == body_size(codec, n, dtype), f"body of {body_bytes} bytes")
    refuse_unless(len(payload) == 40 + 8 * rank + body_bytes, "missing or trailing bytes")
    refuse_unless(checksum == crc32c(payload[:36] + payload[40:]), "checksum")
    decoded = decode_body(codec, payload[40 + 8 * rank :], n, dtype, step)
    return decoded.reshape(shape), dtype, shape
