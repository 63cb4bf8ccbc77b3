"""Values as they are, or rounded to a smaller float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .. import _core
from ..buffers import DTYPE_CODES, DTYPES, ITEM_BYTES, Bytes
from ..codec import Call
from .check import check_choice
from .native import Dense


@dataclass(frozen=True)
class Identity(Dense, id=1):
    """Every value as it is: the baseline, and exact where exactness is needed."""

    def _native_values(self) -> _core.ValueCodec:
        return _core.ValueCodec("identity")

    is_additive = True

    def _sum_bodies(self, bodies: Sequence[Bytes], dtype: str, wrap: bool) -> Bytes:
        return Cast(dtype)._sum_bodies(bodies, dtype, wrap)


@dataclass(frozen=True)
class Cast(Dense, id=2):
    """Every value rounded to a smaller float, to nearest even; values beyond its range become its largest.

    Parameters
    ----------
    dtype : {"float16", "bfloat16", "float32"}
        What travels.
    """

    dtype: str = "float16"

    def __post_init__(self) -> None:
        check_choice("Cast", "dtype", self.dtype, tuple(DTYPE_CODES))

    def _params(self) -> bytes:
        return bytes([DTYPE_CODES[self.dtype]])

    @classmethod
    def _from_params(cls, params: bytes) -> Cast:
        return cls(dtype=DTYPES.get(params[0], f"code {params[0]}"))

    def _native_values(self) -> _core.ValueCodec:
        return _core.ValueCodec("cast", wire=DTYPE_CODES[self.dtype])

    is_additive = True

    def _sum_bodies(self, bodies: Sequence[Bytes], dtype: str, wrap: bool) -> Bytes:
        # As float32 the values that travel are exact, whatever the dtype of the payload.
        sums = np.empty(bodies[0].size // ITEM_BYTES[self.dtype], np.float32)
        for number, body in enumerate(bodies):
            self._decompress(body, "float32", 0, sums, number > 0, 1.0, False)
        _core.round_values(DTYPE_CODES["float32"], sums)
        total = np.empty(bodies[0].size, np.uint8)
        self._compress(sums, "float32", total, None, Call())
        return total
