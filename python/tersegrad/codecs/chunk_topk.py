"""Exact top-k of every chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from .. import _core
from ..buffers import Floats
from ..codec import Codec
from ..errors import CodecError
from .check import check_integer
from .sparse import Indexed, Indices


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
    values : Codec, optional
        How the kept values travel: `Quantize`, `Cast`, `Sign`, or as they are.
    indices : {"auto", "elias-fano", "bitmap", "u16"}
        How the indices travel; ``"auto"`` takes the smallest.
    """

    k: int = 64
    chunk: int = 4096
    values: Codec | None = None
    indices: str = "auto"

    def __post_init__(self) -> None:
        check_integer("ChunkTopK", "chunk", self.chunk, 1, 65536)
        check_integer("ChunkTopK", "k", self.k, 1, 65536)
        if self.k > self.chunk:
            raise CodecError(f"ChunkTopK: k must not exceed chunk, but {self.k} > {self.chunk}")
        self._check_values()
        self._check_indices()

    def _count(self, n: int) -> int:
        full, rest = divmod(n, self.chunk)
        return full * self.k + min(self.k, rest)

    def _select(self, x: npt.NDArray[Any], residual: Floats | None) -> tuple[Indices, Floats, bool]:
        return _core.select_chunks(x, residual, self.k, self.chunk)

    def _stated_k(self, n: int) -> int:
        return self.k

    def _chunk_param(self) -> int:
        return self.chunk

    @classmethod
    def _from_wire(cls, params: bytes, n: int) -> tuple[ChunkTopK, int]:
        k, form, values, chunk = cls._read_wire(params)
        return cls(k=k, chunk=chunk, values=values, indices=form), 0
