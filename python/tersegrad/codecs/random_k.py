"""A random mask that both sides draw."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from .. import _core
from ..buffers import Bytes
from ..codec import Codec
from .check import check_integer
from .sparse import Indices, Sparse, check_amount

_WIRE = struct.Struct("<IQI4s")  # k, seed, step, value word
_STANDING = struct.Struct("<dIQ4s")  # density, k, seed, value word


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
        check_amount("RandomK", self.density, self.k)
        check_integer("RandomK", "seed", self.seed, 0, 2**64 - 1)
        self._check_values()

    def _make_native_of(self, values: _core.ValueCodec) -> _core.Codec:
        return _core.Codec(
            "random", values, density=self.density or 0.0, k=self.k or 0, mask_seed=self.seed
        )

    def _indices(self, body: Bytes, n: int, step: int) -> Indices:
        return _core.draw_index(n, self._native.survivors(n), self.seed, step)

    # Of one seed and step, the same entries survive.

    @property
    def is_additive(self) -> bool:  # type: ignore[override]
        return self._value_codec.is_additive

    def _sum_bodies(self, bodies: Sequence[Bytes], dtype: str, wrap: bool) -> Bytes:
        return self._value_codec._sum_bodies(bodies, dtype, wrap)

    def _wire_params(self, n: int, step: int) -> bytes:
        return _WIRE.pack(self._native.survivors(n), self.seed, step, self._value_word())

    def _standing_params(self) -> bytes:
        return _STANDING.pack(self.density or 0.0, self.k or 0, self.seed, self._value_word())

    @classmethod
    def _from_standing(cls, params: bytes) -> RandomK:
        density, k, seed, word = _STANDING.unpack_from(params)
        return cls(
            density=density or None, seed=seed, k=k or None, values=cls._read_value_word(word)
        )

    @classmethod
    def _from_wire(cls, params: bytes, n: int) -> tuple[RandomK, int]:
        k, seed, step, word = _WIRE.unpack_from(params)
        return cls(seed=seed, k=k if n else 1, values=cls._read_value_word(word)), step
