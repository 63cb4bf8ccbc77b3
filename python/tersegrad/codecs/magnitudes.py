"""Sign and magnitude on levels that are fitted to each block."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from .. import _core
from .check import check_block_size, check_choice, check_integer
from .native import Dense

_PARAMS = struct.Struct("<BH")
#: In the order of the native choices.
GRIDS = ("auto", "uniform", "square", "logarithmic")


@dataclass(frozen=True)
class Magnitudes(Dense, id=11):
    """2 to 8 bits per entry: a sign, and a magnitude on levels between the smallest and the largest of its block.

    Made for the survivors of a top-k, whose magnitudes lie between its threshold and the maximum: `Quantize` spends codes on the
    values below that never come. ``TopK(density=0.01, values=4)`` means ``values=Magnitudes(bits=4)``. The levels are
    evenly spaced in the square root of the magnitude or in its logarithm, whichever errs less on the block, so that they are denser
    where survivors are (Panter and Dite 1951, "Quantization distortion in pulse-count modulation with nonuniform spacing of levels").
    Entries of zero stay zero. Not unbiased; with error feedback. On a block that holds zeros two bits are a sign and zero or the maximum.

    Parameters
    ----------
    bits : int
        Of a code, its sign included, 2 to 8; all are packed.
    block_size : int
        Entries per pair of bounds, which take four bytes; a multiple of 64.
    grid : {"auto", "uniform", "square", "logarithmic"}
        In what the levels are evenly spaced: the magnitude, its square root, or its logarithm. ``"auto"`` tries the last two on each
        block, ``"square"`` alone is faster. A block that reaches down to zero has no logarithms and takes ``"square"``.
    """

    bits: int = 4
    block_size: int = 256
    grid: Literal["auto", "uniform", "square", "logarithmic"] = "auto"

    def __post_init__(self) -> None:
        check_integer("Magnitudes", "bits", self.bits, 2, 8)
        check_block_size("Magnitudes", self.block_size)
        check_choice("Magnitudes", "grid", self.grid, GRIDS)

    def _params(self) -> bytes:
        return _PARAMS.pack(self.bits, self.block_size // 64)

    @classmethod
    def _from_params(cls, params: bytes) -> Magnitudes:
        bits, blocks = _PARAMS.unpack_from(params)
        return cls(bits=bits, block_size=64 * blocks)

    def _native_values(self) -> _core.ValueCodec:
        return _core.ValueCodec(
            "levels", bits=self.bits, block_size=self.block_size, choice=GRIDS.index(self.grid)
        )
