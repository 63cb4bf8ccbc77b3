"""Error feedback: one residual per key, added to the next tensor of that key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .api import NonFinite, check_nonfinite, compress_view
from .buffers import Floats, View, is_tensor, kind_of, like, residual_view, view, writable_view
from .codec import Call, Codec, check_codec
from .device import as_tensor, of
from .device.message import DeviceMessage
from .device.payload import SkipCount, checked_copy, new_residual
from .device.payload import compress as compress_on_device
from .errors import InputError, StateError
from .many import pack
from .message import Message
from .payload import Payload

if TYPE_CHECKING:
    from .buffers import AnyArray

STATE_VERSION = 1


class ErrorFeedback:
    """Compress a stream of tensors so that what one payload leaves out is sent later.

    (Seide et al. 2014, "1-bit stochastic gradient descent"; Karimireddy et al. 2019, "Error feedback fixes SignSGD".)

    Parameters
    ----------
    codec : Codec
    nonfinite : {"error", "skip", "reset"}
        For inputs that hold an infinity or NaN, as in `compress`.

    Attributes
    ----------
    skipped : int
        How many inputs were skipped because they were not finite. Where tensors lie on a device, reading it waits for that device.

    Examples
    --------
    >>> import numpy as np, tersegrad as tg
    >>> feedback = tg.ErrorFeedback(tg.TopK(k=1))
    >>> gradient = np.array([3.0, 2.0], np.float32)
    >>> tg.decompress(feedback.compress(gradient, key="w"))
    array([3., 0.], dtype=float32)
    >>> tg.decompress(feedback.compress(gradient, key="w"))
    array([0., 4.], dtype=float32)
    """

    def __init__(self, codec: Codec, *, nonfinite: NonFinite = "error") -> None:
        self.codec = check_codec(codec)
        self.nonfinite = check_nonfinite(nonfinite)
        self._skipped = SkipCount()
        self._residuals: dict[str, AnyArray] = {}
        self._calls: dict[str, Call] = {}

    @property
    def skipped(self) -> int:
        """How many inputs were skipped because they were not finite."""
        return self._skipped.read()

    def compress(self, x: AnyArray, key: str) -> Payload:
        """Compress ``x + residual[key]`` and keep what the payload does not carry.

        Raises `StateError` when the key was used with another shape, and as `tersegrad.compress` does.
        """
        if not isinstance(key, str):
            raise InputError(f"key must be a string, such as the parameter's name, not {key!r}")
        if (backend := of(x)) is not None:
            tensor = as_tensor(x)
            there = self._residual_on_device(key, tensor)
            call = self._calls.setdefault(key, Call())
            coded = compress_on_device(
                backend, tensor, self.codec, there, self.nonfinite, call.step, call
            )
            call.step = (call.step + 1) & 0xFFFFFFFF
            if self.nonfinite == "skip":
                self._skipped.add_on_device(coded.status)
            return coded
        source = view(x)
        residual = self._residual_for(key, source)
        call = self._calls.setdefault(key, Call())
        payload = compress_view(source, self.codec, residual, self.nonfinite, call)
        call.step = (call.step + 1) & 0xFFFFFFFF
        self._skipped.add(payload.skipped)
        return payload

    def compress_many(self, tensors: Mapping[str, AnyArray]) -> Message:
        """Compress the tensors of many keys in one native call and one message, in the order of the mapping.

        ``"skip"`` leaves the residuals of the tensors in ``message.skipped`` untouched; with ``"error"`` no residual changes if one
        tensor is not finite.
        """
        calls, residuals = [], []
        on_device = any(of(x) is not None for x in tensors.values())
        for key, tensor in tensors.items():
            if on_device:
                residuals.append(self._residual_on_device(key, as_tensor(tensor)))
                calls.append(self._calls.setdefault(key, Call()))
                continue
            residual, call = self._residuals.get(key), self._calls.get(key)
            if call is None or residual is None or type(residual) is not type(tensor):
                self._residual_for(key, view(tensor))
                residual, call = self._residuals[key], self._calls.setdefault(key, Call())
            calls.append(call)
            residuals.append(residual)
        step = max((call.step for call in calls), default=0)
        codecs, xs = [self.codec] * len(calls), list(tensors.values())
        try:
            message = pack(xs, codecs, residuals, self.nonfinite, step, calls)
        except InputError:
            if on_device:
                raise
            for key, tensor in tensors.items():
                self._residual_for(key, view(tensor))  # StateError: says whose shape is another
            raise
        for call in calls:
            call.step = (step + 1) & 0xFFFFFFFF
        if not isinstance(message, DeviceMessage):
            self._skipped.add(len(message.skipped))
        elif self.nonfinite == "skip":
            self._skipped.add_on_device(message.statuses)
        return message

    def _residual_on_device(self, key: str, x: Any) -> AnyArray:
        residual = self._residuals.get(key)
        if residual is None or not is_tensor(residual) or residual.device != x.device:
            residual = self._residuals[key] = new_residual(x, residual)
        _check_shape(key, residual, tuple(x.shape))
        return residual

    def _residual_for(self, key: str, x: View) -> Floats:
        residual = self._residuals.get(key)
        if residual is None:
            residual = like(np.zeros(x.array.size, np.float32), "float32", x.shape, x.kind)
            self._residuals[key] = residual
        elif (
            of(residual) is not None or kind_of(residual) != x.kind
        ):  # loaded, or the caller changed
            if of(residual) is not None:
                residual = residual.cpu()  # type: ignore[union-attr]
            residual = like(view(residual).array, "float32", tuple(residual.shape), x.kind)
            self._residuals[key] = residual
        _check_shape(key, residual, x.shape)
        return residual_view(residual, x)

    def residual(self, key: str) -> AnyArray:
        """The residual of a key, float32, not a copy. `KeyError` if the key is new."""
        return self._residuals[key]

    def norm(self, key: str | None = None) -> float:
        """The Euclidean norm of one residual, or of all together."""
        keys = self._residuals if key is None else [key]
        return math.sqrt(sum(_norm(self._residuals[k]) ** 2 for k in keys))

    def rescale(self, factor: float) -> None:
        """Multiply every residual: with loss scaling, by new scale / old scale."""
        if not (isinstance(factor, (int, float)) and math.isfinite(factor)):
            raise InputError(f"factor must be a finite number, not {factor!r}")
        for residual in self._residuals.values():
            if of(residual) is not None:
                residual.mul_(factor)  # type: ignore[union-attr]
                continue
            flat = writable_view(residual, "residual").array
            np.multiply(flat, np.float32(factor), out=flat)

    def reset(self, key: str | None = None) -> None:
        """Forget one residual, or all of them."""
        if key is None:
            self._residuals.clear()
            self._calls.clear()
        else:
            self._residuals.pop(key, None)
            self._calls.pop(key, None)

    def state_dict(self) -> dict[str, Any]:
        """A snapshot of plain arrays and numbers: with tensors, ``torch.load(weights_only=True)`` reads it."""
        return {
            "version": STATE_VERSION,
            "skipped": self.skipped,
            "steps": {key: call.step for key, call in self._calls.items()},
            "residuals": {key: _copy(residual) for key, residual in self._residuals.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a snapshot; `StateError`, and nothing changed, if it is not one."""
        try:
            version, skipped = state["version"], int(state["skipped"])
            calls = {str(key): Call(int(step)) for key, step in state["steps"].items()}
            residuals = dict(state["residuals"])
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise StateError(f"not a state of ErrorFeedback: {error!r}") from error
        if version != STATE_VERSION:
            raise StateError(
                f"state version {version!r} is not supported; this is version {STATE_VERSION}"
            )
        copies: dict[str, AnyArray] = {}
        for key, residual in residuals.items():
            try:
                if of(residual) is not None:
                    copies[key] = checked_copy(residual, f"residual {key!r}")
                    continue
                got = view(residual, f"residual {key!r}")
            except InputError as error:
                raise StateError(str(error)) from error
            if got.dtype != "float32" or not np.isfinite(got.array).all():
                raise StateError(f"residual {key!r} must be finite float32")
            copies[key] = like(got.array.copy(), "float32", got.shape, got.kind)
        self._residuals, self._calls, self._skipped = copies, calls, SkipCount(skipped)


def _check_shape(key: str, residual: AnyArray, shape: tuple[int, ...]) -> None:
    if tuple(residual.shape) != shape:
        raise StateError(
            f"residual {key!r} has shape {tuple(residual.shape)}, the input {shape}: use another key, or reset({key!r})"
        )


def _norm(residual: Any) -> float:
    if of(residual) is not None:
        return float(residual.norm())
    return float(np.linalg.norm(view(residual).array))


def _copy(residual: Any) -> Any:
    if of(residual) is not None:
        return residual.clone()
    return like(view(residual).array.copy(), "float32", tuple(residual.shape), kind_of(residual))
