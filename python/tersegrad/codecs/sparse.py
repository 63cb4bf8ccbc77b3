"""What the sparse codecs share: survivors at some indices, their values coded by another codec."""

from __future__ import annotations

import struct
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from .. import _core
from ..buffers import DTYPE_CODES, Bytes, Floats
from ..codec import VALUE_PARAMETER_BYTES, Call, Codec, codec_by_id
from ..errors import CodecError, PayloadError
from .cast import Identity
from .check import check_choice, check_density, check_integer
from .native import Dense, Native

Indices = npt.NDArray[np.uint32]

#: Index forms by name, in the order of their wire codes from 1.
INDEX_FORMS = ("elias-fano", "bitmap", "u16", "rice")
_IDENTITY = Identity()
_FLOAT32 = DTYPE_CODES["float32"]


class Sparse(Native):
    """Base of codecs that send some entries; the others decode to zero.

    With a value codec from outside of this package, the native codec selects and moves exact values, and that codec
    codes them on the way.
    """

    is_sparse: ClassVar[bool] = True
    values: Codec | None

    @abstractmethod
    def _make_native_of(self, values: _core.ValueCodec) -> _core.Codec:
        """The native codec of these parameters, given how values are coded."""

    @abstractmethod
    def _indices(self, body: Bytes, n: int, step: int) -> Indices:
        """The survivors' indices that a body states."""

    @property
    def _value_codec(self) -> Codec:
        return _IDENTITY if self.values is None else self.values

    @property
    def _is_native(self) -> bool:  # type: ignore[override]
        return isinstance(self._value_codec, Dense)

    def _make_native(self) -> _core.Codec:
        codec = self._value_codec
        return self._make_native_of(
            (codec if isinstance(codec, Dense) else _IDENTITY)._native_values()
        )

    def _check_values(self) -> None:
        values = self.values
        name = type(self).__name__
        if values is None:
            return
        if not isinstance(values, Codec) or isinstance(values, Sparse):
            raise CodecError(
                f"{name}: values must be a dense codec such as Quantize(4), or None, not {values!r}"
            )
        if len(values._params()) > VALUE_PARAMETER_BYTES:
            raise CodecError(
                f"{name}: {type(values).__name__} has more than {VALUE_PARAMETER_BYTES} bytes of parameters "
                "and cannot be a value codec"
            )
        if not values.is_fixed_size:
            raise CodecError(
                f"{name}: a value codec needs a fixed size, which {values} has not; put it around the sparse codec"
            )

    def _sent(self, body: Bytes, n: int) -> int:
        """How many entries a body holds."""
        return self._native.survivors(n)

    def _value_word(self) -> bytes:
        codec = self._value_codec
        return bytes([codec.id]) + codec._params().ljust(VALUE_PARAMETER_BYTES, b"\0")

    @staticmethod
    def _read_value_word(word: bytes) -> Codec | None:
        cls = codec_by_id(word[0])
        return None if cls is Identity else cls._from_params(word[1:])

    def _value_bytes(self, n: int, dtype: str) -> int:
        return self._value_codec.body_size(self._native.survivors(n), dtype)

    def _min_body_size(self, n: int, dtype: str) -> int:
        if self.is_fixed_size:
            return self.body_size(n, dtype)
        return self._value_bytes(n, dtype) + (self._native.survivors(n) + 7) // 8

    def _size_in(self, data: Bytes, n: int, dtype: str) -> int:
        if self.is_fixed_size:
            return self.body_size(n, dtype)
        return self._native.measure_stream(data, n) + self._value_bytes(n, dtype)

    # What is below serves value codecs from outside.

    def max_body_size(self, n: int, dtype: str = "float32") -> int:
        if isinstance(self._value_codec, Dense):
            return super().max_body_size(n, dtype)
        exact = 4 * self._native.survivors(n)
        return self._native.body_bytes(n, _FLOAT32) - exact + self._value_bytes(n, dtype)

    def _compress(
        self, x: npt.NDArray[Any], dtype: str, body: Bytes, residual: Floats | None, call: Call
    ) -> bool:
        codec = self._value_codec
        if isinstance(codec, Dense):
            return super()._compress(x, dtype, body, residual, call)
        before = None if residual is None else residual.copy()
        try:
            return self._compress_foreign(codec, x, dtype, body, residual, call)
        except BaseException:
            if residual is not None:
                residual[:] = before
            raise

    def _compress_foreign(
        self,
        codec: Codec,
        x: npt.NDArray[Any],
        dtype: str,
        body: Bytes,
        residual: Floats | None,
        call: Call,
    ) -> bool:
        n = x.size
        exact = np.empty(self._native.body_bytes(n, _FLOAT32), np.uint8)
        finite, call.last_key, exact_bytes = self._native.encode(
            x, residual, _FLOAT32, call.step, call.last_key, exact
        )
        if not finite:
            return False
        stream = exact_bytes - 4 * self._native.survivors(n)
        call.body_bytes = stream + self._value_bytes(n, dtype)
        values = np.frombuffer(exact[stream:exact_bytes].tobytes(), np.float32)
        body[:stream] = exact[:stream]
        coded = body[stream : call.body_bytes]
        codec._compress(values, dtype, coded, None, call)
        if residual is not None:
            decoded = np.empty(values.size, np.float32)
            codec._decompress(coded, dtype, call.step, decoded, False, 1.0, False)
            _core.settle(residual, self._indices(body[:stream], n, call.step), values, decoded)
        return True

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
        codec, n = self._value_codec, out.size
        if isinstance(codec, Dense):
            super()._decompress(body, dtype, step, out, accumulate, scale, blank)
            return
        stream = body.size - self._value_bytes(n, dtype)
        values = np.empty(self._native.survivors(n), np.float32)
        codec._decompress(body[stream:], dtype, step, values, False, 1.0, False)
        exact = np.concatenate((body[:stream], values.view(np.uint8)))
        self._native.decode(exact, _FLOAT32, step, out, accumulate, scale, blank)

    def _check(self, body: Bytes, n: int, dtype: str, step: int) -> None:
        codec = self._value_codec
        if isinstance(codec, Dense):
            super()._check(body, n, dtype, step)
            return
        stream = body.size - self._value_bytes(n, dtype)
        self._indices(body[:stream], n, step)
        codec._check(body[stream:], self._native.survivors(n), dtype, step)

    def _examine(self, body: Bytes, n: int, dtype: str, step: int) -> tuple[float, float]:
        codec = self._value_codec
        if isinstance(codec, Dense):
            return super()._examine(body, n, dtype, step)
        stream = body.size - self._value_bytes(n, dtype)
        self._indices(body[:stream], n, step)
        return codec._examine(body[stream:], self._native.survivors(n), dtype, step)

    def _add(self, body: Bytes, dtype: str, step: int, out: npt.NDArray[Any], scale: float) -> None:
        if isinstance(self._value_codec, Dense):
            super()._add(body, dtype, step, out, scale)
        else:
            self._decompress(body, dtype, step, out, True, scale, False)


