"""Zstandard around the values of another codec."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..buffers import Bytes, Floats
from ..codec import (
    PARAMETER_BYTES,
    Call,
    Codec,
    check_body_size,
    check_fixed_size,
    codec_by_id,
)
from ..errors import BackendError, CodecError, PayloadError
from .check import check_integer
from .native import Native
from .threshold import Threshold

_LENGTH = struct.Struct("<I")  # of the frame; 0: the values are as they were


@dataclass(frozen=True)
class Zstd(Codec, id=9):
    """The bodies of another codec, their values compressed by Zstandard (RFC 8878): smaller, slower, and of no fixed size.

    Pays for `Quantize`, and for links below about 1 Gbit/s: ``Zstd(Quantize(bits=4))``, ``Zstd(TopK(density=0.01,
    values=Quantize(bits=4), indices="rice"))``. Exact values and signs of survivors are noise to it. An index stream stays as it is.

    Needs the package ``zstandard``: ``pip install tersegrad[zstd]``. A decoder asks it for the computed number of bytes and no more, so a
    forged body cannot take more memory than the tensor. Its library may change the bytes that it writes from version to version.

    Parameters
    ----------
    inner : Codec
        A codec of this package, except `RandomK` and `Threshold`.
    level : int
        1 to 19; beyond 1 gains little on gradients.
    """

    inner: Codec
    level: int = 1

    def __post_init__(self) -> None:
        inner = self.inner
        if not (isinstance(inner, Native) and inner._is_native) or isinstance(inner, Threshold):
            raise CodecError(f"Zstd: inner must be a codec such as Quantize(4), not {inner!r}")
        if len(inner._wire_params(1, 0)) >= PARAMETER_BYTES:
            raise CodecError(f"Zstd: {type(inner).__name__} has too many parameters")
        check_integer("Zstd", "level", self.level, 1, 19)

    @property
    def _native(self) -> Native:
        assert isinstance(self.inner, Native)
        return self.inner

    @property
    def is_sparse(self) -> bool:  # type: ignore[override]
        return self.inner.is_sparse

    @property
    def is_fixed_size(self) -> bool:
        return False

    def body_size(self, n: int, dtype: str = "float32") -> int:
        check_fixed_size(self)
        return self.max_body_size(n, dtype)

    def max_body_size(self, n: int, dtype: str = "float32") -> int:
        return _LENGTH.size + self.inner.max_body_size(n, dtype)

    def _min_body_size(self, n: int, dtype: str) -> int:
        return _LENGTH.size

    def _size_in(self, data: Bytes, n: int, dtype: str) -> int:
        values = self._native._value_bytes(n, dtype)
        stream = self.inner._size_in(data[_LENGTH.size :], n, dtype) - values
        return _LENGTH.size + stream + (_frame_bytes(data) or values)

    def _compress(
        self, x: npt.NDArray[Any], dtype: str, body: Bytes, residual: Floats | None, call: Call
    ) -> bool:
        library = _zstandard()
        plain = np.empty(self.inner.max_body_size(x.size, dtype), np.uint8)
        call.body_bytes = plain.size
        if not self.inner._compress(x, dtype, plain, residual, call):
            return False
        stream = call.body_bytes - self._native._value_bytes(x.size, dtype)
        values = plain[stream : call.body_bytes]
        frame = np.frombuffer(library.ZstdCompressor(self.level).compress(values), np.uint8)
        packed = frame.size < min(values.size, 2**32)
        tail = frame if packed else values
        call.body_bytes = _LENGTH.size + stream + tail.size
        _LENGTH.pack_into(body, 0, frame.size if packed else 0)
        body[_LENGTH.size : call.body_bytes] = np.concatenate((plain[:stream], tail))
        return True

    def _plain(self, body: Bytes, n: int, dtype: str) -> Bytes:
        """The body of the inner codec. `PayloadError` unless the frame holds exactly the bytes that its values take."""
        frame_bytes, values = _frame_bytes(body), self._native._value_bytes(n, dtype)
        if frame_bytes == 0:
            check_body_size(self.inner, body.size - _LENGTH.size, n, dtype)
            return body[_LENGTH.size :]
        stream = body.size - _LENGTH.size - frame_bytes
        if stream < 0 or frame_bytes >= values:
            raise PayloadError(f"a Zstandard frame of {frame_bytes} bytes does not fit the body")
        check_body_size(self.inner, stream + values, n, dtype)
        start, library = _LENGTH.size + stream, _zstandard()
        frame = body[start:].tobytes()
        try:
            # The library allocates what the frame states, and for a broken one a window: both are bounded first.
            if library.frame_content_size(frame) != values:
                raise PayloadError(
                    f"the Zstandard frame does not state the {values} bytes of its values"
                )
            window = min(max(2 * values, 1024), 2**31)
            plain = library.ZstdDecompressor(max_window_size=window).decompress(
                frame, max_output_size=values, allow_extra_data=False
            )
        except library.ZstdError as error:
            raise PayloadError(f"the Zstandard frame is broken: {error}") from error
        if len(plain) != values:
            raise PayloadError(f"the Zstandard frame holds {len(plain)} bytes instead of {values}")
        return np.concatenate((body[_LENGTH.size : start], np.frombuffer(plain, np.uint8)))

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
        plain = self._plain(body, out.size, dtype)
        self.inner._decompress(plain, dtype, step, out, accumulate, scale, blank)

    def _check(self, body: Bytes, n: int, dtype: str, step: int) -> None:
        self.inner._check(self._plain(body, n, dtype), n, dtype, step)

    def _examine(self, body: Bytes, n: int, dtype: str, step: int) -> tuple[float, float]:
        return self.inner._examine(self._plain(body, n, dtype), n, dtype, step)

    def _add(self, body: Bytes, dtype: str, step: int, out: npt.NDArray[Any], scale: float) -> None:
        self.inner._add(self._plain(body, out.size, dtype), dtype, step, out, scale)

    @classmethod
    def _from_params(cls, params: bytes) -> Zstd:
        raise PayloadError("Zstd has no fixed size and cannot be a value codec")

    # The parameters are the inner codec's id and parameters; the level does not travel.

    def _wire_params(self, n: int, step: int) -> bytes:
        return bytes([self.inner.id]) + self.inner._wire_params(n, step)

    @classmethod
    def _from_wire(cls, params: bytes, n: int) -> tuple[Zstd, int]:
        inner, step = _class_of(params)._from_wire(params[1:] + b"\0", n)
        return cls(inner), step

    def _standing_params(self) -> bytes:
        return bytes([self.inner.id]) + self.inner._standing_params()

    @classmethod
    def _from_standing(cls, params: bytes) -> Zstd:
        return cls(_class_of(params)._from_standing(params[1:] + b"\0"))


def _class_of(params: bytes) -> type[Codec]:
    try:
        _zstandard()
    except BackendError as error:  # a stranger's message must not raise anything else
        raise PayloadError(str(error)) from error
    cls = codec_by_id(params[0])
    if not issubclass(cls, Native):
        raise PayloadError(f"Zstd around codec id {params[0]} is unknown")
    return cls


def _frame_bytes(body: Bytes) -> int:
    if body.size < _LENGTH.size:
        raise PayloadError(f"{body.size} bytes cannot hold the length of a Zstandard frame")
    length: int = _LENGTH.unpack_from(body)[0]
    return length


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise BackendError(
            "Zstd needs the package zstandard: pip install 'tersegrad[zstd]'"
        ) from error
    return zstandard
