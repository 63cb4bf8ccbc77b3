"""Everything tersegrad raises on purpose; each is also the built-in error a caller may already catch."""

from __future__ import annotations


class TersegradError(Exception):
    """Base of all errors raised by tersegrad."""


class CodecError(TersegradError, ValueError):
    """A codec's parameters are outside their range, or a codec is unknown."""


class InputError(TersegradError, ValueError, TypeError):
    """An array has the wrong kind, dtype, shape or layout."""


class NonFiniteError(TersegradError, ValueError):
    """The input holds infinities or NaNs; residual and state are as they were before the call."""


class PayloadError(TersegradError, ValueError):
    """A payload is truncated, extended, damaged or forged; nothing was written."""


class StateError(TersegradError, ValueError):
    """Saved or distributed state does not fit: unknown keys, wrong shapes, ranks that disagree."""


class BudgetError(TersegradError, ValueError):
    """No codec meets the link, deadline or number of bytes."""


class BackendError(TersegradError, RuntimeError):
    """The kernels asked for are not available here."""
