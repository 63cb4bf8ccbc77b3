"""Quantiles of the normal distribution."""

from __future__ import annotations

from dataclasses import dataclass

from .. import _core
from .check import check_block_size
from .native import Dense
from .natural import PARAMS, small_float


@dataclass(frozen=True)
class NF4(Dense, id=14):
    """4 bits per entry: sixteen levels for normally distributed entries (Dettmers et al. 2023, "QLoRA").

    The levels are quantiles of the normal distribution, zero among them, times the block's largest magnitude. At equal bytes the
    error on bell-shaped blocks is below that of ``Quantize(bits=4)``, which spreads its levels evenly.

    Parameters
    ----------
    block_size : int
        Entries per float32 scale, a multiple of 64.
    """

    block_size: int = 64

    def __post_init__(self) -> None:
        check_block_size("NF4", self.block_size)

    def _params(self) -> bytes:
        return PARAMS.pack(0, self.block_size // 64)

    @classmethod
    def _from_params(cls, params: bytes) -> NF4:
        return cls(block_size=64 * PARAMS.unpack_from(params)[1])

    def _native_values(self) -> _core.ValueCodec:
        return small_float("nf4", self.block_size)
