"""Every entry above a threshold."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .. import _core
from ..buffers import Bytes
from ..codec import Codec
from ..errors import CodecError, PayloadError
from .check import check_density
from .native import Dense
from .sparse import Indexed, Indices

_PARAMS = struct.Struct("<B3s4s")  # form or zero, zeros, value word
_COUNT = struct.Struct("<I")


@dataclass(frozen=True)
class Threshold(Indexed, id=16):
    """Every entry whose magnitude is at least a threshold, so that as many are sent as matter (Strom 2015; Dryden et al. 2016).

    Give `value`, the threshold itself, or `density`, the share of entries that should reach it. For a density the threshold is found
    in stages: a generalized Pareto distribution is fitted to the two moments of the magnitudes, and again to those of the tail above
    it, as in SIDCo (Abdelmoniem et al. 2021, "An efficient statistical-based gradient compression technique for distributed training
    systems"), with the tail counted after each stage. The share that is sent is then mostly within a sixteenth of `density`. Where many
    magnitudes are equal it can be far from it, and zeros are never sent. The fit depends on the tensor alone, not on earlier calls.

    `TopK` sends exactly its share, and is faster than the fit. Take `Threshold` with a `value`, where the number of entries should follow
    the gradient: large steps send much, small ones little, none perhaps. Meant to be used with error feedback. Bodies have no fixed size:
    `compress`, `compress_many` and federated messages take it, DDP and `encode_into` do not.

    Parameters
    ----------
    value : float
        The threshold, 0 or more, as a float32. Of a payload read from bytes it is 0: it does not travel, a decoder needs none.
    density : float
        Share of the entries to send, about; above 0 and at most 1.
    values : Codec or int, optional
        How the survivors' values travel: a codec of this package such as `Quantize`, `Cast`, `Sign`, or as they are. A number of
        bits, 2 to 8, stands for ``Magnitudes(bits)``.
    indices : {"auto", "elias-fano", "bitmap", "u16", "rice", "runs"}
        As in `TopK`; ``"auto"`` takes the smallest that is neither ``"rice"`` nor ``"runs"`` for the number of entries that were sent.

    Examples
    --------
    >>> import numpy as np, tersegrad as tg
    >>> tg.decompress(tg.compress(np.array([0.1, -3, 0.2, 2], np.float32), tg.Threshold(value=0.2)))
    array([ 0. , -3. ,  0.2,  2. ], dtype=float32)
    """

    value: float | None = None
    density: float | None = None
    values: Codec | int | None = None
    indices: str = "auto"

    def __post_init__(self) -> None:
        if (self.value is None) == (self.density is None):
            raise CodecError(
                f"Threshold: give value or density, one of them, not {self.value!r} and {self.density!r}"
            )
        if self.density is not None:
            check_density("Threshold", self.density)
        elif type(self.value) not in (int, float) or not 0 <= self.value <= 3.4e38:  # type: ignore[operator]
            raise CodecError(
                f"Threshold: value must be a number from 0 to 3.4e38, not {self.value!r}"
            )
        self._check_values()
        if self.values is not None and not isinstance(self.values, Dense):
            raise CodecError(
                f"Threshold: values must be a codec of this package such as Quantize(4), not {self.values!r}"
            )
        self._check_indices()

    @property
    def is_fixed_size(self) -> bool:
        return False

    def _make_native_of(self, values: _core.ValueCodec) -> _core.Codec:
        return _core.Codec(
            "threshold",
            values,
            density=self.density or 0.0,
            form=self._form(),
            threshold=self.value or 0.0,
        )

    def _count(self, body: Bytes, n: int) -> int:
        """How many entries a body states to hold."""
        if body.size < _COUNT.size:
            raise PayloadError(f"{body.size} bytes cannot hold the number of survivors")
        count: int = _COUNT.unpack_from(body)[0]
        if count > n:
            raise PayloadError(f"{count} survivors of {n} entries")
        return count

    def _indices(self, body: Bytes, n: int, step: int) -> Indices:
        k = self._count(body, n)
        stream = self._native.measure_stream(body, n)
        form = self._form() or _core.smallest_index_form(n, k)
        return _core.decode_index(form, body[_COUNT.size : stream], n, k)

    def _sent(self, body: Bytes, n: int) -> int:
        return self._count(body, n)

    def _min_body_size(self, n: int, dtype: str) -> int:
        return _COUNT.size

    def _size_in(self, data: Bytes, n: int, dtype: str) -> int:
        k = self._count(data, n)
        return self._native.measure_stream(data, n) + self._value_codec.body_size(k, dtype)

    def _params(self) -> bytes:
        return _PARAMS.pack(self._form(), b"", self._value_word())

    @classmethod
    def _from_params(cls, params: bytes) -> Threshold:
        form, _, word = _PARAMS.unpack_from(params)
        values = cls._read_value_word(word)
        return cls(value=0.0, values=values, indices=cls._form_name(form))
