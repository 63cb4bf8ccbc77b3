"""Values as they are, or rounded to a smaller float."""

from __future__ import annotations

from dataclasses import dataclass

from .. import _core
from ..buffers import DTYPE_CODES, DTYPES
from .check import check_choice
from .native import Dense


@dataclass(frozen=True)
class Identity(Dense, id=1):
    """Every value as it is: the baseline, and exact where exactness is needed."""

    def _native_values(self) -> _core.ValueCodec:
        return _core.ValueCodec("identity")


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
