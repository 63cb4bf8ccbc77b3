"""Messages that lie on the device: `compress_many` and `decompress_many` of its tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..buffers import Bytes, Kind
from ..codec import Call, Codec
from ..errors import InputError
from ..message import Message, refuse_not_finite
from .backend import ALIGNMENT, NOT_FINITE, SUM_NOT_FINITE, SUM_TOO_LARGE, Backend, dtype_of
from .form import Form, check_form, form_of_body, forms_of
from .payload import TOO_LARGE, flat, flat_residual, writable
from .registry import as_tensor, backend_for, of

if TYPE_CHECKING:
    import torch


class DeviceMessage(Message):
    """A message whose bodies lie on the device, in one piece of memory.

    As with `DevicePayload`, ``bytes(message)`` and `skipped` wait for the device and report inputs that were not finite.
    """

    __slots__ = ("_arena", "_forms", "_on_device", "_starts", "nonfinite")

    def __init__(
        self,
        backend: Backend,
        codecs: Sequence[Codec],
        dtypes: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
        device: torch.device,
        step: int,
        nonfinite: str,
        forms: Sequence[Form],
    ) -> None:
        import torch

        self.codecs, self.dtypes, self.shapes = tuple(codecs), tuple(dtypes), tuple(shapes)
        self.step, self.nonfinite, self._on_device = step, nonfinite, backend
        self._kind: Kind = "torch"
        self._forms, self._sizes = forms, [form.nbytes for form in forms]
        self._starts = []
        end = 0
        for form in forms:
            self._starts.append(end + form.start)
            end += -(-(form.start + form.nbytes) // ALIGNMENT) * ALIGNMENT
        self._starts.append(end)
        # The bodies, each where its kernels find ALIGNMENT, then their statuses.
        self._arena = torch.empty(end + 4 * len(shapes), dtype=torch.uint8, device=device)

    @property
    def device(self) -> torch.device:
        """Where the bodies lie."""
        return self._arena.device

    @property
    def statuses(self) -> torch.Tensor:
        """How each tensor fared: int32, on the device."""
        import torch

        return self._arena[self._starts[-1] :].view(torch.int32)

    def body_at(self, position: int) -> torch.Tensor:
        start = self._starts[position]
        return self._arena[start : start + self._sizes[position]]

    @property
    def nbytes(self) -> int:
        return self._head_bytes() + sum(self._sizes)

    # What follows waits for the device.

    @property
    def skipped(self) -> tuple[int, ...]:  # type: ignore[override]
        return self._judge(self.statuses.cpu().numpy())

    def check(self) -> None:
        """Wait for the device, and raise what `compress_many` on the host would have raised."""
        self._judge(self.statuses.cpu().numpy())

    def _judge(self, statuses: Any) -> tuple[int, ...]:
        for position in np.flatnonzero(statuses == SUM_TOO_LARGE).tolist():
            raise InputError(f"tensor {position} {TOO_LARGE}")
        sums = np.flatnonzero(statuses == SUM_NOT_FINITE).tolist()
        bad = tuple(np.flatnonzero(statuses >= NOT_FINITE).tolist())
        refuse_not_finite([] if self.nonfinite == "reset" else sums, bad, self.nonfinite)
        return bad

    @property
    def _bodies(self) -> Bytes:  # type: ignore[override]
        host = self._arena.cpu().numpy()
        self._judge(host[self._starts[-1] :].view(np.int32))
        pairs = zip(self._starts, self._sizes, strict=False)
        return np.concatenate([host[:0], *(host[start : start + size] for start, size in pairs)])


def pack(
    backend: Backend,
    tensors: Sequence[Any],
    codecs: Sequence[Codec],
    residuals: Sequence[Any],
    nonfinite: str,
    step: int,
    calls: Sequence[Call],
) -> DeviceMessage:
    """`compress_many` of tensors on one device: one encode after the other, on one stream."""
    import torch

    xs = [as_tensor(x) for x in tensors]
    elsewhere = {str(x.device) for x in xs if of(x) is not None and x.device != xs[0].device}
    if elsewhere or any(of(x) is None for x in xs):
        raise InputError(
            f"the tensors of one message must all be on one device, not on {xs[0].device} and elsewhere"
        )
    for codec in {id(codec): codec for codec in codecs}.values():
        check_form(backend, codec)
    sources = [flat(x, f"tensor {position}") for position, x in enumerate(xs)]
    kept = [
        None if residual is None else flat_residual(as_tensor(residual), x)
        for residual, x in zip(residuals, xs, strict=True)
    ]
    dtypes, shapes = [dtype_of(x) for x in xs], [tuple(x.shape) for x in xs]
    bad = skip = None
    if nonfinite == "error" and any(residual is not None for residual in kept):
        # One that is not finite keeps all residuals as they were.
        bad = torch.zeros(len(sources), dtype=torch.int32, device=xs[0].device)
        for position, source in enumerate(sources):
            backend.not_finite(source, bad[position : position + 1])
        skip = bad.amax(0, keepdim=True)
    forms, counted = forms_of(backend, codecs, sources, dtypes, kept, skip)
    message = DeviceMessage(backend, codecs, dtypes, shapes, xs[0].device, step, nonfinite, forms)
    statuses = message.statuses
    if counted is not None:
        statuses.copy_(counted)
    for position, (source, form, residual, call) in enumerate(
        zip(sources, forms, kept, calls, strict=True)
    ):
        status = statuses[position : position + 1]
        body = message.body_at(position)
        form.encode(
            backend,
            source,
            dtypes[position],
            body,
            status,
            residual,
            step=step,
            checked=nonfinite == "reset",
            skip=skip,
            last_key=call.last_key_there,
        )
        if nonfinite == "reset" and residual is not None:
            backend.zero_if(status, residual)
    if bad is not None:
        statuses.add_(bad)  # the skipped ones that were not finite: from ABSENT to NOT_FINITE
    return message


def decompress_many(
    message: DeviceMessage, out: Sequence[Any] | None, accumulate: bool, scale: float
) -> list[Any]:
    """`tersegrad.decompress_many` of a message on the device, to the device."""
    import torch

    results: list[Any] = []
    targets = []
    for position, (dtype, shape) in enumerate(zip(message.dtypes, message.shapes, strict=True)):
        if out is None:
            like = getattr(torch, dtype)
            result = torch.empty(shape, dtype=like, device=message.device)
            targets.append(result.view(-1))
        else:
            result = as_tensor(out[position])
            if result.device != message.device:
                raise InputError(
                    f"out[{position}] is on {result.device}, the message on {message.device}"
                )
            targets.append(writable(result, f"out[{position}]"))
            if tuple(result.shape) != shape:
                raise InputError(
                    f"out[{position}] has shape {tuple(result.shape)}, the message {shape}"
                )
        results.append(result if out is None else out[position])
    for position, (form, dtype, target) in enumerate(
        zip(message._forms, message.dtypes, targets, strict=True)
    ):
        body = message.body_at(position)
        form.decode(message._on_device, body, dtype, message.step, target, accumulate, scale)
    return results


def upload(message: Message, device: torch.device) -> DeviceMessage:
    """A message on a device: itself, or if it is on the host, checked there and copied."""
    import torch

    if isinstance(message, DeviceMessage) and message.device == device:
        return message
    backend = backend_for(device.type)
    assert backend is not None
    for codec in {id(codec): codec for codec in message.codecs}.values():
        check_form(backend, codec)
    forms, bodies = [], message.bodies()
    for codec, body, shape, dtype in zip(
        message.codecs, bodies, message.shapes, message.dtypes, strict=True
    ):
        n = math.prod(shape)
        codec._check(body, n, dtype, message.step)
        forms.append(form_of_body(codec, body, n, dtype))
    copy = DeviceMessage(
        backend,
        message.codecs,
        message.dtypes,
        message.shapes,
        device,
        message.step,
        "error",
        forms,
    )
    host = np.zeros(copy._arena.numel(), np.uint8)
    for position, body in enumerate(bodies):
        start = copy._starts[position]
        host[start : start + body.size] = body
    copy._arena.copy_(torch.from_numpy(host))
    return copy
