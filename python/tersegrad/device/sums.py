"""Sums of payloads and messages that lie on one device: `tersegrad.add` without waiting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..buffers import ITEM_BYTES
from ..codec import Codec
from ..codecs.cast import Cast
from ..codecs.integers import Integers
from ..codecs.random_k import RandomK
from .backend import NOT_FINITE, SENT, SUM_TOO_LARGE, Backend
from .message import DeviceMessage
from .payload import DevicePayload

if TYPE_CHECKING:
    import torch


def on_one_device(sources: Sequence[Any]) -> bool:
    """Whether all of these are payloads or messages on one device."""
    return all(
        isinstance(source, (DevicePayload, DeviceMessage)) and source.device == sources[0].device
        for source in sources
    )


def add_payloads(payloads: Sequence[Any], wrap: bool) -> DevicePayload:
    """`tersegrad.add` of payloads that add."""
    first = payloads[0]
    total = DevicePayload(
        first._on_device,
        first.codec,
        first._form,
        first.dtype,
        first.shape,
        first.device,
        step=first._own_step,
    )
    _add(
        total._on_device,
        first.codec,
        first.dtype,
        [payload.body for payload in payloads],
        [_status(payload.status, payload.nonfinite) for payload in payloads],
        wrap,
        total.body,
        total.status,
    )
    return total


def add_messages(messages: Sequence[Any], wrap: bool) -> DeviceMessage:
    """The same of messages, tensor by tensor."""
    first = messages[0]
    total = DeviceMessage(
        first._on_device,
        first.codecs,
        first.dtypes,
        first.shapes,
        first.device,
        first.step,
        "error",
        first._forms,
    )
    statuses = [_status(message.statuses, message.nonfinite) for message in messages]
    for position, (codec, dtype) in enumerate(zip(first.codecs, first.dtypes, strict=True)):
        here = slice(position, position + 1)
        _add(
            total._on_device,
            codec,
            dtype,
            [message.body_at(position) for message in messages],
            [status[here] for status in statuses],
            wrap,
            total.body_at(position),
            total.statuses[here],
        )
    return total


def _status(status: torch.Tensor, nonfinite: str) -> torch.Tensor:
    """What a sum must report: not an input that was to be skipped."""
    return status.masked_fill(status == NOT_FINITE, SENT) if nonfinite == "skip" else status


def _add(
    backend: Backend,
    codec: Codec,
    dtype: str,
    bodies: Sequence[torch.Tensor],
    statuses: Sequence[torch.Tensor],
    wrap: bool,
    total: torch.Tensor,
    status: torch.Tensor,
) -> None:
    """Write the sum of bodies, or zeros where it is none, and how that went."""
    import torch

    status.zero_()
    values = codec._value_codec if isinstance(codec, RandomK) else codec
    if isinstance(values, Integers):
        backend.add_integers(bodies, values.bits, total, None if wrap else status)
        status.mul_(SUM_TOO_LARGE)
    else:
        _add_floats(backend, values if isinstance(values, Cast) else Cast(dtype), bodies, total)
    torch.maximum(status, torch.cat(list(statuses)).amax(0, keepdim=True), out=status)
    backend.zero_if(status, total)


def _add_floats(
    backend: Backend, cast: Cast, bodies: Sequence[torch.Tensor], total: torch.Tensor
) -> None:
    """As `Cast` adds on the host: in float32, in order, rounded once."""
    import torch

    n = total.numel() // ITEM_BYTES[cast.dtype]
    sums = torch.empty(n, dtype=torch.float32, device=total.device)
    for number, body in enumerate(bodies):
        backend.decode(cast, body, "float32", 0, sums, number > 0, 1.0)
    largest = torch.finfo(torch.float32).max
    sums.clamp_(-largest, largest)  # an infinity saturates
    sent = torch.empty(1, dtype=torch.int32, device=total.device)
    backend.encode(cast, sums, "float32", total, sent)
