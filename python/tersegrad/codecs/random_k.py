"""A random mask that both sides draw."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from .. import _core
from ..buffers import Bytes, Floats
from ..codec import Codec
from ..errors import CodecError
from .check import check_density, check_integer
from .sparse import Sparse, survivor_count

_WIRE = struct.Struct("<IQI4s")  # k, seed, step, value word


@dataclass(frozen=True)
class RandomK(Sparse, id=7):
    """k entries at random places; no indices travel, since the mask follows from seed and step.

    One entry is drawn from each of k equal strata, so every entry has the same chance k / n. The values are sent as they are: a
    contraction, to be used with error feedback; ``decompress(payload, scale=1 / density)`` is unbiased instead
    (Konecny et al. 2016, "Federated learning: strategies for improving communication efficiency").

    Parameters
    ----------
    density : float
        Share of the entries to keep, above 0 and at most 1.
    seed : int
        Of the mask. Workers with the same seed and step draw the same mask.
    k : int
        How many to keep, instead of `density`.
    values : Codec, optional
        How the kept values travel: `Quantize`, `Cast`, `Sign`, or as they are.
    """

    density: float | None = None
    seed: int = 0
    k: int | None = None
    values: Codec | None = None

    def __post_init__(self) -> None:
        if (self.density is None) == (self.k is None):
            raise CodecError(f"RandomK: give density or k, one of them, not {self.density!r} and {self.k!r}")
        if self.density is not None:
            check_density("RandomK", self.density)
        else:
            check_integer("RandomK", "k", self.k, 1, 2**32 - 1)
        check_integer("RandomK", "seed", self.seed, 0, 2**64 - 1)
        self._check_values()

    def _count(self, n: int) -> int:
        return survivor_count(self.density, self.k, n)

    def body_size(self, n: int, dtype: str = "float32") -> int:
        return self._value_codec.body_size(self._count(n), dtype)

    def _wire_params(self, n: int, step: int) -> bytes:
        return _WIRE.pack(self._count(n), self.seed, step, self._value_word())

    @classmethod
    def _from_wire(cls, params: bytes, n: int) -> tuple[RandomK, int]:
        k, seed, step, word = _WIRE.unpack_from(params)
        return cls(seed=seed, k=k if n else 1, values=cls._read_value_word(word)), step

    def _compress(
        self, x: npt.NDArray[Any], dtype: str, body: Bytes, residual: Floats | None, step: int
    ) -> bool:
        if not (_core.all_finite(x) if residual is None else _core.accumulate(x, residual)):
            return False
        index = _core.draw_index(x.size, self._count(x.size), self.seed, step)
        value = _core.gather(x if residual is None else residual, index)
        return self._encode_values(index, value, dtype, body, residual, step)

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
        index = _core.draw_index(out.size, self._count(out.size), self.seed, step)
        self._decode_values(index, dtype, body, step, out, accumulate, scale, blank)
