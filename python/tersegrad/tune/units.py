"""Sizes, speeds and times as people write them, and back.

Decimal prefixes (k, M, G) are powers of 1,000 in either case, binary ones (Ki, Mi, Gi) of 1,024. In a speed, `b` is a bit and `B` a byte.
"""

from __future__ import annotations

import re

from ..errors import InputError

#: A petabyte, or thirty million years: beyond it is a slip of the pen.
LARGEST = 1e15

_NUMBER = re.compile(r"\s*(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*([a-zA-Z/]*)\s*", re.IGNORECASE)
_PREFIX = r"(?P<prefix>[kmgKMG]i?)?"
_SIZE = re.compile(_PREFIX + r"B")
_RATE = re.compile(_PREFIX + r"(?P<unit>[bB]it/s|[bB]it|bps|b/s|B/s)")
_SECONDS = {"": 1.0, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3}


def parse_bytes(value: object) -> int:
    """Bytes: ``200_000``, ``"200KB"``, ``"1.5 MiB"``. `InputError` for anything else."""
    hint = "200000 or '200KB'"
    number, unit = _split(value, "a size", hint)
    match = _SIZE.fullmatch(unit)
    if unit and match is None:
        raise _error(value, "a size", hint)
    size = number * _factor(match)
    if size < 1:
        raise InputError(f"a size must be at least one byte, not {value!r}")
    return int(size)


def parse_rate(value: object) -> float:
    """Bits per second: ``2e6``, ``"2mbit"``, ``"2 Mbit/s"``, ``"2Mbps"``, ``"250KB/s"``. `InputError` for anything else."""
    hint = "2e6, '2mbit' or '250KB/s'"
    number, unit = _split(value, "a speed", hint)
    match = _RATE.fullmatch(unit)
    if unit and match is None:
        raise _error(value, "a speed", hint)
    bits = 8 if match is not None and match["unit"] == "B/s" else 1
    return number * _factor(match) * bits


def parse_seconds(value: object) -> float:
    """Seconds: ``5``, ``"5s"``, ``"300ms"``, ``"2min"``, ``"1h"``. `InputError` for anything else."""
    hint = "5, '5s' or '300ms'"
    number, unit = _split(value, "a time", hint)
    if unit not in _SECONDS:
        raise _error(value, "a time", hint)
    return number * _SECONDS[unit]


def format_bytes(size: float) -> str:
    """``1.23 MB``: three digits."""
    return _format(size, 1000, ("B", "KB", "MB", "GB", "TB"))


def format_rate(bits: float) -> str:
    """``2 Mbit/s``: three digits."""
    return _format(bits, 1000, ("bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"))


def format_seconds(seconds: float) -> str:
    """``12.3 ms`` or ``4.56 s``: three digits."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"


def _format(number: float, base: int, units: tuple[str, ...]) -> str:
    place = 0
    while number >= base * 0.9995 and place < len(units) - 1:
        number /= base
        place += 1
    return f"{number:.3g} {units[place]}"


def _split(value: object, what: str, hint: str) -> tuple[float, str]:
    """The number, above zero and finite, and the unit behind it."""
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value)
        if match is None:
            raise _error(value, what, hint)
        number, unit = float(match[1]), match[2]
    else:
        try:
            number, unit = float(value), ""  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            raise _error(value, what, hint) from None
    if isinstance(value, bool) or not 0 < number <= LARGEST:
        raise InputError(
            f"{what} must be above 0 and at most {LARGEST:g}, such as {hint}, not {value!r}"
        )
    return number, unit


def _factor(match: re.Match[str] | None) -> int:
    prefix = ((match and match["prefix"]) or "").lower()
    return int((1024 if prefix.endswith("i") else 1000) ** _POWERS[prefix.removesuffix("i")])


def _error(value: object, what: str, hint: str) -> InputError:
    return InputError(f"{value!r} is not {what}: write {hint}")
