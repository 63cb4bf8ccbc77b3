"""Integers on a shared grid, which add without decoding."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import _core
from ..buffers import Bytes, view
from ..errors import CodecError, InputError
from .check import check_choice, check_integer
from .native import Dense
from .once import Once

if TYPE_CHECKING:
    from ..buffers import AnyArray

_PARAMS = struct.Struct("<BH")  # bits, scale as bfloat16
_SMALLEST, _LARGEST = 2.0**-100, 2.0**100
_PIECE = 64 * 1024  # codes that are summed at a time, in cache


@dataclass(frozen=True)
class Integers(Dense, id=15):
    """Fixed-point integers on a grid that all senders share: payloads add without decoding, with `tersegrad.add` or an all-reduce.

    A value becomes the nearest multiple of `scale`, or with stochastic rounding one of its two neighbours, so that the mean over steps is
    the value. The body is the codes alone, as little-endian int8, int16 or int32: an all-reduce SUM of bodies, as tensors of that dtype, is
    the body of the sum. One sender's codes stay within ``(2 ** (bits - 1) - 1) // addends``, so that `addends` payloads never
    overflow; larger values are cut to that limit and the rest goes into the residual. Modulo ``2 ** bits`` the codes are a group, which
    is what secure aggregation needs (Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine learning"). The
    scale is the senders' agreement and not the data's, as in SwitchML (Sapio et al. 2021, "Scaling distributed machine learning with
    in-network aggregation").

    Fewer than 8 bits do not add in place: neighbours in a byte would carry into each other.

    Parameters
    ----------
    bits : {8, 16, 32}
        Of a code, on the wire and in the sum.
    scale : float
        Distance of two neighbours, 2**-100 to 2**100, rounded to the nearest bfloat16, which is what travels. With a power of two decoding
        is exact (up to 24 bits), and decoding before or after the sum gives the same bits.
    clip : float
        Instead of `scale`: the largest magnitude that must not be cut. The scale is the smallest bfloat16 that allows it.
    addends : int
        For how many payloads the codes have room.
    rounding : {"nearest", "stochastic"}
    seed : int
        Of the random bits of stochastic rounding. Senders whose errors should cancel take different seeds: it does not travel, and
        payloads with different seeds add.

    Examples
    --------
    >>> import numpy as np, tersegrad as tg
    >>> codec = tg.Integers(bits=16, clip=1.0, addends=16)
    >>> gradients = [np.full(3, 0.25 * sender, np.float32) for sender in range(4)]
    >>> total = tg.add([tg.compress(gradient, codec) for gradient in gradients])
    >>> float(tg.decompress(total).round(2)[0])
    1.5
    """

    bits: int = 16
    scale: float | None = None
    clip: float | None = None
    addends: int = 1
    rounding: Literal["nearest", "stochastic"] = "nearest"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("Integers", "bits", self.bits, (8, 16, 32))
        check_integer("Integers", "addends", self.addends, 1, 2 ** (self.bits - 1) - 1)
        check_choice("Integers", "rounding", self.rounding, ("nearest", "stochastic"))
        check_integer("Integers", "seed", self.seed, 0, 2**64 - 1)
        if (self.scale is None) == (self.clip is None):
            raise CodecError(
                f"Integers: give scale or clip, one of them, not {self.scale!r} and {self.clip!r}"
            )
        for name, value in (("scale", self.scale), ("clip", self.clip)):
            if value is not None and not (type(value) in (int, float) and value > 0):
                raise CodecError(f"Integers: {name} must be a number above 0, not {value!r}")
        if not _SMALLEST <= self.unit <= _LARGEST:
            raise CodecError(
                f"Integers: the scale must be from 2**-100 to 2**100, not {self.scale or self.unit!r}"
            )
        if self.scale is not None:
            object.__setattr__(self, "scale", self.unit)

    @property
    def limit(self) -> int:
        """The largest code of one sender."""
        limit: int = (2 ** (self.bits - 1) - 1) // self.addends
        spare = max(0, limit.bit_length() - 24)  # compared as a float32
        return limit >> spare << spare

    @Once
    def unit(self) -> float:
        """The scale that travels: a bfloat16."""
        if self.scale is not None:
            return _bfloat16(self.scale, upwards=False)
        assert self.clip is not None
        return _bfloat16(self.clip / self.limit, upwards=True)

    def count_cut(self, x: AnyArray, residual: AnyArray | None = None) -> int:
        """How many entries of `x`, or of their sums with the residual, are beyond the limit and would be cut."""
        sums = np.zeros(view(x).array.size, np.float32)
        _core.widen(view(x).array, sums)
        if residual is not None:
            sums += view(residual, "residual").array
        with np.errstate(over="ignore"):
            units = np.abs(sums) * (np.float32(1) / np.float32(self.unit))
        return int(np.count_nonzero(units > np.float32(self.limit)))

    def _params(self) -> bytes:
        return _PARAMS.pack(self.bits, _bits_of(self.unit) >> 16)

    @classmethod
    def _from_params(cls, params: bytes) -> Integers:
        bits, brain = _PARAMS.unpack_from(params)
        return cls(bits=bits, scale=_float_of(brain << 16))

    def _native_values(self) -> _core.ValueCodec:
        seed = self.seed if self.rounding == "stochastic" else None
        return _core.ValueCodec(
            "integers", bits=self.bits, seed=seed, scale=self.unit, limit=self.limit
        )

    is_additive = True

    def _sum_bodies(self, bodies: Sequence[Bytes], dtype: str, wrap: bool) -> Bytes:
        codes = [body.view(f"<i{self.bits // 8}") for body in bodies]
        total = np.empty(codes[0].size, codes[0].dtype)
        # 2 ** 16 addends of 16 bits fit into 32.
        wide: Any = np.int32 if self.bits < 32 and len(bodies) <= 2**16 else np.int64
        for begin in range(0, total.size, _PIECE):
            piece = total[begin : begin + _PIECE]
            if wrap:
                piece[:] = codes[0][begin : begin + _PIECE]
                for other in codes[1:]:
                    piece += other[begin : begin + _PIECE]
                continue
            sums = codes[0][begin : begin + _PIECE].astype(wide)
            for other in codes[1:]:
                sums += other[begin : begin + _PIECE]
            piece[:] = sums
            if not np.array_equal(piece, sums):
                at = begin + int(np.flatnonzero(piece != sums)[0])
                raise InputError(
                    f"the sum of {len(bodies)} codes at entry {at} is {int(sums[at - begin])}, beyond {self.bits} bits; encode with "
                    f"Integers(addends={len(bodies)}) or more, or with more bits (or add with wrap=True, if these are masked)"
                )
        return total.view(np.uint8)


def _bits_of(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


def _float_of(bits: int) -> float:
    return float(np.uint32(bits).view(np.float32))


def _bfloat16(value: float, upwards: bool) -> float:
    """The nearest bfloat16, ties to even, or the least that is not below; infinity beyond the range."""
    with np.errstate(over="ignore"):
        bits = _bits_of(value)
    if upwards:
        bits += _float_of(bits) < value  # float32 rounds to nearest
        bits = bits + 0xFFFF >> 16
    else:
        bits = bits + 0x7FFF + (bits >> 16 & 1) >> 16
    return _float_of(min(bits, 0x7F80) << 16)
