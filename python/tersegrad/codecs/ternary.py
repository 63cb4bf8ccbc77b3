"""Minus, zero or plus."""

from __future__ import annotations

from dataclasses import dataclass

from .. import _core
from ..errors import CodecError
from .check import check_block_size
from .native import Dense
from .sign import PARAMS


@dataclass(frozen=True)
class Ternary(Dense, id=8):
    """Every entry as minus, zero or plus the mean magnitude of its block's entries that are not zero: 1.6 bits.

    ``TopK(density=0.01, values=Ternary(), indices="rice")`` is sparse ternary compression (Sattler et al. 2019, "Robust and
    communication-efficient federated learning from non-IID data"). Survivors that are zero stay zero, which `Sign` cannot say.
    Needs error feedback to converge.

    Parameters
    ----------
    block_size : int
        Entries per float32 scale, a multiple of 64.
    threshold : float
        Entries smaller than `threshold` times the mean magnitude of their block become zero, 0 to 8. With 0, for survivors, only
        zeros do; 0.7 is near the least error on all entries of a tensor (Li and Liu 2016, "Ternary weight networks").
    """

    block_size: int = 1024
    threshold: float = 0.0

    def __post_init__(self) -> None:
        check_block_size("Ternary", self.block_size)
        if type(self.threshold) not in (int, float) or not 0 <= self.threshold <= 8:
            raise CodecError(
                f"Ternary: threshold must be a number from 0 to 8, not {self.threshold!r}"
            )

    def _params(self) -> bytes:
        return PARAMS.pack(0, self.block_size // 64)

    @classmethod
    def _from_params(cls, params: bytes) -> Ternary:
        return cls(block_size=64 * PARAMS.unpack_from(params)[1])

    def _native_values(self) -> _core.ValueCodec:
        return _core.ValueCodec("ternary", block_size=self.block_size, threshold=self.threshold)
