"""Blockwise absmax quantization."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from .. import _core
from .check import check_block_size, check_choice, check_integer
from .native import Dense

_PARAMS = struct.Struct("<BH")


@dataclass(frozen=True)
class Quantize(Dense, id=3):
    """8, 4 or 2 bits per entry and one float32 scale per block.

    The scale is the block's largest magnitude divided by 127, 7 or 1 (Dettmers 2016, "8-bit approximations for parallelism in deep
    learning"). Stochastic rounding is unbiased: the mean over steps is the input.

    ``Quantize(bits=8, scale="l2", rounding="stochastic")`` is QSGD with 127 levels (Alistarh et al. 2017): the scale is the block's
    Euclidean norm divided by the number of levels. Its variance is larger than that of the default, its codes are small and many of
    them zero, which `Zstd` finds. ``Quantize(bits=2, rounding="stochastic")`` is TernGrad without clipping (Wen et al. 2017): an entry
    becomes minus, zero or plus the block's largest magnitude, with a probability of its share of it.

    Parameters
    ----------
    bits : {8, 4, 2}
    block_size : int
        Entries per scale, a multiple of 64.
    rounding : {"nearest", "stochastic"}
    seed : int
        Of the random bits of stochastic rounding; the result depends on seed, step and position alone.
    scale : {"max", "l2"}
        What the scale is made from: the block's largest magnitude or its Euclidean norm. A decoder need not know.
    """

    bits: int = 8
    block_size: int = 256
    rounding: Literal["nearest", "stochastic"] = "nearest"
    seed: int = 0
    scale: Literal["max", "l2"] = "max"

    def __post_init__(self) -> None:
        check_choice("Quantize", "bits", self.bits, (8, 4, 2))
        check_block_size("Quantize", self.block_size)
        check_choice("Quantize", "rounding", self.rounding, ("nearest", "stochastic"))
        check_integer("Quantize", "seed", self.seed, 0, 2**64 - 1)
        check_choice("Quantize", "scale", self.scale, ("max", "l2"))

    def _params(self) -> bytes:
        return _PARAMS.pack(self.bits, self.block_size // 64)

    @classmethod
    def _from_params(cls, params: bytes) -> Quantize:
        bits, blocks = _PARAMS.unpack_from(params)
        return cls(bits=bits, block_size=64 * blocks)

    def _native_values(self) -> _core.ValueCodec:
        seed = self.seed if self.rounding == "stochastic" else None
        return _core.ValueCodec(
            "quantize",
            bits=self.bits,
            block_size=self.block_size,
            seed=seed,
            by_norm=self.scale == "l2",
        )
