"""One bit per entry."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from .. import _core
from ..buffers import DTYPE_CODES, Bytes, Floats
from ..codec import Codec
from .check import check_block_size

_PARAMS = struct.Struct("<BH")


@dataclass(frozen=True)
class Sign(Codec, id=4):
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

    def body_size(self, n: int, dtype: str = "float32") -> int:
        return -(-n // self.block_size) * 4 + (n + 7) // 8

    def _params(self) -> bytes:
        return _PARAMS.pack(0, self.block_size // 64)

    @classmethod
    def _from_params(cls, params: bytes) -> Sign:
        return cls(block_size=64 * _PARAMS.unpack_from(params)[1])

    def _compress(
        self, x: npt.NDArray[Any], dtype: str, body: Bytes, residual: Floats | None, step: int
    ) -> bool:
        return _core.encode_sign(x, residual, DTYPE_CODES[dtype], self.block_size, body)

    def _decompress(
        self,
        body: Bytes,
        dtype: str,
        step: int,
        out: npt.NDArray[Any],
        accumulate: bool,
        scale: float,
        blank: bool,
    ) -> None:
        _core.decode_sign(body, DTYPE_CODES[dtype], self.block_size, out, accumulate, scale)
