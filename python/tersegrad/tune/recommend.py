"""The codec of least error that a link, a deadline or a number of bytes allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..codec import Codec
from ..errors import BudgetError, InputError
from .measure import MIN_SIZE, Progress, Row, codec_line, measure
from .units import (
    format_bytes,
    format_rate,
    format_seconds,
    parse_bytes,
    parse_rate,
    parse_seconds,
)


@dataclass(frozen=True)
class Budget:
    """What a round may cost.

    Attributes
    ----------
    uplink : float or None
        Bits per second.
    deadline : float or None
        Seconds for compressing and sending.
    max_bytes : int or None
        Bytes of a message.
    """

    uplink: float | None = None
    deadline: float | None = None
    max_bytes: int | None = None

    @classmethod
    def parse(cls, uplink: object, deadline: object, max_bytes: object) -> Budget:
        """From numbers or strings such as ``"2mbit"``, ``"5s"``, ``"200KB"``; `InputError` for anything else."""
        return cls(
            None if uplink is None else parse_rate(uplink),
            None if deadline is None else parse_seconds(deadline),
            None if max_bytes is None else parse_bytes(max_bytes),
        )

    def __post_init__(self) -> None:
        if self.deadline is not None and self.uplink is None:
            raise InputError("a deadline needs an uplink: give its bits per second too")

    def __str__(self) -> str:
        parts = []
        if self.deadline is not None and self.uplink is not None:
            parts.append(f"{format_seconds(self.deadline)} at {format_rate(self.uplink)}")
        if self.max_bytes is not None:
            parts.append(format_bytes(self.max_bytes))
        return " and ".join(parts)

    @property
    def limits(self) -> bool:
        """Whether there is anything that a codec could exceed."""
        return self.deadline is not None or self.max_bytes is not None

    def seconds(self, row: Row) -> float | None:
        """To compress a round here and to send it: None without an uplink."""
        return None if self.uplink is None else row.compress_seconds + 8 * row.nbytes / self.uplink

    def fits(self, row: Row) -> bool:
        """Whether a codec stays within all that is limited."""
        seconds = self.seconds(row)
        late = self.deadline is not None and seconds is not None and seconds > self.deadline
        return not late and (self.max_bytes is None or row.nbytes <= self.max_bytes)


@dataclass(frozen=True)
class Recommendation:
    """The best row, and all others.

    Attributes
    ----------
    best : Row
    table : tuple of Row
        Every candidate, in the order of measurement.
    budget : Budget
    """

    best: Row
    table: tuple[Row, ...] = field(repr=False)
    budget: Budget

    @property
    def codec(self) -> Codec:
        """The codec of the best row."""
        return self.best.codec

    @property
    def nbytes(self) -> int:
        """Bytes of a round's message."""
        return self.best.nbytes

    @property
    def ratio(self) -> float:
        """Original bytes divided by bytes on the wire."""
        return self.best.ratio

    @property
    def error(self) -> float:
        """Normalised squared error, see `Row.error`."""
        return self.best.error

    @property
    def seconds(self) -> float | None:
        """To compress a round here and to send it: None without an uplink."""
        return self.budget.seconds(self.best)

    def __str__(self) -> str:
        seconds = self.seconds
        time = "" if seconds is None else f", {format_seconds(seconds)} to compress and send"
        return (
            f"{codec_line(self.codec)}: {format_bytes(self.nbytes)} a round, "
            f"{self.ratio:.3g} times fewer{time}; error {self.error:.3g}"
        )


def tune(
    updates: Any,
    *,
    uplink: float | str | None = None,
    deadline: float | str | None = None,
    max_bytes: int | str | None = None,
    candidates: Sequence[Codec] | None = None,
    min_size: int = MIN_SIZE,
    progress: Progress | None = None,
) -> Recommendation:
    """Measure codecs on real updates, and choose the one of least error that the network allows.

    Parameters
    ----------
    updates : array, dict of arrays, list of arrays, path, or a list of dicts, lists or paths
        One update, or a list of rounds; see `read_updates`. With several rounds, error feedback is measured through all of them.
    uplink : float or str, optional
        Bits per second, or ``"2mbit"``, ``"250KB/s"``.
    deadline : float or str, optional
        Seconds, or ``"5s"``, ``"300ms"``, for compressing on this machine and sending; needs `uplink`.
    max_bytes : int or str, optional
        Bytes of one round's message, or ``"200KB"``. With a deadline too, both must hold.
    candidates : sequence of Codec, optional
        By default `tersegrad.tune.CANDIDATES`.
    min_size : int
        Tensors of fewer entries travel as they are.
    progress : callable, optional
        Called before each codec with how many are done, how many there are, and the codec.

    Returns
    -------
    Recommendation

    Raises
    ------
    BudgetError
        No candidate is small or fast enough; the message says what the smallest would need.
    InputError
        The updates cannot be read, nothing is limited, or a number is not one.

    Examples
    --------
    >>> import numpy as np, tersegrad as tg
    >>> draw = np.random.default_rng(0)
    >>> update = {"weight": (draw.standard_normal((256, 256)) * draw.random((256, 256)) ** 3).astype(np.float32)}
    >>> best = tg.tune.tune(update, max_bytes="4KB")
    >>> best.codec
    TopK(density=0.02, k=None, values=Quantize(bits=8, block_size=256, rounding='nearest', seed=0, scale='max'), indices='auto')
    >>> payload = tg.compress(update["weight"], best.codec)
    """
    budget = Budget.parse(uplink, deadline, max_bytes)
    if not budget.limits:
        raise InputError("nothing is limited: give uplink and deadline, or max_bytes")
    rows = measure(updates, candidates, min_size=min_size, progress=progress)
    return choose(rows, budget)


def choose(rows: Sequence[Row], budget: Budget) -> Recommendation:
    """The row of least error within the budget: the smaller of two alike, the earlier of two as small.

    `BudgetError` if there is none.
    """
    fitting = [row for row in rows if budget.fits(row)]
    if not fitting:
        raise BudgetError(_why_nothing_fits(min(rows, key=lambda row: row.nbytes), budget))
    return Recommendation(
        min(fitting, key=lambda row: (row.error, row.nbytes)), tuple(rows), budget
    )


def _why_nothing_fits(smallest: Row, budget: Budget) -> str:
    """What was asked, what the smallest candidate takes, and what would let it through."""
    size, seconds = f"{smallest.nbytes:,} bytes", budget.seconds(smallest)
    takes, wishes = size, []
    if budget.max_bytes is not None and smallest.nbytes > budget.max_bytes:
        wishes.append(f"allow {size}")
    if budget.deadline is not None and seconds is not None and seconds > budget.deadline:
        takes += f" and {format_seconds(seconds)}"
        # One per cent more than needed, since three digits may have been rounded down.
        wish = f"wait {format_seconds(1.01 * seconds)}"
        left = budget.deadline - smallest.compress_seconds
        if left > 0:
            wish += f" or find an uplink of {format_rate(1.01 * 8 * smallest.nbytes / left)}"
        wishes.append(wish)
    return (
        f"nothing fits {budget}: the smallest candidate, {codec_line(smallest.codec)}, takes {takes}; "
        f"{' and '.join(wishes)}, or try codecs that send less"
    )
