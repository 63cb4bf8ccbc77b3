"""Exact top-k by magnitude."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .. import _core
from ..codec import Codec
from .sparse import Indexed, check_amount

_STANDING = struct.Struct("<dIB3s4s")  # density, k, form, zeros, value word


@dataclass(frozen=True)
class TopK(Indexed, id=5):
    """The k entries of largest magnitude; ties go to the lower index (Aji and Heafield 2017; Lin et al. 2018, "Deep gradient compression").

    Give `density` or `k`. Meant to be used with error feedback.

    Parameters
    ----------
    density : float
        Share of the entries to keep, above 0 and at most 1: ``max(1, round(density * n))`` of them.
    k : int
        How many to keep; all, where there are fewer.
    values : Codec or int, optional
        How the kept values travel: `Magnitudes`, `Quantize`, `Cast`, `Sign`, or as they are. A number of bits, 2 to 8, stands for
        ``Magnitudes(bits)``.
    indices : {"auto", "elias-fano", "bitmap", "u16", "rice", "runs"}
        How the indices travel; ``"auto"`` takes the smallest of those whose size is known beforehand. ``"rice"`` is smaller still
        (Golomb 1966; Rice 1979), much so where survivors cluster. ``"runs"`` tells where runs of neighbours start and end if
        survivors come in such, two or more at a time, as in the rows of an embedding or in convolutions, and is ``"rice"`` if
        not. Both are for federated messages and files: `compress` and `compress_many` take them, DDP and `encode_into` do not.
    """

    density: float | None = None
    k: int | None = None
    values: Codec | int | None = None
    indices: str = "auto"

    def __post_init__(self) -> None:
        check_amount("TopK", self.density, self.k)
        self._check_values()
        self._check_indices()

    def _make_native_of(self, values: _core.ValueCodec) -> _core.Codec:
        return _core.Codec(
            "topk", values, density=self.density or 0.0, k=self.k or 0, form=self._form()
        )

    def _wire_params(self, n: int, step: int) -> bytes:
        return self._pack_wire(n, self._native.survivors(n), 0)

    def _standing_params(self) -> bytes:
        return _STANDING.pack(
            self.density or 0.0, self.k or 0, self._form(), b"", self._value_word()
        )

    @classmethod
    def _from_standing(cls, params: bytes) -> TopK:
        density, k, form, _, word = _STANDING.unpack_from(params)
        values = cls._read_value_word(word)
        return cls(
            density=density or None, k=k or None, values=values, indices=cls._form_name(form)
        )

    @classmethod
    def _from_wire(cls, params: bytes, n: int) -> tuple[TopK, int]:
        k, form, values, _ = cls._read_wire(params)
        return cls(k=k if n else 1, values=values, indices=form), 0
