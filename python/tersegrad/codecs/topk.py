"""Exact top-k by magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from .. import _core
from ..buffers import Floats
from ..codec import Codec
from ..errors import CodecError
from .check import check_density, check_integer
from .sparse import Indexed, Indices, survivor_count


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
    values : Codec, optional
        How the kept values travel: `Quantize`, `Cast`, `Sign`, or as they are.
    indices : {"auto", "elias-fano", "bitmap", "u16"}
        How the indices travel; ``"auto"`` takes the smallest.
    """

    density: float | None = None
    k: int | None = None
    values: Codec | None = None
    indices: str = "auto"

    def __post_init__(self) -> None:
        if (self.density is None) == (self.k is None):
            raise CodecError(f"TopK: give density or k, one of them, not {self.density!r} and {self.k!r}")
        if self.density is not None:
            check_density("TopK", self.density)
        else:
            check_integer("TopK", "k", self.k, 1, 2**32 - 1)
        self._check_values()
        self._check_indices()

    def _count(self, n: int) -> int:
        return survivor_count(self.density, self.k, n)

    def _select(self, x: npt.NDArray[Any], residual: Floats | None) -> tuple[Indices, Floats, bool]:
        return _core.select_topk(x, residual, self._count(x.size))

    @classmethod
    def _from_wire(cls, params: bytes, n: int) -> tuple[TopK, int]:
        k, form, values, _ = cls._read_wire(params)
        return cls(k=k if n else 1, values=values, indices=form), 0
