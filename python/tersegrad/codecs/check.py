"""Checks that several codecs share."""

from __future__ import annotations

from ..errors import CodecError


def check_integer(codec: str, name: str, value: object, low: int, high: int) -> None:
    """`CodecError` unless `value` is an integer from `low` to `high`."""
    if type(value) is not int or not low <= value <= high:
        raise CodecError(f"{codec}: {name} must be an integer from {low} to {high}, not {value!r}")


def check_choice(codec: str, name: str, value: object, choices: tuple[object, ...]) -> None:
    """`CodecError` unless `value` is one of `choices`."""
    if type(value) is not type(choices[0]) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise CodecError(f"{codec}: {name} must be one of {listed}, not {value!r}")


def check_block_size(codec: str, value: object) -> None:
    """`CodecError` unless `value` is a multiple of 64 from 64 to 65536."""
    if type(value) is not int or value % 64 or not 64 <= value <= 65536:
        raise CodecError(
            f"{codec}: block_size must be a multiple of 64 from 64 to 65536, not {value!r}"
        )


def check_density(codec: str, value: object) -> None:
    """`CodecError` unless `value` is a number above 0 and at most 1."""
    if type(value) not in (int, float) or not 0 < value <= 1:  # type: ignore[operator]
        raise CodecError(f"{codec}: density must be above 0 and at most 1, not {value!r}")
