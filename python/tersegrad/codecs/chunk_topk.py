"""Exact top-k of every chunk."""

from __future__ import annotations

from dataclasses import dataclass

from .. import _core
from ..codec import Codec
from ..errors import CodecError
from .check import check_integer
from .sparse import Indexed


@dataclass(frozen=True)
class ChunkTopK(Indexed, id=6):
    """The k entries of largest magnitude in every chunk (as in DeMo, Peng et al. 2024, and SparseLoCo, 2025).

    Spreads the budget over the whole tensor: no layer inside it starves.

    Parameters
    ----------
    k : int
        How many entries of each chunk to keep; all of a shorter last chunk.
    chunk : int
        Entries per chunk, at most 65536.
    values : Codec or int, optional
        How the kept values travel: `Magnitudes`, `Quantize`, `Cast`, `Sign`, or as they are. A number of bits, 2 to 8, stands for
        ``Magnitudes(bits)``.
    indices : {"auto", "elias-fano", "bitmap", "u16", "rice", "runs"}
        How the indices travel; ``"auto"`` takes the smallest of those whose size is known beforehand. ``"rice"`` is smaller still
        (Golomb 1966; Rice 1979), much so where survivors cluster. ``"runs"`` tells where runs of neighbours start and end if
        survivors come in such, two or more at a time, as in the rows of an embedding or in convolutions, and is ``"rice"`` if
        not. Both are for federated messages and files: `compress` and `compress_many` take them, DDP and `encode_into` do not.
    """

    k: int = 64
    chunk: int = 4096
    values: Codec | int | None = None
    indices: str = "auto"

    def __post_init__(self) -> None:
        check_integer("ChunkTopK", "chunk", self.chunk, 1, 65536)
        check_integer("ChunkTopK", "k", self.k, 1, 65536)
        if self.k > self.chunk:
            raise CodecError(f"ChunkTopK: k must not exceed chunk, but {self.k} > {self.chunk}")
        self._check_values()
        self._check_indices()

    def _make_native_of(self, values: _core.ValueCodec) -> _core.Codec:
        return _core.Codec("chunks", values, k=self.k, chunk=self.chunk, form=self._form())

    def _wire_params(self, n: int, step: int) -> bytes:
        return self._pack_wire(n, self.k, self.chunk)

    def _standing_params(self) -> bytes:
        return self._WIRE.pack(self.k, self._form(), b"", self._value_word(), self.chunk)

    @classmethod
    def _from_standing(cls, params: bytes) -> ChunkTopK:
        k, form, _, word, chunk = cls._WIRE.unpack_from(params)
        values = cls._read_value_word(word)
        return cls(k=k, chunk=chunk, values=values, indices=cls._form_name(form))

    @classmethod
    def _from_wire(cls, params: bytes, n: int) -> tuple[ChunkTopK, int]:
        k, form, values, chunk = cls._read_wire(params)
        return cls(k=k, chunk=chunk, values=values, indices=form), 0
