"""What is kept of streams of tensors from one call to the next: float32 arrays by key, and how they are saved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core
from .api import NonFinite, check_nonfinite, compress_view
from .buffers import (
    Floats,
    Kind,
    View,
    is_tensor,
    kind_of,
    like,
    residual_view,
    view,
    writable_view,
    zeros_like,
)
from .codec import Call, Codec, check_codec, check_count, used
from .device import of
from .device.payload import SkipCount, checked_copy, new_residual
from .errors import InputError, NonFiniteError, StateError
from .message import Message
from .payload import Payload

if TYPE_CHECKING:
    from .buffers import AnyArray, Bytes

STATE_VERSION = 1


class Kept:
    """Float32 arrays by key, in the kind and shape of the caller's tensors.

    Parameters
    ----------
    what : str
        One of them, in messages: "residual".
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.arrays: dict[str, AnyArray] = {}

    def of(self, key: str, x: View) -> Floats:
        """The array that belongs to the stream of `x`, flat; zeros if the key is new."""
        array = self.arrays.get(key)
        if array is None:
            array = like(np.zeros(x.array.size, np.float32), "float32", x.shape, x.kind)
            self.arrays[key] = array
        elif of(array) is not None or kind_of(array) != x.kind:  # loaded, or the caller changed
            if of(array) is not None:
                array = array.cpu()  # type: ignore[union-attr]
            array = like(view(array).array, "float32", tuple(array.shape), x.kind)
            self.arrays[key] = array
        check_shape(self.what, key, tuple(array.shape), x.shape)
        return residual_view(array, x)

    def on_device(self, key: str, x: Any) -> Any:
        """The array that belongs to the stream of a tensor on a device, in its shape and there."""
        array = self.arrays.get(key)
        if array is None or not is_tensor(array) or array.device != x.device:
            array = self.arrays[key] = new_residual(x, array)
        check_shape(self.what, key, tuple(array.shape), tuple(x.shape))
        return array

    def put(self, key: str, array: Floats, x: View) -> None:
        self.arrays[key] = like(array, "float32", x.shape, x.kind)

    def forget(self, key: str | None) -> None:
        if key is None:
            self.arrays.clear()
        else:
            self.arrays.pop(key, None)

    def rescale(self, factor: float) -> None:
        for array in self.arrays.values():
            if of(array) is not None:
                array.mul_(factor)  # type: ignore[union-attr]
                continue
            flat = writable_view(array, self.what).array
            np.multiply(flat, np.float32(factor), out=flat)

    def norm(self, key: str | None = None) -> float:
        keys = self.arrays if key is None else [key]
        return math.sqrt(sum(_norm(self.arrays[k]) ** 2 for k in keys))

    def snapshot(self) -> dict[str, AnyArray]:
        return {key: _copy(array) for key, array in self.arrays.items()}

    def checked(self, saved: Mapping[Any, Any]) -> dict[str, AnyArray]:
        """Copies of what was saved, to become `arrays`; `StateError` if they cannot be."""
        copies: dict[str, AnyArray] = {}
        for key, array in dict(saved).items():
            try:
                if of(array) is not None:
                    copies[str(key)] = checked_copy(array, f"{self.what} {key!r}")
                    continue
                got = view(array, f"{self.what} {key!r}")
            except InputError as error:
                raise StateError(str(error)) from error
            if got.dtype != "float32" or not np.isfinite(got.array).all():
                raise StateError(f"{self.what} {key!r} must be finite float32")
            copies[str(key)] = like(got.array.copy(), "float32", got.shape, got.kind)
        return copies


def _norm(array: Any) -> float:
    if of(array) is not None:
        return float(array.norm())
    return float(np.linalg.norm(view(array).array))


def _copy(array: Any) -> Any:
    if of(array) is not None:
        return array.clone()
    return like(view(array).array.copy(), "float32", tuple(array.shape), kind_of(array))


def check_shape(what: str, key: str, own: tuple[int, ...], given: tuple[int, ...]) -> None:
    if own != given:
        raise StateError(
            f"{what} {key!r} has shape {own}, the input {given}: use another key, or reset({key!r})"
        )


def check_key(key: object) -> str:
    if not isinstance(key, str):
        raise InputError(f"key must be a string, such as the parameter's name, not {key!r}")
    return key


def check_factor(factor: object) -> float:
    if not (isinstance(factor, (int, float)) and math.isfinite(factor)):
        raise InputError(f"factor must be a finite number, not {factor!r}")
    return factor


def check_share(name: str, number: object, *, one: bool) -> float:
    """`number`, if it is from 0 and below 1, or with `one` above 0 and at most 1."""
    plain = isinstance(number, (int, float)) and not isinstance(number, bool)
    if not (plain and (0 < number <= 1 if one else 0 <= number < 1)):  # type: ignore[operator]
        raise InputError(
            f"{name} must be {'above 0 and at most 1' if one else 'from 0 and below 1'}, not {number!r}"
        )
    return float(number)  # type: ignore[arg-type]


