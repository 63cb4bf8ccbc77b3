"""A random rotation, then the best few bits for what it makes of every input."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Literal

from .. import _core
from ..errors import CodecError, PayloadError
from .check import check_choice, check_integer
from .native import Dense

_STANDING = struct.Struct("<BBHQ")  # bits, log2 of the block, kept or 0 for all, seed
_WIRE = struct.Struct("<BBHQI")  # and the step


@dataclass(frozen=True)
class Rotated(Dense, id=10):
    """1, 2, 3 or 4 bits per entry, or a fraction of one, with the least error that so few bits can have without knowing the data.

    Each block is multiplied by random signs and a Hadamard matrix, which makes its entries look normal whatever they were; the
    quantizer of Lloyd and Max for the normal distribution then fits all of them, and a float32 scale per block makes up for what it
    loses (Vargaftik et al. 2021, "DRIVE: one-bit distributed mean estimation"; Vargaftik et al. 2022, "EDEN:
    communication-efficient and robust distributed mean estimation for federated learning"). Both sides draw the signs from seed and step.

    =======  ===============================  =======================
    bits     error of ``scale="unbiased"``    of ``scale="mmse"``
    =======  ===============================  =======================
    0.25     5.3                              0.841
    1        0.571                            0.363
    2        0.133                            0.117
    3        0.0358                           0.0345
    4        0.00959                          0.00950
    =======  ===============================  =======================

    The error is ``|decoded - x|² / |x|²``; it is the same for a tensor with outliers as for one without, which `Quantize` and `Sign` pay
    dearly for. Take it where many senders are averaged and none of them keeps state, as in federated learning: their errors are
    independent and cancel. Give each sender a seed of its own, and count up the step. With error feedback take ``scale="mmse"``: an
    unbiased estimate with an error above 1 grows its own residual.

    "Unbiased" is exact for a uniformly random rotation. The Hadamard one stands in for it, as in the papers: in the mean of 10,000
    calls on normal blocks of 1024 no bias can be seen. Where a few entries hold most of a block's energy a bias remains along them,
    largest at 1 bit and in short blocks, small beside the error of one call; ``benchmarks/results/bias.md`` measures it.

    Parameters
    ----------
    bits : {4, 3, 2, 1} or float
        A float from 0.1 to below 1 sends one bit for this share of the rotated entries, drawn at random.
    block : int
        Entries that are rotated together and share a scale, a power of two from 64 to 65536. Blocks of 4096 stay in the L1 cache.
    scale : {"unbiased", "mmse"}
        Whether the mean over seeds is the input, or the error of every call is least. The decoder does not need to know.
    seed : int
        Of the random signs.
    """

    bits: float = 4
    block: int = 4096
    scale: Literal["unbiased", "mmse"] = "unbiased"
    seed: int = 0

    def __post_init__(self) -> None:
        bits = self.bits
        low, high = (1, 4) if type(bits) is int else (0.1, math.nextafter(1.0, 0.0))
        if type(bits) not in (int, float) or not low <= bits <= high:
            raise CodecError(
                f"Rotated: bits must be 1, 2, 3 or 4, or a float from 0.1 to below 1, not {bits!r}"
            )
        block = self.block
        if type(block) is not int or not 64 <= block <= 65536 or block & (block - 1):
            raise CodecError(
                f"Rotated: block must be a power of two from 64 to 65536, not {block!r}"
            )
        check_choice("Rotated", "scale", self.scale, ("unbiased", "mmse"))
        check_integer("Rotated", "seed", self.seed, 0, 2**64 - 1)

    @property
    def _kept(self) -> int:
        """How many entries of a whole block are sent; 0 for all."""
        return (
            0 if type(self.bits) is int else min(math.ceil(self.bits * self.block), self.block - 1)
        )

    def _native_values(self) -> _core.ValueCodec:
        return _core.ValueCodec(
            "rotated",
            bits=self.bits if isinstance(self.bits, int) else 1,
            block_size=self.block,
            seed=self.seed,
            kept=self._kept,
            unbiased=self.scale == "unbiased",
        )

    def _params(self) -> bytes:
        bits = self.bits if isinstance(self.bits, int) else 1
        return _STANDING.pack(bits, self.block.bit_length() - 1, self._kept, self.seed)

    @classmethod
    def _from_params(cls, params: bytes) -> Rotated:
        if len(params) < _STANDING.size:
            raise PayloadError("Rotated has too many parameters for a value codec")
        bits, log2, kept, seed = _STANDING.unpack_from(params)
        if log2 > 16 or kept >= 1 << log2 or (kept and bits != 1):
            raise PayloadError(f"{kept} of 2**{log2} rotated entries in {bits} bits mean nothing")
        return cls(bits=kept / (1 << log2) if kept else bits, block=1 << log2, seed=seed)

    def _wire_params(self, n: int, step: int) -> bytes:
        return self._params() + struct.pack("<I", step)

    @classmethod
    def _from_wire(cls, params: bytes, n: int) -> tuple[Rotated, int]:
        return cls._from_params(params), _WIRE.unpack_from(params)[4]
