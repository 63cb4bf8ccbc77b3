"""Which native kernels run, and on how many threads.

Every variant writes the same bytes; forcing one is for tests and measurements. ``TERSEGRAD_KERNELS=scalar`` (or ``avx2``,
``avx512``, ``neon``) does it from outside.
"""

from __future__ import annotations

import os
from types import TracebackType

from . import _core
from .errors import BackendError, InputError

__all__ = ["active", "available", "get_num_threads", "set_num_threads", "use"]


def available() -> tuple[str, ...]:
    """The kernel variants this processor can run, fastest first; the last is ``"scalar"``."""
    return tuple(_core.kernels_available())


def active() -> str:
    """The variant in use."""
    return _core.kernels_active()


class use:  # noqa: N801 - reads as a verb: use("scalar"), with use("scalar"): ...
    """Force a kernel variant for the whole process, at once; as a context manager, until the block ends.

    Parameters
    ----------
    name : str
        One of `available()`.

    Raises
    ------
    BackendError
        If this processor or build does not have the variant.

    Examples
    --------
    >>> import tersegrad as tg
    >>> with tg.kernels.use("scalar"):
    ...     tg.kernels.active()
    'scalar'
    """

    def __init__(self, name: str) -> None:
        self._previous = active()
        if not _core.kernels_use(str(name)):
            raise BackendError(
                f"kernels {name!r} are not available here; this machine has {', '.join(available())}"
            )

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _core.kernels_use(self._previous)


def get_num_threads() -> int:
    """The most threads a call may use.

    As set by `set_num_threads`, else ``OMP_NUM_THREADS``, but no more than this process's processors divided by
    ``LOCAL_WORLD_SIZE``.
    """
    return _core.thread_count()


def set_num_threads(count: int | None) -> None:
    """Set the most threads a call may use; ``None`` returns to the default. Results do not depend on it."""
    if count is None:
        _core.set_thread_count(0)
    elif isinstance(count, int) and 1 <= count <= 256:
        _core.set_thread_count(count)
    else:
        raise InputError(f"the number of threads must be an integer from 1 to 256, not {count!r}")


_forced = os.environ.get("TERSEGRAD_KERNELS")
if _forced:
    try:
        use(_forced)
    except BackendError as _error:
        raise BackendError(f"TERSEGRAD_KERNELS={_forced}: {_error}") from None
