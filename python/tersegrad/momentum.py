"""Momentum before compression: the numerics that the DDP hook and `ErrorFeedback` share.

The arrays are all NumPy or all torch. One operation at a time: a fused multiply-add would differ
between processors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .buffers import Bytes

if TYPE_CHECKING:
    from .codec import Codec


def advance(before: Any, now: Any, gradient: Any, momentum: float, nesterov: bool) -> Any:
    """Write ``momentum * before + gradient`` to `now`; returns what takes the gradient's place."""
    if isinstance(before, np.ndarray):
        np.multiply(before, np.float32(momentum), out=now)
    else:
        import torch

        torch.mul(before, momentum, out=now)
    with np.errstate(over="ignore"):  # the codec refuses what is not finite
        now += gradient
        return now * momentum + gradient if nesterov else now


def sent_by(codec: Codec, body: Bytes, n: int, dtype: str, step: int) -> npt.NDArray[np.bool_]:
    """Which of `n` entries a body carries as something else than zero."""
    sent = np.zeros(n, np.float32)
    codec._decompress(body, dtype, step, sent, False, 1.0, True)
    carried: npt.NDArray[np.bool_] = sent != 0
    return carried
