"""Base of the codecs that run as one native call."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _core
from ..buffers import DTYPE_CODES, Bytes, Floats
from ..codec import Call, Codec, check_fixed_size
from ..errors import InputError
from .once import Once


class Native(Codec):
    """A codec with a native form."""

    #: Whether the native form does all the work.
    _is_native = True

    @abstractmethod
    def _make_native(self) -> _core.Codec:
        """The native codec of these parameters."""

    @Once
    def _native(self) -> _core.Codec:
        return self._make_native()

    def body_size(self, n: int, dtype: str = "float32") -> int:
        check_fixed_size(self)
        return self.max_body_size(n, dtype)

    def max_body_size(self, n: int, dtype: str = "float32") -> int:
        if dtype not in DTYPE_CODES or not isinstance(n, (int, np.integer)) or n < 0:
            raise InputError(
                f"body_size takes a count of entries and one of {', '.join(DTYPE_CODES)}, not {n!r} and {dtype!r}"
            )
        return self._native.body_bytes(n, DTYPE_CODES[dtype])

    def _value_bytes(self, n: int, dtype: str) -> int:
        """Bytes of the values, which end every body; in sparse codecs an index stream may come before them."""
        return self.body_size(n, dtype)

    def _compress(
        self, x: npt.NDArray[Any], dtype: str, body: Bytes, residual: Floats | None, call: Call
    ) -> bool:
        finite, call.last_key, call.body_bytes = self._native.encode(
            x, residual, DTYPE_CODES[dtype], call.step, call.last_key, body
        )
        return finite

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
        self._native.decode(body, DTYPE_CODES[dtype], step, out, accumulate, scale, blank)

    def _check(self, body: Bytes, n: int, dtype: str, step: int) -> None:
        self._native.check(body, DTYPE_CODES[dtype], n)

    def _examine(self, body: Bytes, n: int, dtype: str, step: int) -> tuple[float, float]:
        return self._native.examine(body, DTYPE_CODES[dtype], n, step)

    def _add(self, body: Bytes, dtype: str, step: int, out: npt.NDArray[Any], scale: float) -> None:
        self._native.add(body, DTYPE_CODES[dtype], step, out, scale)


class Dense(Native):
    """A native codec that codes every entry, and can code the survivors of a sparse one."""

    @abstractmethod
    def _native_values(self) -> _core.ValueCodec:
        """How values are coded."""

    def _make_native(self) -> _core.Codec:
        return _core.Codec("all", self._native_values())
