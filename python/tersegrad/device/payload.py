"""Payloads that lie on the device, and how tensors of the device become such and come back.

Nothing here waits for the device, except where a value travels to the host: `DevicePayload` says where.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from ..buffers import (
    ITEM_BYTES,
    Bytes,
    Kind,
    check_rank,
    check_residual,
    check_strided,
    check_writable,
    is_tensor,
)
from ..codec import (
    NOT_FINITE_MESSAGES,
    SUM_MESSAGE,
    Call,
    Codec,
    check_count,
    check_step,
)
from ..errors import InputError, NonFiniteError, StateError
from ..payload import HEADER_BYTES, Payload
from .backend import ALIGNMENT, NOT_FINITE, SUM_NOT_FINITE, SUM_TOO_LARGE, Backend, dtype_of
from .form import Form, check_form, form_of_body, forms_of
from .registry import as_tensor, backend_for, of

if TYPE_CHECKING:
    import torch

#: What is wrong with a sum of `Integers`.
TOO_LARGE = "is a sum of Integers beyond their bits; encode with more `addends` or more bits (or add with wrap=True, if these are masked)"


class DevicePayload(Payload):
    """A payload whose body lies on the device.

    `body`, `nbytes`, `ratio` and `decompress` onto the device need nothing from it. ``bytes(payload)`` and all that stands on it
    (pickle, ``==``, decompression on the host) copy the body to the host, once a call; `skipped` and `check` copy a number. These wait
    for the device, and are where an input that was not finite is reported. Until then such a payload decodes to zeros.
    """

    __slots__ = (
        "_buffer",
        "_device_body",
        "_form",
        "_on_device",
        "_own_step",
        "_trailer",
        "nonfinite",
    )

    def __init__(
        self,
        backend: Backend,
        codec: Codec,
        form: Form,
        dtype: str,
        shape: tuple[int, ...],
        device: torch.device,
        nonfinite: str = "error",
        step: int | torch.Tensor = 0,
    ) -> None:
        import torch

        self.codec, self.dtype, self.shape = codec, dtype, shape
        self.nonfinite = nonfinite
        self._kind: Kind = "torch"
        self._on_device = backend
        self._form = form
        end = form.start + form.nbytes
        trailer = -(-end // ALIGNMENT) * ALIGNMENT
        # One piece of memory: the body, then its status and step.
        self._buffer = torch.empty(trailer + 8, dtype=torch.uint8, device=device)
        self._device_body = self._buffer[form.start : end]
        self._trailer = self._buffer[trailer:].view(torch.int32)
        self._own_step = step
        if isinstance(step, torch.Tensor):
            self._trailer[1:].copy_(step.view(-1))  # the caller's counter moves on
            self._own_step = self._trailer[1:]

    @property
    def device(self) -> torch.device:
        """Where the body lies."""
        return self._buffer.device

    @property
    def status(self) -> torch.Tensor:
        """How the input fared: int32, one entry, on the device."""
        return self._trailer[:1]

    @property
    def body(self) -> Any:
        """The coded entries: uint8, 1-D, on the device."""
        return self._device_body

    @property
    def nbytes(self) -> int:
        return HEADER_BYTES + 8 * len(self.shape) + self._device_body.numel()

    @property
    def ratio(self) -> float:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype] / self.nbytes

    # What follows waits for the device.

    @property
    def step(self) -> int:  # type: ignore[override]
        step = self._own_step
        return step if isinstance(step, int) else int(step) & 0xFFFFFFFF

    @property
    def skipped(self) -> bool:  # type: ignore[override]
        """Whether the input was not finite and the payload stands for zeros. Waits for the device; raises as `check`."""
        return self._judge(int(self._trailer[0]))

    def check(self) -> None:
        """Wait for the device, and raise what `compress` on the host would have raised.

        Raises
        ------
        NonFiniteError
            The input held an infinity or NaN, unless it was compressed with ``nonfinite="skip"``.
        InputError
            Its sum with the residual did, or it is a sum of `Integers` beyond their bits.
        """
        self._judge(int(self._trailer[0]))

    def _judge(self, status: int) -> bool:
        if status == SUM_TOO_LARGE:
            raise InputError(f"the payload {TOO_LARGE}")
        if status == SUM_NOT_FINITE and self.nonfinite != "reset":
            raise InputError(SUM_MESSAGE)
        if status >= NOT_FINITE and self.nonfinite != "skip":
            raise NonFiniteError(NOT_FINITE_MESSAGES[self.nonfinite])
        return status == NOT_FINITE

    @property
    def _body(self) -> Bytes:  # type: ignore[override]
        host = self._buffer.cpu().numpy()
        trailer = host[-8:].view(np.int32)
        self._judge(int(trailer[0]))
        return host[self._form.start :][: self._form.nbytes]

    def on_host(self) -> Payload:
        """The same payload in memory of the host."""
        return Payload(self.codec, self.dtype, self.shape, self._body, "torch", self.step)

    def __repr__(self) -> str:
        return (
            f"Payload({self.codec}, {self.dtype}, shape={self.shape}, nbytes={self.nbytes}, "
            f"device={str(self._buffer.device)!r})"
        )


def compress(
    backend: Backend,
    x: Any,
    codec: Codec,
    residual: Any,
    nonfinite: str,
    step: Any,
    last_key: torch.Tensor | None = None,
) -> DevicePayload:
    """`tersegrad.compress` of a tensor on the device, with a head start from the last call on the same stream of them if there is one."""
    source = flat(x, "input")
    kept = None if residual is None else flat_residual(residual, x)
    step, dtype = _check_step(step, source), dtype_of(source)
    codec = check_form(backend, codec)
    (form,), status = forms_of(backend, [codec], [source], [dtype], [kept])
    payload = DevicePayload(
        backend, codec, form, dtype, tuple(x.shape), source.device, nonfinite, step
    )
    if status is not None:
        payload.status.copy_(status)
    form.encode(
        backend,
        source,
        dtype,
        payload._device_body,
        payload.status,
        kept,
        step=payload._own_step,
        checked=nonfinite == "reset",
        last_key=last_key,
    )
    if nonfinite == "reset" and kept is not None:
        backend.zero_if(payload.status, kept)
    return payload


def decompress(payload: DevicePayload, out: Any, accumulate: bool, scale: float) -> Any:
    """`tersegrad.decompress` of a payload on the device, to the device."""
    import torch

    if out is None:
        dtype = getattr(torch, payload.dtype)
        out = torch.empty(payload.shape, dtype=dtype, device=payload.device)
    target = writable(out, "out")
    if tuple(out.shape) != payload.shape:
        raise InputError(f"out has shape {tuple(out.shape)}, the payload {payload.shape}")
    payload._form.decode(
        payload._on_device,
        payload._device_body,
        payload.dtype,
        payload._own_step,
        target,
        accumulate,
        scale,
    )
    return out


def place_of(source: object, out: Any, kind: Any) -> torch.device | None:
    """The device on which a payload or message is to be decoded; None for the host."""
    if out is not None:
        return None if of(out) is None else as_tensor(out).device
    if kind in (None, "torch"):
        return getattr(source, "device", None)
    if kind == "numpy" or "torch" not in sys.modules:
        return None
    import torch

    try:
        device = torch.device(kind)
    except (RuntimeError, TypeError):
        return None  # and the caller says what it takes
    if backend_for(device.type) is None:
        return None
    if device == torch.device("cuda"):  # whichever is current
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def upload(payload: Payload, device: torch.device) -> DevicePayload:
    """A payload on a device: itself, or if it is on the host, checked there and copied."""
    import torch

    if isinstance(payload, DevicePayload) and payload.device == device:
        return payload
    backend = backend_for(device.type)
    assert backend is not None
    n, body = math.prod(payload.shape), payload._body
    codec = check_form(backend, payload.codec)
    codec._check(body, n, payload.dtype, payload.step)
    form = form_of_body(codec, body, n, payload.dtype)
    copy = DevicePayload(
        backend, codec, form, payload.dtype, payload.shape, device, "error", payload.step
    )
    copy._buffer.zero_()  # the status: sent
    copy._device_body.copy_(torch.from_numpy(np.array(body)))
    return copy


def flat(x: Any, what: str) -> torch.Tensor:
    """A tensor of the device as its kernels see it: flat, contiguous, without gradient."""
    check_strided(x, what)
    check_rank(x.shape, what)
    dtype_of(x, what)
    check_count(x.numel())
    return x.detach().contiguous().resolve_neg().view(-1)  # type: ignore[no-any-return]


def writable(x: Any, what: str) -> torch.Tensor:
    """The same of a tensor that is written in place: `InputError` where a copy would be needed."""
    check_writable(x, what)
    return flat(x, what)


def flat_residual(residual: Any, x: Any) -> torch.Tensor:
    """The float32 residual that belongs to `x`."""
    if not is_tensor(residual):
        raise InputError(f"residual is a {type(residual).__name__}, the input a tensor")
    if residual.device != x.device:
        raise InputError(f"residual is on {residual.device}, the input on {x.device}")
    name = str(residual.dtype).removeprefix("torch.")
    check_residual(name, tuple(residual.shape), tuple(x.shape))
    return writable(residual, "residual")


def _check_step(step: Any, x: torch.Tensor) -> int | torch.Tensor:
    """A number of the host, or one on the device that a graph's replays find changed."""
    import torch

    if not isinstance(step, torch.Tensor):
        return check_step(step)
    integers = (torch.int32, torch.int64, torch.uint32)
    if step.numel() != 1 or step.dtype not in integers or step.device != x.device:
        raise InputError(
            f"step must be an integer from 0, or one on {x.device} (int32 or int64), not {step!r}"
        )
    return step