class Sender:
    """Base of what compresses streams of tensors and keeps something of each: the calls, and whole models."""

    def __init__(self, codec: Codec, nonfinite: NonFinite) -> None:
        self.codec = check_codec(codec)
        self.nonfinite = check_nonfinite(nonfinite)
        self._skipped = SkipCount()
        self._calls: dict[str, Call] = {}

    @property
    def skipped(self) -> int:
        """How many inputs were skipped because they were not finite."""
        return self._skipped.read()

    # What a kind of feedback defines.

    def _meet(self, key: str, x: View) -> None:
        """`StateError` if the key was used with another shape."""
        raise NotImplementedError

    def _encode(self, key: str, x: View, codec: Codec, body: Bytes, call: Call) -> None:
        """Write a body of `codec` for `x`, which is finite, and then change what is kept; `InputError` changes nothing."""
        raise NotImplementedError

    def _pass_over(self, key: str, payload: Payload) -> None:
        """What a skipped input does: a payload of zeros is sent."""

    def _lose(self, key: str) -> None:
        """Set to zero what is kept of a key, for ``nonfinite="reset"``."""
        raise NotImplementedError

    def _kind(self, key: str) -> Kind | None:
        """What the arrays kept of a key are, if there are any."""
        raise NotImplementedError

    # What callers call.

    def compress(self, x: AnyArray, key: str) -> Payload:
        """Compress the next tensor of a key.

        Raises `StateError` when the key was used with another shape, and as `tersegrad.compress` does.
        """
        source = view(x)
        self._meet(check_key(key), source)
        call = self._calls.setdefault(key, Call())
        finite = _core.all_finite(source.array)
        if not finite:
            self._refuse([key])
        payload = self._payload(key, source, finite, call)
        call.step = (call.step + 1) & 0xFFFFFFFF
        self._skipped.add(payload.skipped)
        return payload

    def compress_many(self, tensors: Mapping[str, AnyArray]) -> Message:
        """Compress the tensors of many keys into one message, in the order of the mapping.

        ``"skip"`` changes nothing that is kept of the tensors in ``message.skipped``; with ``"error"`` nothing changes if one tensor is
        not finite.
        """
        views = {check_key(key): view(tensor, f"tensor {key!r}") for key, tensor in tensors.items()}
        kinds = {x.kind for x in views.values()}
        if len(kinds) > 1:
            raise InputError(
                "the tensors of one message must be all torch tensors or all NumPy arrays"
            )
        for key, x in views.items():
            self._meet(key, x)
        bad = [key for key, x in views.items() if not _core.all_finite(x.array)]
        if bad:
            self._refuse(bad)
        calls = {key: self._calls.setdefault(key, Call()) for key in views}
        step = max((call.step for call in calls.values()), default=0)
        payloads = []
        for key, x in views.items():
            calls[key].step = step
            payloads.append(self._payload(key, x, key not in bad, calls[key]))
            calls[key].step = (step + 1) & 0xFFFFFFFF
        self._skipped.add(len(bad))
        bodies = [payload._body for payload in payloads]
        return Message(
            [self.codec] * len(bodies),
            [x.dtype for x in views.values()],
            [x.shape for x in views.values()],
            np.concatenate(bodies) if bodies else np.empty(0, np.uint8),
            [body.size for body in bodies],
            kinds.pop() if kinds else "numpy",
            step,
            [position for position, payload in enumerate(payloads) if payload.skipped],
        )

    def _refuse(self, keys: list[str]) -> None:
        """Do with what is not finite as told; returns only to skip it."""
        if self.nonfinite == "reset":
            for key in keys:
                self._lose(key)
            raise NonFiniteError(
                f"{keys} hold an infinity or NaN; what was kept of them was set to zero"
            )
        if self.nonfinite == "error":
            raise NonFiniteError(
                f"{keys} hold an infinity or NaN; mend them, or pass nonfinite='skip' to send zeros for this step"
            )

    def _payload(self, key: str, x: View, finite: bool, call: Call) -> Payload:
        if not finite:
            payload = compress_view(zeros_like(x), self.codec, None, "skip", call)
            payload.skipped = True
            self._pass_over(key, payload)
            return payload
        codec = self.codec.for_shape(x.shape)
        body = np.empty(codec.max_body_size(check_count(x.array.size), x.dtype), np.uint8)
        self._encode(key, x, codec, body, call)
        return Payload(codec, x.dtype, x.shape, used(body, call), x.kind, call.step)

    # State.

    def _save(self, **kept: Any) -> dict[str, Any]:
        steps = {key: call.step for key, call in self._calls.items()}
        state = {"version": STATE_VERSION, "skipped": self.skipped, "steps": steps, **kept}
        # Where the next calls of LowRank begin, if there are any.
        memories = {
            key: like(call.memory.copy(), "float32", (call.memory.size,), kind)
            for key, call in self._calls.items()
            if call.memory is not None and (kind := self._kind(key)) is not None
        }
        return {**state, "memories": memories} if memories else state

    def _read(self, state: Mapping[str, Any]) -> tuple[int, dict[str, Call]]:
        """`skipped` and the calls of a state, to be taken over when all the rest has been checked."""
        try:
            version, skipped = state["version"], int(state["skipped"])
            calls = {str(key): Call(int(step)) for key, step in state["steps"].items()}
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise StateError(f"not a state of {type(self).__name__}: {error!r}") from error
        if version != STATE_VERSION:
            raise StateError(
                f"state version {version!r} is not supported; this is version {STATE_VERSION}"
            )
        for key, memory in Kept("memory").checked(state.get("memories") or {}).items():
            if key not in calls:
                raise StateError(f"memory {key!r} is of no stream")
            calls[key].memory = view(memory).array
        return skipped, calls


def part_of(state: Mapping[str, Any], name: str) -> Mapping[Any, Any]:
    """A dict inside a saved state; `StateError` if it is none."""
    part = state.get(name)
    if not isinstance(part, Mapping):
        raise StateError(f"the state has no {name}: it is of something else")
    return part