class Indexed(Sparse):
    """A sparse codec whose indices travel."""

    indices: str
    _WIRE: ClassVar[struct.Struct] = struct.Struct("<IB3s4sI")  # k, form, zeros, value word, chunk

    @property
    def is_fixed_size(self) -> bool:
        return self.indices != "rice"

    def _check_indices(self) -> None:
        check_choice(type(self).__name__, "indices", self.indices, ("auto", *INDEX_FORMS))

    @staticmethod
    def _form_name(form: int) -> str:
        if not 0 <= form <= len(INDEX_FORMS):
            raise PayloadError(f"index form {form} is unknown")
        return "auto" if form == 0 else INDEX_FORMS[form - 1]

    def _form(self) -> int:
        """The wire code of the index form, or zero for the smallest."""
        return 0 if self.indices == "auto" else INDEX_FORMS.index(self.indices) + 1

    def _pack_wire(self, n: int, k: int, chunk: int) -> bytes:
        return self._WIRE.pack(k, self._native.form(n), b"", self._value_word(), chunk)

    @classmethod
    def _read_wire(cls, params: bytes) -> tuple[int, str, Codec | None, int]:
        k, form, _, word, chunk = cls._WIRE.unpack_from(params)
        if not 1 <= form <= len(INDEX_FORMS):
            raise PayloadError(f"index form {form} is unknown")
        return k, INDEX_FORMS[form - 1], cls._read_value_word(word), chunk

    def _indices(self, body: Bytes, n: int, step: int) -> Indices:
        return _core.decode_index(self._native.form(n), body, n, self._native.survivors(n))


def check_amount(codec: str, density: float | None, k: int | None) -> None:
    """`CodecError` unless one of density and k is given and in range."""
    if (density is None) == (k is None):
        raise CodecError(f"{codec}: give density or k, one of them, not {density!r} and {k!r}")
    if density is not None:
        check_density(codec, density)
    else:
        check_integer(codec, "k", k, 1, 2**32 - 1)
