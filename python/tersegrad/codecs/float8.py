"""Floats of eight bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .. import _core
from ..errors import PayloadError
from .check import check_block_size, check_choice, check_integer
from .native import Dense
from .natural import PARAMS, small_float

FORMATS = ("e4m3", "e5m2")


@dataclass(frozen=True)
class Float8(Dense, id=13):
    """OCP float8 with a scale per block (Micikevicius et al. 2022, "FP8 formats for deep learning").

    The scale takes a block's largest magnitude to the largest finite float8. The relative error of an entry hardly depends on how
    large it is, where `Quantize` with 8 bits errs by as much on all of a block: better for blocks with outliers, worse for even ones.

    Parameters
    ----------
    format : {"e4m3", "e5m2"}
        Three bits of fraction and sixteen binary orders of magnitude, or two bits and twice as many.
    block_size : int
        Entries per float32 scale, a multiple of 64.
    rounding : {"nearest", "stochastic"}
        Stochastic rounding is unbiased.
    seed : int
        Of the random bits of stochastic rounding; the result depends on seed, step and position alone.
    """

    format: Literal["e4m3", "e5m2"] = "e4m3"
    block_size: int = 256
    rounding: Literal["nearest", "stochastic"] = "nearest"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("Float8", "format", self.format, FORMATS)
        check_block_size("Float8", self.block_size)
        check_choice("Float8", "rounding", self.rounding, ("nearest", "stochastic"))
        check_integer("Float8", "seed", self.seed, 0, 2**64 - 1)

    def _params(self) -> bytes:
        return PARAMS.pack(1 + FORMATS.index(self.format), self.block_size // 64)

    @classmethod
    def _from_params(cls, params: bytes) -> Float8:
        number, blocks = PARAMS.unpack_from(params)
        if number not in (1, 2):
            raise PayloadError(f"float8 format {number} is unknown")
        return cls(format=FORMATS[number - 1], block_size=64 * blocks)  # type: ignore[arg-type]

    def _native_values(self) -> _core.ValueCodec:
        return small_float(self.format, self.block_size, self.rounding, self.seed)
