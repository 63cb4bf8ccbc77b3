"""What the sparse codecs share: survivors at some indices, their values coded by another codec."""

from __future__ import annotations

import struct
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from .. import _core
from ..buffers import Bytes, Floats
from ..codec import VALUE_PARAMETER_BYTES, Codec, codec_by_id
from ..errors import CodecError, PayloadError
from .cast import Identity
from .check import check_choice

Indices = npt.NDArray[np.uint32]

#: Index forms by name, in the order of their wire codes from 1.
INDEX_FORMS = ("elias-fano", "bitmap", "u16")
_IDENTITY = Identity()


def survivor_count(density: float | None, k: int | None, n: int) -> int:
    """How many of `n` entries survive: at least one, if there is one."""
    if k is None:
        assert density is not None
        k = round(density * n)
    return min(max(k, 1), n)


class Sparse(Codec):
    """Base of codecs that send some entries; the others decode to zero."""

    is_sparse: ClassVar[bool] = True
    values: Codec | None

    def _check_values(self) -> None:
        values = self.values
        name = type(self).__name__
        if values is None:
            return
        if not isinstance(values, Codec) or isinstance(values, Sparse):
            raise CodecError(f"{name}: values must be a dense codec such as Quantize(4), or None, not {values!r}")
        if len(values._params()) > VALUE_PARAMETER_BYTES:
            raise CodecError(
                f"{name}: {type(values).__name__} has more than {VALUE_PARAMETER_BYTES} bytes of parameters "
                "and cannot be a value codec"
            )

    @property
    def _value_codec(self) -> Codec:
        return _IDENTITY if self.values is None else self.values

    def _value_word(self) -> bytes:
        codec = self._value_codec
        return bytes([codec.id]) + codec._params().ljust(VALUE_PARAMETER_BYTES, b"\0")

    @staticmethod
    def _read_value_word(word: bytes) -> Codec | None:
        cls = codec_by_id(word[0])
        return None if cls is Identity else cls._from_params(word[1:])

    @abstractmethod
    def _count(self, n: int) -> int:
        """How many of `n` entries survive."""

    def _encode_values(
        self,
        index: Indices,
        value: Floats,
        dtype: str,
        body: Bytes,
        residual: Floats | None,
        step: int,
    ) -> bool:
        """Code the survivors' values; in a residual that holds the sums, leave what that lost."""
        codec = self._value_codec
        if not codec._compress(value, dtype, body, None, step):
            return False
        if residual is not None:
            decoded = np.empty(value.size, np.float32)
            codec._decompress(body, dtype, step, decoded, False, 1.0, False)
            _core.settle(residual, index, value, decoded)
        return True

    def _decode_values(
        self,
        index: Indices,
        dtype: str,
        body: Bytes,
        step: int,
        out: npt.NDArray[Any],
        accumulate: bool,
        scale: float,
        blank: bool,
    ) -> None:
        value = np.empty(index.size, np.float32)
        self._value_codec._decompress(body, dtype, step, value, False, 1.0, False)
        if not (accumulate or blank):
            out.fill(0)
        _core.scatter(index, value, out, accumulate, scale)


class Indexed(Sparse):
    """A sparse codec whose indices travel."""

    indices: str
    _WIRE: ClassVar[struct.Struct] = struct.Struct("<IB3s4sI")  # k, form, zeros, value word, chunk

    def _check_indices(self) -> None:
        check_choice(type(self).__name__, "indices", self.indices, ("auto", *INDEX_FORMS))

    @abstractmethod
    def _select(self, x: npt.NDArray[Any], residual: Floats | None) -> tuple[Indices, Floats, bool]:
        """Survivors of a non-empty input, ascending, and whether all entries are finite."""

    def _form(self, n: int, k: int) -> int:
        if self.indices == "auto":
            return _core.smallest_index_form(n, k)
        return INDEX_FORMS.index(self.indices) + 1

    def _stream_bytes(self, n: int) -> int:
        k = self._count(n)
        return _core.index_bytes(self._form(n, k), n, k)

    def body_size(self, n: int, dtype: str = "float32") -> int:
        return self._stream_bytes(n) + self._value_codec.body_size(self._count(n), dtype)

    def _chunk_param(self) -> int:
        return 0

    def _stated_k(self, n: int) -> int:
        return self._count(n)

    def _wire_params(self, n: int, step: int) -> bytes:
        k = self._count(n)
        return self._WIRE.pack(
            self._stated_k(n), self._form(n, k), b"", self._value_word(), self._chunk_param()
        )

    @classmethod
    def _read_wire(cls, params: bytes) -> tuple[int, str, Codec | None, int]:
        k, form, _, word, chunk = cls._WIRE.unpack_from(params)
        if not 1 <= form <= len(INDEX_FORMS):
            raise PayloadError(f"index form {form} is unknown")
        return k, INDEX_FORMS[form - 1], cls._read_value_word(word), chunk

    def _compress(
        self, x: npt.NDArray[Any], dtype: str, body: Bytes, residual: Floats | None, step: int
    ) -> bool:
        n = x.size
        if n == 0:
            return True
        index, value, finite = self._select(x, residual)
        if not finite:
            return False
        form = self._form(n, index.size)
        stream = _core.index_bytes(form, n, index.size)
        _core.encode_index(form, index, n, body[:stream])
        return self._encode_values(index, value, dtype, body[stream:], residual, step)

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
        n, k = out.size, self._count(out.size)
        form = self._form(n, k)
        stream = _core.index_bytes(form, n, k)
        index = _core.decode_index(form, body[:stream], n, k)
        self._decode_values(
            index, dtype, body[stream:], step, out, accumulate, scale, blank
        )
