"""Messages between ranks that lie on the device: `tersegrad.exchange` without waiting.

How each part fared is a number on the device. A part that is not finite on some rank has a sum that begins with NaN, and its residual
is put back by a copy that happens if that number says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import StateError
from .backend import NOT_FINITE, Backend, signed

if TYPE_CHECKING:
    import torch

    from ..exchange import Layout

HEAD_BYTES = 16
NON_FINITE = 1  # the mark in a head
WRONG_MESSAGE = (
    "a rank of the group failed, or sent a message of another layout or step; the gradients of that step were set to NaN. If no rank says "
    "why: give every rank the same arguments and the checkpoint of the same step"
)


def write(
    backend: Backend,
    layouts: Sequence[Layout],
    messages: Sequence[torch.Tensor],
    values: Sequence[Sequence[torch.Tensor]],
    residuals: Sequence[Sequence[torch.Tensor | None]],
    step: int,
) -> str | None:
    """`tersegrad.exchange.write`."""
    import torch

    device, parts = messages[0].device, len(layouts[0].parts)
    status = torch.zeros((len(layouts), parts), dtype=torch.int32, device=device)
    failure = None
    try:
        for number, (layout, message, xs, rs) in enumerate(
            zip(layouts, messages, values, residuals, strict=True)
        ):
            for index, (part, x, residual) in enumerate(zip(layout.parts, xs, rs, strict=True)):
                backend.encode(
                    part.encoder,
                    x.detach(),
                    str(x.dtype).removeprefix("torch."),
                    message[part.body],
                    status[number, index : index + 1],
                    residual,
                    step=step % 2**32,
                )
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    marks = (status >= NOT_FINITE).any(0)
    for layout, message in zip(layouts, messages, strict=True):
        message[:HEAD_BYTES].copy_(_head_of(layout, step, device))
        message[HEAD_BYTES : HEAD_BYTES + parts].copy_(marks)
        if failure is not None:
            message[12:13].fill_(1)
    return failure


class DeviceVerdict:
    """How each part fared, known on the device alone; the methods are those of `tersegrad.exchange.HostVerdict`."""

    def __init__(
        self,
        backend: Backend,
        layout: Layout,
        messages: torch.Tensor,
        step: int,
        failure: str | None,
    ) -> None:
        import torch

        self._backend, self._failure = backend, failure
        parts, device = len(layout.parts), messages.device
        marks = messages[:, HEAD_BYTES : HEAD_BYTES + parts]
        self._wrong = (messages[:, :HEAD_BYTES] != _head_of(layout, step, device)).any()
        lost = (marks == NON_FINITE).any(0).logical_or_(self._wrong)
        self._lost = lost.to(torch.int32)
        self._start = torch.zeros(parts, device=device).masked_fill_(lost, float("nan"))

    def begin(self, index: int, place: torch.Tensor) -> None:
        place.copy_(self._start[index])

    def skips(self, index: int) -> bool:
        return False

    def settle(
        self, index: int, name: str, old: Mapping[str, torch.Tensor], fresh: dict[str, torch.Tensor]
    ) -> None:
        if name in fresh:
            flag, kept = self._lost[index : index + 1], old.get(name)
            if kept is None:
                self._backend.zero_if(flag, fresh[name])
            else:
                self._backend.copy_if(flag, kept, fresh[name])

    def close(self, counters: dict[str, float], ledger: torch.Tensor | None) -> torch.Tensor:
        """The counts of parts that were lost and of messages that did not fit, with those of this verdict."""
        if self._failure is not None:
            raise StateError(f"this rank could not compress: {self._failure}")
        if ledger is None:
            ledger = self._lost.new_zeros(2)
        ledger[0].add_(self._lost.sum())
        ledger[1].add_(self._wrong)
        return ledger


def read(ledger: torch.Tensor | None) -> int:
    """The parts that were lost; `StateError` if a message did not fit. Waits for the device."""
    if ledger is None:
        return 0
    lost, wrong = ledger.tolist()
    if wrong:
        raise StateError(WRONG_MESSAGE)
    return int(lost)


def _head_of(layout: Layout, step: int, device: torch.device) -> torch.Tensor:
    """How the messages of a step begin. The constant part is copied to the device once."""
    import torch

    kept: dict[Any, torch.Tensor] = layout.__dict__.setdefault("_heads", {})
    if device not in kept:
        kept[device] = torch.frombuffer(bytearray(layout.head(0, False)), dtype=torch.uint8).to(
            device
        )
    head = kept[device].clone()
    head[8:12].view(torch.int32).fill_(signed(step % 2**32))
    return head
