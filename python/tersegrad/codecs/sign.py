"""One bit per entry."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .. import _core
from .check import check_block_size
from .native import Dense

#: Zero and the block size in units of 64 entries; `Ternary` has the same.
PARAMS = struct.Struct("<BH")


@dataclass(frozen=True)
class Sign(Dense, id=4):
    """The sign of every entry and the mean magnitude of every block.

    Needs error feedback to converge (Seide et al. 2014; Bernstein et al. 2018, "signSGD"; Karimireddy et al. 2019).

    Parameters
    ----------
    block_size : int
        Entries per float32 scale, a multiple of 64.
    """

    block_size: int = 1024

    def __post_init__(self) -> None:
        check_block_size("Sign", self.block_size)

    def _params(self) -> bytes:
        return PARAMS.pack(0, self.block_size // 64)

    @classmethod
    def _from_params(cls, params: bytes) -> Sign:
        return cls(block_size=64 * PARAMS.unpack_from(params)[1])

    def _native_values(self) -> _core.ValueCodec:
        return _core.ValueCodec("sign", block_size=self.block_size)
