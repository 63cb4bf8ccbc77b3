"""What a codec computes once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Once(Generic[T]):
    """A property that is computed at its first use and then kept in the instance.

    Up to Python 3.11 functools.cached_property takes a lock; a fork while another thread held it would leave the child waiting
    for ever. Here two threads may both compute, and keep either of two equal results.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self._name = compute.__name__

    def __get__(self, instance: Any, owner: type | None = None) -> T:
        if instance is None:
            return self  # type: ignore[return-value]
        value = instance.__dict__[self._name] = self._compute(instance)
        return value
