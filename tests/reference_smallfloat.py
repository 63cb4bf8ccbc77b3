"""The oracle of small floats: docs/format.md, codecs 12 to 14."""

from __future__ import annotations

from typing import Any

import numpy as np
from reference_indices import pack, unpack
from reference_numbers import rounding_noise

F = np.float32
SMALL_FLOATS = ("Natural", "Float8", "NF4")
#: Bits dropped, exponents moved by, the largest code, and what that stands for.
FORMATS = {
    "natural": (23, 0, 127, F(1)),
    "e4m3": (20, 120, 0x7E, F(448)),
    "e5m2": (21, 112, 0x7B, F(57344)),
}
NF4_LEVELS = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
        0.7229568362236023, 1.0,
    ],
    F,
)  # fmt: skip


def format_of(codec: Any) -> str:
    return {"Natural": "natural", "NF4": "nf4"}.get(type(codec).__name__) or codec.format


def block_scales(codec: Any, largest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scale of each block, and what its entries are multiplied by."""
    if format_of(codec) == "natural":
        exponent = np.minimum((largest.view(np.uint32) + np.uint32(0x7FFFFF)) >> 23, 254)
        scale = (exponent << 23).astype(np.uint32).view(F)
        return scale, np.where(scale > 0, F(1) / np.where(scale > 0, scale, F(1)), F(0))
    top = F(1) if format_of(codec) == "nf4" else FORMATS[codec.format][3]
    used = largest >= F(2.0**-100)
    safe = np.where(used, largest, F(1))
    return np.where(used, safe / top, F(0)), np.where(used, top / safe, F(0))


def encode_small(codec: Any, a: np.ndarray, step: int) -> bytes:
    n, size = len(a), codec.block_size
    padded = np.pad(a, (0, -n % size)).reshape(-1, size)
    scale, inverse = block_scales(codec, np.abs(padded).max(axis=1, initial=0))
    v = a * inverse.repeat(size)[:n]
    if format_of(codec) == "nf4":
        middles = (NF4_LEVELS[:-1] + NF4_LEVELS[1:]) * F(0.5)
        codes = (v[:, None] >= middles).sum(axis=1)
        return scale.astype("<f4").tobytes() + pack(codes, 4)
    dropped, moved_by, most, _ = FORMATS[format_of(codec)]
    # In units of the last bit of a float32 that has the smallest exponent: exact, or rounded as a denormal is.
    smallest = 2.0 ** (moved_by - 149)
    keys = v.view(np.uint32).astype(np.int64) & 0x7FFFFFFF
    units = np.rint(np.abs(v).astype(np.float64) / smallest)
    normal = keys >= (moved_by + 1) << 23
    moved = np.where(normal, keys - (moved_by << 23), np.minimum(units, 2.0**24)).astype(np.int64)
    if codec.rounding == "stochastic":
        noise = rounding_noise(n, codec.seed, step).astype(np.int64)
        added = (noise << (dropped - 16)) + (2 ** (dropped - 17) if dropped > 16 else 0)
    else:
        added = np.full(n, 2 ** (dropped - 1))
    codes = np.minimum((moved + added) >> dropped, most) + 128 * np.signbit(v)
    return scale.astype("<f4").tobytes() + codes.astype(np.uint8).tobytes()


def decode_small(codec: Any, scales: np.ndarray, packed: bytes, n: int) -> np.ndarray:
    """Before it is rounded to a dtype."""
    if format_of(codec) == "nf4":
        with np.errstate(over="ignore"):
            return NF4_LEVELS[unpack(packed, n, 4)] * scales
    dropped, moved_by, _, _ = FORMATS[format_of(codec)]
    codes = np.frombuffer(packed, np.uint8, n).astype(np.int64)
    moved = (codes & 127) << dropped
    exponent, fraction = moved >> 23, (moved & 0x7FFFFF) / 2.0**23
    small = fraction * 2.0 ** (moved_by + 1 - 127)
    magnitude = np.where(
        exponent == 0, small, (1 + fraction) * 2.0 ** (exponent + moved_by - 127.0)
    )
    with np.errstate(over="ignore"):
        product = magnitude.astype(F) * scales
    return np.where(codes & 128, -product, product)