def last_key_of(call: Call, device: torch.device) -> torch.Tensor:
    """Where a device keeps what `Call.last_key` is on the host."""
    import torch

    if call.last_key_there is None or call.last_key_there.device != device:
        call.last_key_there = torch.zeros(1, dtype=torch.int32, device=device)
    return call.last_key_there  # type: ignore[no-any-return]


class SkipCount:
    """How many inputs were skipped: of the host, and of devices, which are asked when it is read."""

    def __init__(self, count: int = 0) -> None:
        self._count = count
        self._on_device: dict[Any, torch.Tensor] = {}

    def add(self, count: int) -> None:
        self._count += count

    def add_on_device(self, statuses: torch.Tensor) -> None:
        bad = (statuses == NOT_FINITE).sum()
        total = self._on_device.get(statuses.device)
        self._on_device[statuses.device] = bad if total is None else total.add_(bad)

    def read(self) -> int:
        return self._count + sum(int(total) for total in self._on_device.values())

    def __reduce__(self) -> tuple[type[SkipCount], tuple[int]]:
        return SkipCount, (self.read(),)


def new_residual(x: Any, old: Any) -> torch.Tensor:
    """A residual for `x` on its device: zeros, or what was kept elsewhere."""
    import torch

    if old is None:
        return torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    return torch.as_tensor(old).to(x.device, torch.float32, copy=True)


def checked_copy(residual: torch.Tensor, what: str) -> torch.Tensor:
    """A copy of a residual of a checkpoint; `StateError` if it is none. Waits for the device."""
    if dtype_of(residual, what) != "float32" or not bool(residual.isfinite().all()):
        raise StateError(f"{what} must be finite float32")
    return residual.detach().clone()
