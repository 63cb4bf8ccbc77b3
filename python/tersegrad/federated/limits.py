"""What a server accepts from one client."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..codec import Codec
from ..codecs.cast import Identity
from ..codecs.sparse import Sparse
from ..codecs.zstd import Zstd
from ..errors import InputError, PayloadError


@dataclass(frozen=True)
class Limits:
    """Bounds on a message and its weight. Whatever they are, accumulators stay finite.

    Parameters
    ----------
    max_bytes : int, optional
        Of a message. The layout bounds it already: every length is computed, not believed.
    max_norm : float, optional
        Euclidean norm of all decoded floats of a message together.
    max_abs : float
        Largest magnitude of a decoded float.
    max_weight : float
        Largest weight, such as a number of examples. ``max_abs * max_weight`` may not exceed 2**96: in float32, adding 2**96 to a
        sum of 2**122 leaves it as it is, so no number of messages makes it overflow.
    codecs : tuple of Codec classes, optional
        Those a client may use, for tensors or inside of other codecs; `Identity`, which tiny tensors need, always. By default all of
        tersegrad but `Zstd`. That one takes memory of several times a tensor's body, and a codec from elsewhere decodes a stranger's
        bytes by its author's code: both must be listed.
    """

    max_bytes: int | None = None
    max_norm: float | None = None
    max_abs: float = 2.0**64
    max_weight: float = 2.0**32
    codecs: tuple[type[Codec], ...] | None = None

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_norm", "max_abs", "max_weight"):
            value = getattr(self, name)
            optional = value is None and name in ("max_bytes", "max_norm")
            if not optional and not (type(value) in (int, float) and 0 < value < math.inf):
                raise InputError(f"Limits: {name} must be a finite number above 0, not {value!r}")
        if self.max_abs * self.max_weight > 2.0**96:
            raise InputError(
                f"Limits: max_abs {self.max_abs:g} times max_weight {self.max_weight:g} exceeds 2**96: sums could overflow"
            )
        listed = () if self.codecs is None else self.codecs
        if not all(isinstance(codec, type) and issubclass(codec, Codec) for codec in listed):
            raise InputError(
                f"Limits: codecs must be classes, such as (TopK, Quantize), not {listed!r}"
            )

    def check_codec(self, codec: Codec) -> None:
        """`PayloadError` unless a client may use a codec and those inside of it."""
        for one in _nested(codec):
            cls = type(one)
            by_default = cls.id < 128 and cls is not Zstd
            if not (by_default if self.codecs is None else cls in (Identity, *self.codecs)):
                raise PayloadError(
                    f"codec {cls.__name__} is not among those that the server accepts"
                )

    def check_weight(self, weight: object) -> float:
        """`weight` as the float32 that an accumulator takes; `PayloadError` if it is out of bounds."""
        number = float(weight) if isinstance(weight, (int, float, np.number)) else math.nan
        if not 0 <= number <= self.max_weight:
            raise PayloadError(f"the weight must be from 0 to {self.max_weight:g}, not {weight!r}")
        return float(np.float32(number))


def _nested(codec: Codec) -> Iterator[Codec]:
    """A codec and those inside of it."""
    yield codec
    if isinstance(codec, Sparse):
        yield codec._value_codec
    elif isinstance(codec, Zstd):
        yield from _nested(codec.inner)
