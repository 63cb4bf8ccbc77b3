"""Values as they are, or rounded to a smaller float."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from .. import _core
from ..buffers import DTYPE_CODES, DTYPES, ITEM_BYTES, Bytes, Floats
from ..codec import Codec
from .check import check_choice


class _Values(Codec):
    """One float per entry, of a dtype that may depend on the input's."""

    def _wire_dtype(self, dtype: str) -> str:
        raise NotImplementedError

    def body_size(self, n: int, dtype: str = "float32") -> int:
        return n * ITEM_BYTES[self._wire_dtype(dtype)]

    def _compress(
        self, x: npt.NDArray[Any], dtype: str, body: Bytes, residual: Floats | None, step: int
    ) -> bool:
        wire = DTYPE_CODES[self._wire_dtype(dtype)]
        return _core.encode_cast(x, residual, DTYPE_CODES[dtype], wire, body)

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
        wire = DTYPE_CODES[self._wire_dtype(dtype)]
        _core.decode_cast(body, DTYPE_CODES[dtype], wire, out, accumulate, scale)


@dataclass(frozen=True)
class Identity(_Values, id=1):
    """Every value as it is: the baseline, and exact where exactness is needed."""

    def _wire_dtype(self, dtype: str) -> str:
        return dtype


@dataclass(frozen=True)
class Cast(_Values, id=2):
    """Every value rounded to a smaller float, to nearest even; values beyond its range become its largest.

    Parameters
    ----------
    dtype : {"float16", "bfloat16", "float32"}
        What travels.
    """

    dtype: str = "float16"

    def __post_init__(self) -> None:
        check_choice("Cast", "dtype", self.dtype, tuple(DTYPE_CODES))

    def _wire_dtype(self, dtype: str) -> str:
        return self.dtype

    def _params(self) -> bytes:
        return bytes([DTYPE_CODES[self.dtype]])

    @classmethod
    def _from_params(cls, params: bytes) -> Cast:
        return cls(dtype=DTYPES.get(params[0], f"code {params[0]}"))
