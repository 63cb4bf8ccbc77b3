"""Natural compression: powers of two."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from .. import _core
from .check import check_block_size, check_choice, check_integer
from .native import Dense

PARAMS = struct.Struct("<BH")
#: In the order of the native choices.
SMALL_FLOATS = ("natural", "e4m3", "e5m2", "nf4")


def small_float(
    name: str, block_size: int, rounding: str = "nearest", seed: int = 0
) -> _core.ValueCodec:
    """The native form of the codecs that have a scale for a block and a small float for an entry."""
    return _core.ValueCodec(
        "smallfloat",
        block_size=block_size,
        seed=seed if rounding == "stochastic" else None,
        choice=SMALL_FLOATS.index(name),
    )


@dataclass(frozen=True)
class Natural(Dense, id=12):
    """A sign and a power of two in 8 bits (Horvath et al. 2019, "Natural compression for distributed deep learning").

    An entry is rounded to one of the two powers of two around it, with stochastic rounding so that the mean over steps is the input:
    unbiased, and the variance is at most an eighth of the square of the entry, however much entries differ. A block reaches
    from its largest magnitude down to 2^-126 of it; sixteen random bits decide. Magnitudes above 2^127 become 2^127.

    Parameters
    ----------
    block_size : int
        Entries per float32 scale, a multiple of 64.
    rounding : {"stochastic", "nearest"}
    seed : int
        Of the random bits of stochastic rounding; the result depends on seed, step and position alone.
    """

    block_size: int = 1024
    rounding: Literal["nearest", "stochastic"] = "stochastic"
    seed: int = 0

    def __post_init__(self) -> None:
        check_block_size("Natural", self.block_size)
        check_choice("Natural", "rounding", self.rounding, ("nearest", "stochastic"))
        check_integer("Natural", "seed", self.seed, 0, 2**64 - 1)

    def _params(self) -> bytes:
        return PARAMS.pack(0, self.block_size // 64)

    @classmethod
    def _from_params(cls, params: bytes) -> Natural:
        return cls(block_size=64 * PARAMS.unpack_from(params)[1])

    def _native_values(self) -> _core.ValueCodec:
        return small_float("natural", self.block_size, self.rounding, self.seed)
