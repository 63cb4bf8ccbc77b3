"""Bytes, error and speed of codecs on real updates, on this machine."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from ..buffers import Floats, View, like, new_entries, view
from ..codec import Codec, check_codec
from ..codecs import NF4, Cast, ChunkTopK, Identity, Magnitudes, Quantize, RandomK, Sign, TopK
from ..errors import InputError
from ..many import compress_many, decompress_many
from .updates import Updates, read_updates

if TYPE_CHECKING:
    from ..buffers import AnyArray

#: Tensors of fewer entries travel as they are.
MIN_SIZE = 64

_DENSITIES = (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
#: What is measured unless the caller names codecs: from everything as it is to one entry in a thousand.
CANDIDATES: tuple[Codec, ...] = (
    Identity(),
    Cast("float16"),
    Quantize(bits=8),
    Quantize(bits=4),
    NF4(),
    Quantize(bits=2),
    Sign(),
    *(TopK(density=density, values=Quantize(bits=8)) for density in _DENSITIES),
    *(TopK(density=density, values=Magnitudes(bits=4)) for density in _DENSITIES),
    *(TopK(density=density, values=Magnitudes(bits=4), indices="runs") for density in _DENSITIES),
    *(ChunkTopK(k=k, chunk=4096, values=Magnitudes(bits=4)) for k in (410, 41, 4)),
    *(RandomK(density=density, values=Quantize(bits=8)) for density in (0.1, 0.01)),
)
_REPEATS = 3  # timed calls at least; the median of them counts
_CHUNK = 1 << 16  # entries summed at a time

Progress = Callable[[int, int, Codec], None]


@dataclass(frozen=True)
class Row:
    """One codec on the updates.

    Attributes
    ----------
    codec : Codec
    nbytes : int
        Bytes of the largest round's message: header, tables, small dense tensors and integers included.
    dense_bytes : int
        Bytes of a round as it is.
    nmse : float
        ``|x - d|^2 / |x|^2`` over all rounds, each compressed alone: what one round does not carry. 0 is exact, 1 is nothing sent.
    cosine : float
        Between `x` and its decoded form `d`, over all rounds.
    feedback_nmse : float or None
        With error feedback through all rounds: ``|r|^2 / |sum of x|^2``, `r` the last residual: how far from the sum of the updates
        the receiver ends. None for a single round, where it is `nmse`.
    compress_seconds, decompress_seconds : float
        Median for one round on this machine; compress with a residual and up to the bytes, decompress from the bytes, checked.
    """

    codec: Codec
    nbytes: int
    dense_bytes: int
    nmse: float
    cosine: float
    feedback_nmse: float | None
    compress_seconds: float
    decompress_seconds: float

    @property
    def ratio(self) -> float:
        """Original bytes divided by bytes on the wire."""
        return self.dense_bytes / self.nbytes

    @property
    def error(self) -> float:
        """What is compared: `feedback_nmse` where there are several rounds, else `nmse`."""
        return self.nmse if self.feedback_nmse is None else self.feedback_nmse


def measure(
    updates: Any,
    candidates: Sequence[Codec] | None = None,
    *,
    min_size: int = MIN_SIZE,
    progress: Progress | None = None,
) -> tuple[Row, ...]:
    """Measure codecs on updates, in the order given.

    Parameters
    ----------
    updates
        As for `read_updates`.
    candidates : sequence of Codec, optional
        By default `CANDIDATES`.
    min_size : int
        Tensors of fewer entries travel as they are.
    progress : callable, optional
        Called before each codec with how many are done, how many there are, and the codec.

    Raises
    ------
    InputError, CodecError
        The updates or the candidates are not what they should be.
    """
    chosen = tuple(
        check_codec(codec) for codec in (CANDIDATES if candidates is None else candidates)
    )
    if not chosen:
        raise InputError("candidates is empty; name at least one codec")
    if not isinstance(min_size, int) or min_size < 0:
        raise InputError(f"min_size must be an integer from 0, not {min_size!r}")
    bench = _Bench(read_updates(updates), min_size)
    rows = []
    for number, codec in enumerate(chosen):
        if progress is not None:
            progress(number, len(chosen), codec)
        rows.append(bench.row(codec))
    return tuple(rows)


class _Bench:
    """Updates, and the memory that measuring a codec on them takes."""

    def __init__(self, updates: Updates, min_size: int) -> None:
        self.updates = updates
        self.views = [[view(x) for x in tensors] for tensors in updates.rounds]
        first = self.views[0]
        self.small = [x.array.size < min_size for x in first]
        self.residuals = [_arrays_like(x, "float32") for x in first]
        self.out = [_arrays_like(x, x.dtype) for x in first]
        self.squares = sum(_energy(x) for tensors in self.views for x in tensors)
        self.total = sum(_energy_of_sum(column) for column in zip(*self.views, strict=True))

    def row(self, codec: Codec) -> Row:
        codecs = [Identity() if small else codec for small in self.small]
        rounds = self.updates.rounds
        sizes, encode_times, decode_times = [], [], []
        lost = dot = sent = 0.0
        for call in range(max(_REPEATS, len(rounds))):
            number = call % len(rounds)
            self._clear()
            begin = time.perf_counter()
            data = self._compress(number, codecs, number)
            middle = time.perf_counter()
            decompress_many(data, out=self.out)
            decode_times.append(time.perf_counter() - middle)
            encode_times.append(middle - begin)
            sizes.append(len(data))
            if call < len(rounds):
                # Without a residual before, what is left is x - d: it tells the error without a look at the decoded entries.
                for x, r in zip(self.views[number], self.residuals, strict=True):
                    for values, left in _chunks(x, view(r)):
                        decoded = values - left
                        lost += float(left @ left)
                        dot += float(values @ decoded)
                        sent += float(decoded @ decoded)
        return Row(
            codec=codec,
            nbytes=max(sizes) + self.updates.exact_bytes,
            dense_bytes=self.updates.dense_bytes,
            nmse=_share(lost, self.squares),
            cosine=min(1.0, dot / math.sqrt(self.squares * sent)) if dot else 0.0,
            feedback_nmse=self._with_feedback(codecs) if len(rounds) > 1 else None,
            compress_seconds=_median(encode_times),
            decompress_seconds=_median(decode_times),
        )

    def _with_feedback(self, codecs: list[Codec]) -> float:
        self._clear()
        for number in range(len(self.updates.rounds)):
            self._compress(number, codecs, number)
        left = sum(_energy(view(r)) for r in self.residuals)
        return _share(left, self.total)

    def _compress(self, number: int, codecs: list[Codec], step: int) -> bytes:
        tensors = self.updates.rounds[number]
        return bytes(compress_many(tensors, codecs, residuals=self.residuals, step=step))

    def _clear(self) -> None:
        for r in self.residuals:
            view(r).array.fill(0)


def codec_line(codec: Codec, prefix: str = "") -> str:
    """The codec as one would write it, without what is the default; `prefix` as in ``tg.TopK``."""
    parts = []
    for place, field in enumerate(dataclasses.fields(codec)):  # type: ignore[arg-type]
        value = getattr(codec, field.name)
        if value is None or (place > 0 and value == field.default):
            continue
        text = codec_line(value, prefix) if isinstance(value, Codec) else repr(value)
        parts.append(text if place == 0 else f"{field.name}={text}")
    own = type(codec).__module__.startswith("tersegrad.")
    return f"{prefix if own else ''}{type(codec).__name__}({', '.join(parts)})"


def _arrays_like(x: View, dtype: str) -> AnyArray:
    return like(new_entries(x.array.size, dtype, zero=True), dtype, x.shape, x.kind)


def _chunks(*views: View) -> Iterator[list[Any]]:
    """Stretches of arrays of one size, in float64: the sums are the same on every machine's BLAS to far more digits than are shown."""
    for start in range(0, views[0].array.size, _CHUNK):
        parts = [np.ascontiguousarray(x.array[start : start + _CHUNK]) for x in views]
        yield [_float32(part).astype(np.float64) for part in parts]


def _float32(part: Any) -> Floats:
    values = np.empty(part.size, np.float32)
    _core.widen(part, values)
    return values


def _energy(x: View) -> float:
    return sum(float(values @ values) for (values,) in _chunks(x))


def _energy_of_sum(rounds: Sequence[View]) -> float:
    sums = (sum(parts) for parts in _chunks(*rounds))
    return sum(float(values @ values) for values in sums)


def _median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]


def _share(part: float, whole: float) -> float:
    if part == 0:
        return 0.0
    return part / whole if whole else math.inf
