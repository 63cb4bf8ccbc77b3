"""Error feedback: one residual per key, added to the next tensor of that key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core
from .api import NonFinite, compress_view, decompress
from .buffers import Floats, Kind, View, bytes_view, host_array, is_tensor, kind_of, like, view
from .codec import Call, Codec, encode
from .codecs import Cast, Quantize
from .device import as_tensor, of
from .device.message import DeviceMessage
from .device.payload import SkipCount, last_key_of
from .device.payload import compress as compress_on_device
from .errors import InputError, PayloadError, StateError
from .many import pack
from .message import Message
from .momentum import advance, sent_by
from .payload import Payload
from .streams import (
    Kept,
    Sender,
    check_factor,
    check_key,
    check_shape,
    check_share,
    part_of,
)

if TYPE_CHECKING:
    from .buffers import AnyArray, Bytes

#: How a residual is stored between calls. Rounding of int8 is stochastic: what is far below the largest entry of its block would be
#: rounded to zero at every call by rounding to nearest, and never be sent. The seed is no codec's default.
STORAGES: dict[str, Codec | None] = {
    "float32": None,
    "bfloat16": Cast("bfloat16"),
    "float16": Cast("float16"),
    "int8": Quantize(8, block_size=64, rounding="stochastic", seed=0x7265736964756C73),
}


class ErrorFeedback(Sender):
    """Compress a stream of tensors so that what one payload leaves out is sent later.

    (Seide et al. 2014, "1-bit stochastic gradient descent"; Karimireddy et al. 2019, "Error feedback fixes SignSGD".)

    Parameters
    ----------
    codec : Codec
    nonfinite : {"error", "skip", "reset"}
        For inputs that hold an infinity or NaN, as in `compress`.
    momentum : float
        From 0, below 1. Above 0, the residual collects the velocity ``v = momentum * v + x`` instead of x (Lin et al. 2018, "Deep
        gradient compression"): entries that wait for many steps keep their momentum. The optimizer must then have none.
    nesterov : bool
        Collect ``momentum * v + x``.
    masking : bool
        Set v to zero where an entry was sent, so that old directions stop pushing (factor masking). Only with sparse codecs; the
        others send every entry.
    decay : float
        Above 0, at most 1. The residual is multiplied by it before it is added: below 1, old leftovers fade instead of arriving late,
        and some of the sum is lost. For workers that train apart for many steps (Sarfi et al. 2025, "SparseLoCo", take 0.95).
    storage : {"float32", "bfloat16", "float16", "int8"}
        How residuals are kept **between calls**. ``"int8"`` takes 1.06 bytes an entry instead of 4 (Xie et al. 2024, "LoCo: low-bit
        communication adaptor"): blocks of 64 with a scale each, rounded stochastically, so that their mean is right. During a call one
        tensor's residual is in float32.

    Attributes
    ----------
    skipped : int
        How many inputs were skipped because they were not finite. Where tensors lie on a device, reading it waits for that device.

    Notes
    -----
    The options work on the CPU so far; without them tensors may lie on a CUDA device.

    The law, to the bit, in float32: with s = v or, under `nesterov`, momentum * v + x, or without momentum x itself,
    ``residual(key) == keep((s + decay * before) - decompress(payload))`` where keep is what storing and loading does: nothing in
    float32, else ``decompress(compress(r, STORAGES[storage], step=payload.step))``.

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

    def __init__(
        self,
        codec: Codec,
        *,
        nonfinite: NonFinite = "error",
        momentum: float = 0.0,
        nesterov: bool = False,
        masking: bool = True,
        decay: float = 1.0,
        storage: str = "float32",
    ) -> None:
        super().__init__(codec, nonfinite)
        self.momentum = check_share("momentum", momentum, one=False)
        self.nesterov, self.masking = bool(nesterov), bool(masking)
        self.decay = check_share("decay", decay, one=True)
        if storage not in STORAGES:
            raise InputError(f"storage must be one of {', '.join(STORAGES)}, not {storage!r}")
        self.storage = storage
        self._residuals = Kept("residual")
        self._velocities = Kept("velocity")
        self._stored: dict[str, Payload] = {}  # the residuals that are not in float32
        self._is_plain = not self.momentum and self.decay == 1 and storage == "float32"

    def compress(self, x: AnyArray, key: str) -> Payload:
        """Compress ``x + residual[key]`` and keep what the payload does not carry.

        Raises `StateError` when the key was used with another shape, and as `tersegrad.compress` does.
        """
        if not self._is_plain:
            return super().compress(x, key)
        call = self._calls.setdefault(check_key(key), Call())
        if (backend := of(x)) is not None:
            tensor = as_tensor(x)
            there = self._residuals.on_device(key, tensor)
            coded = compress_on_device(
                backend,
                tensor,
                self.codec,
                there,
                self.nonfinite,
                call.step,
                last_key_of(call, tensor.device),
            )
            call.step = (call.step + 1) & 0xFFFFFFFF
            if self.nonfinite == "skip":
                self._skipped.add_on_device(coded.status)
            return coded
        source = view(x)
        residual = self._residuals.of(key, source)
        payload = compress_view(source, self.codec, residual, self.nonfinite, call)
        call.step = (call.step + 1) & 0xFFFFFFFF
        self._skipped.add(payload.skipped)
        return payload

    def compress_many(self, tensors: Mapping[str, AnyArray]) -> Message:
        """Compress the tensors of many keys into one message, in the order of the mapping; without options in one native call.

        ``"skip"`` leaves the residuals of the tensors in ``message.skipped`` untouched; with ``"error"`` no residual changes if one
        tensor is not finite.
        """
        if not self._is_plain:
            return super().compress_many(tensors)
        calls, residuals = [], []
        on_device = any(of(x) is not None for x in tensors.values())
        for key, tensor in tensors.items():
            if on_device:
                there = as_tensor(tensor)
                residuals.append(self._residuals.on_device(key, there))
                calls.append(self._calls.setdefault(key, Call()))
                last_key_of(calls[-1], there.device)
                continue
            residual, call = self._residuals.arrays.get(key), self._calls.get(key)
            if call is None or residual is None or type(residual) is not type(tensor):
                self._residuals.of(key, view(tensor))
                residual, call = (
                    self._residuals.arrays[key],
                    self._calls.setdefault(key, Call()),
                )
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
                self._residuals.of(key, view(tensor))  # StateError: says whose shape is another
            raise
        for call in calls:
            call.step = (step + 1) & 0xFFFFFFFF
        if not isinstance(message, DeviceMessage):
            self._skipped.add(len(message.skipped))
        elif self.nonfinite == "skip":
            self._skipped.add_on_device(message.statuses)
        return message

    # With options: a residual is changed as a copy, and kept when all has gone well.

    def _meet(self, key: str, x: View) -> None:
        stored = self._stored.get(key)
        if self.storage == "float32":
            self._residuals.of(key, x)
        elif stored is not None:
            check_shape("residual", key, stored.shape, x.shape)

    def _encode(self, key: str, x: View, codec: Codec, body: Bytes, call: Call) -> None:
        source, velocity = x, None
        if self.momentum:
            gradient, velocity = np.empty((2, x.array.size), np.float32)
            _core.widen(x.array, gradient)
            before = self._velocities.of(key, x)
            after = advance(before, velocity, gradient, self.momentum, self.nesterov)
            source = x._replace(array=after)
        residual = self._load(key, x)
        residual *= np.float32(self.decay)
        if not encode(source, codec, body, residual, call):
            raise InputError(f"{key!r} is finite but its velocity is not: reset({key!r})")
        if velocity is not None:
            if self.masking and codec.is_sparse:
                used = body[: call.body_bytes]
                velocity[sent_by(codec, used, velocity.size, x.dtype, call.step)] = 0
            self._velocities.put(key, velocity, x)
        self._keep(key, residual, x, call.step)

    def _load(self, key: str, x: View) -> Floats:
        """A copy of the residual, flat."""
        if self.storage == "float32":
            return self._residuals.of(key, x).copy()
        stored = self._stored.get(key)
        if stored is None:
            return np.zeros(x.array.size, np.float32)
        return view(decompress(stored, kind="numpy")).array

    def _keep(self, key: str, residual: Floats, x: View, step: int) -> None:
        codec = STORAGES[self.storage]
        if codec is None:
            self._residuals.put(key, residual, x)
        else:
            kept = View(residual, "float32", x.shape, x.kind)
            self._stored[key] = compress_view(kept, codec, None, "error", Call(step))

    def _lose(self, key: str) -> None:
        self._velocities.forget(key)
        self._residuals.forget(key)
        self._stored.pop(key, None)

    # What is kept.

    def residual(self, key: str) -> AnyArray:
        """The residual of a key, float32; not a copy if it is stored as such. `KeyError` if the key is new."""
        if self.storage == "float32":
            return self._residuals.arrays[key]
        return decompress(self._stored[key])

    def norm(self, key: str | None = None) -> float:
        """The Euclidean norm of one residual, or of all together."""
        if self.storage == "float32":
            return self._residuals.norm(key)
        kept = Kept("residual")
        total = 0.0
        for each in self._stored if key is None else [key]:
            kept.arrays = {each: self.residual(each)}
            total += kept.norm() ** 2
        return float(total**0.5)

    def rescale(self, factor: float) -> None:
        """Multiply every residual and velocity: with loss scaling, by new scale / old scale."""
        check_factor(factor)
        self._residuals.rescale(factor)
        self._velocities.rescale(factor)
        for key, stored in self._stored.items():
            x = view(self.residual(key))
            self._keep(key, x.array * np.float32(factor), x, stored.step)

    def reset(self, key: str | None = None) -> None:
        """Forget what is kept of one key, or of all."""
        for kept in (self._residuals, self._velocities):
            kept.forget(key)
        for mapping in (self._stored, self._calls):
            if key is None:
                mapping.clear()
            else:
                mapping.pop(key, None)

    def state_dict(self) -> dict[str, Any]:
        """A snapshot of plain arrays and numbers: with tensors, ``torch.load(weights_only=True)`` reads it.

        Residuals that are not stored in float32 are 1-D uint8 arrays, each the bytes of a payload.
        """
        stored = {
            key: like(np.frombuffer(bytearray(bytes(p)), np.uint8), "uint8", (p.nbytes,), p._kind)
            for key, p in self._stored.items()
        }
        state = self._save(residuals=self._residuals.snapshot() | stored)
        return {**state, "velocities": self._velocities.snapshot()} if self.momentum else state

    def _kind(self, key: str) -> Kind | None:
        if key in self._residuals.arrays:
            return kind_of(self._residuals.arrays[key])
        return self._stored[key]._kind if key in self._stored else None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a snapshot; `StateError`, and nothing changed, if it is not one.

        Training goes on to the bit with the options of the one that saved it. Another `storage` converts the residuals; without
        `momentum` there may be no velocities.
        """
        skipped, calls = self._read(state)
        plain: dict[Any, Any] = {}
        stored: dict[str, Payload] = {}
        for key, value in part_of(state, "residuals").items():
            if is_bytes(value):
                stored[str(key)] = _payload_of(str(key), value)
            else:
                plain[key] = value
        arrays = self._residuals.checked(plain)
        velocities = self._velocities.checked(state.get("velocities") or {})
        if velocities and not self.momentum:
            raise StateError("the state has velocities: it is of an ErrorFeedback with momentum")
        codec = STORAGES[self.storage]
        if codec is None:
            arrays |= {key: decompress(payload) for key, payload in stored.items()}
            stored = {}
        else:
            for key, array in arrays.items():
                call = calls.get(key, Call())
                stored[key] = compress_view(view(array), codec, None, "error", Call(call.step))
            arrays = {}
        self._residuals.arrays, self._velocities.arrays = arrays, velocities
        self._stored, self._calls, self._skipped = stored, calls, SkipCount(skipped)


def is_bytes(value: object) -> bool:
    """Whether it is a uint8 array or tensor."""
    if not (is_tensor(value) or isinstance(value, np.ndarray)):
        return False
    return host_array(value, "residual").dtype == np.uint8


def _payload_of(key: str, data: Any) -> Payload:
    try:
        payload = Payload.from_bytes(bytes_view(data, "residual").tobytes())
        decompress(payload)  # checks every bit
    except (PayloadError, InputError) as error:
        raise StateError(f"residual {key!r} is damaged: {error}") from error
    if payload.dtype != "float32":
        raise StateError(f"residual {key!r} must be of float32, not {payload.dtype}")
    payload._kind = "torch" if is_tensor(data) else "numpy"
    return payload
