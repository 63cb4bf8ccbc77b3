"""Momentum correction, as in Deep Gradient Compression."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..device import of
from ..errors import StateError
from ..momentum import advance
from .memory import Entry, Memory


@dataclass(frozen=True)
class MomentumCorrection:
    """Momentum before compression instead of after it (Lin et al. 2018, "Deep gradient compression").

    An entry that waits in the residual for many steps would reach the optimizer without the
    momentum of those steps. So each rank keeps a velocity u = momentum * u + gradient, the residual
    collects u instead of the gradient, and the optimizer must be **SGD without momentum**. All of
    it is float32. Parameters that travel dense get momentum from their averaged gradient.

    Parameters
    ----------
    momentum : float
        From 0, below 1.
    nesterov : bool
        Collect momentum * u + gradient instead of u.
    masking : bool
        Set u to zero where an entry was sent (factor masking), so that old directions stop
        pushing. Only with sparse codecs; the others send every entry.
    clip_norm : float, optional
        Scale each parameter's gradient on each rank down to a norm of clip_norm / sqrt(ranks),
        before anything else. A hook sees one bucket at a time, so the norm is of one parameter and
        not of the model.

    Raises
    ------
    StateError
        For values that are none of these.
    """

    momentum: float = 0.9
    nesterov: bool = False
    masking: bool = True
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.momentum, (int, float)) or not 0 <= self.momentum < 1:
            raise StateError(f"momentum must be from 0 and below 1, not {self.momentum!r}")
        limit = self.clip_norm
        if limit is not None and not (
            isinstance(limit, (int, float)) and limit > 0 and math.isfinite(limit)
        ):
            raise StateError(f"clip_norm must be None or above 0, not {limit!r}")

    def clip(self, gradient: torch.Tensor, world_size: int, scale: float) -> None:
        """Clip in place; `scale` is the loss scale, by which the gradient is too large."""
        if self.clip_norm is None:
            return
        limit = self.clip_norm * scale / math.sqrt(world_size)
        length = torch.linalg.vector_norm(gradient, dtype=torch.float64)
        if of(gradient) is not None:  # without waiting for the norm
            gradient.mul_((limit / length).clamp_(max=1))
            return
        norm = float(length)
        if norm > limit:
            gradient.mul_(limit / norm)

    def step(self, memory: Memory, entry: Entry, gradient: torch.Tensor) -> torch.Tensor:
        """The velocity's next step: what takes the gradient's place, flat float32."""
        before, now = memory.advance(entry.velocity_of())
        after: torch.Tensor = advance(before, now, gradient, self.momentum, self.nesterov)
        return after
