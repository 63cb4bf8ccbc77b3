"""EF21: sender and receiver keep the same estimate, and differences to it travel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from . import _core
from .api import NonFinite, decompress
from .buffers import Kind, View, kind_of, view
from .codec import Call, Codec, encode
from .device.payload import SkipCount
from .errors import InputError, PayloadError, StateError
from .message import Message
from .payload import Payload
from .streams import STATE_VERSION, Kept, Sender, check_factor, check_key, check_share, part_of

if TYPE_CHECKING:
    from .buffers import AnyArray, Bytes


class EF21(Sender):
    """Send the compressed difference of a tensor to what the receiver has of it.

    The sender keeps an estimate g by key, sends C(x - g), and adds what it sent: g += C(x - g). An `EF21Receiver` adds the same, so
    its estimate **equals g to the bit**. Where `ErrorFeedback` repeats what was left out, this converges on the tensor itself: as x
    settles, x - g vanishes, and so does the error of any contractive codec, `TopK` for one (Richtarik, Sokolov and Fatkhullin 2021,
    "EF21: a new, simpler, theoretically better, and practically faster error feedback").

    Parameters
    ----------
    codec : Codec
    momentum : float
        From 0, below 1. Above 0, what is estimated is the moving average v = momentum * v + (1 - momentum) * x, which starts at the
        first x: EF21-SGDM (Fatkhullin, Tyurin and Richtarik 2023, "Momentum provably improves error feedback!"). Take it for stochastic
        gradients, whose noise does not vanish; the optimizer then needs no momentum of its own.
    nonfinite : {"error", "skip", "reset"}
        For inputs that hold an infinity or NaN, as in `compress`. Do not use ``"reset"`` where the receiver cannot be reset at the same
        call: its estimate would be another from then on.

    Attributes
    ----------
    skipped : int
        How many inputs were skipped because they were not finite.

    Notes
    -----
    Messages must arrive in order and all of them: a lost one leaves the estimates apart for good. A receiver of n senders adds each
    with ``scale=1/n`` to one estimate.

    Examples
    --------
    >>> import numpy as np, tersegrad as tg
    >>> sender, receiver = tg.EF21(tg.TopK(k=1)), tg.EF21Receiver()
    >>> gradient = np.array([3.0, 2.0], np.float32)
    >>> receiver.decompress(sender.compress(gradient, key="w"), key="w")
    array([3., 0.], dtype=float32)
    >>> receiver.decompress(sender.compress(gradient, key="w"), key="w")
    array([3., 2.], dtype=float32)
    """

    def __init__(
        self, codec: Codec, *, momentum: float = 0.0, nonfinite: NonFinite = "error"
    ) -> None:
        super().__init__(codec, nonfinite)
        self.momentum = check_share("momentum", momentum, one=False)
        self._estimates = Kept("estimate")
        self._velocities = Kept("velocity")

    def _meet(self, key: str, x: View) -> None:
        self._estimates.of(key, x)

    def _encode(self, key: str, x: View, codec: Codec, body: Bytes, call: Call) -> None:
        estimate = self._estimates.of(key, x)
        target = np.empty(x.array.size, np.float32)
        _core.widen(x.array, target)
        if self.momentum and key in self._velocities.arrays:
            target *= np.float32(1 - self.momentum)
            target += self._velocities.of(key, x) * np.float32(self.momentum)
        with np.errstate(over="ignore"):  # refused below
            difference = target - estimate
        if not encode(View(difference, x.dtype, x.shape, x.kind), codec, body, None, call):
            raise InputError(
                f"{key!r} is finite but its difference to the estimate is not: reset({key!r}), here and at the receiver"
            )
        used = body[: call.body_bytes]
        codec._decompress(
            used, x.dtype, call.step, estimate, True, 1.0, False
        )  # as the receiver does
        if self.momentum:
            self._velocities.put(key, target, x)

    def _pass_over(self, key: str, payload: Payload) -> None:
        estimate = self._estimates.arrays[key]
        decompress(payload, out=estimate, accumulate=True)  # -0.0 becomes 0.0 there too

    def _lose(self, key: str) -> None:
        for kept in (self._estimates, self._velocities):
            if key in kept.arrays:
                view(kept.arrays[key]).array.fill(0)

    def _kind(self, key: str) -> Kind | None:
        return kind_of(self._estimates.arrays[key]) if key in self._estimates.arrays else None

    def estimate(self, key: str) -> AnyArray:
        """What the receiver has of a key: float32, not a copy. `KeyError` if the key is new."""
        return self._estimates.arrays[key]

    def rescale(self, factor: float) -> None:
        """Multiply all that is kept: with loss scaling, by new scale / old scale, at the receiver too."""
        for kept in (self._estimates, self._velocities):
            kept.rescale(check_factor(factor))

    def reset(self, key: str | None = None) -> None:
        """Forget one key, or all; at the receiver too."""
        for kept in (self._estimates, self._velocities):
            kept.forget(key)
        if key is None:
            self._calls.clear()
        else:
            self._calls.pop(key, None)

    def state_dict(self) -> dict[str, Any]:
        """A snapshot of plain arrays and numbers: with tensors, ``torch.load(weights_only=True)`` reads it."""
        return self._save(
            estimates=self._estimates.snapshot(), velocities=self._velocities.snapshot()
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a snapshot; `StateError`, and nothing changed, if it is not one."""
        skipped, calls = self._read(state)
        estimates = self._estimates.checked(part_of(state, "estimates"))
        velocities = self._velocities.checked(part_of(state, "velocities"))
        if velocities and not self.momentum:
            raise StateError("the state has velocities: it is of an EF21 with momentum")
        self._estimates.arrays, self._velocities.arrays = estimates, velocities
        self._calls, self._skipped = calls, SkipCount(skipped)


class EF21Receiver:
    """Keeps the sum of all that `EF21` has sent, by key: the sender's estimate, to the bit.

    Examples
    --------
    >>> import numpy as np, tersegrad as tg
    >>> senders, receiver = [tg.EF21(tg.Sign()) for _ in range(2)], tg.EF21Receiver()
    >>> for sender in senders:
    ...     payload = sender.compress(np.ones(4, np.float32), key="w")
    ...     mean = receiver.decompress(payload, key="w", scale=1 / 2)
    >>> mean
    array([1., 1., 1., 1.], dtype=float32)
    """

    def __init__(self) -> None:
        self._estimates = Kept("estimate")

    def decompress(
        self,
        source: Any,
        key: str,
        *,
        scale: float = 1.0,
        expect: AnyArray | None = None,
        kind: Literal["numpy", "torch"] | None = None,
    ) -> AnyArray:
        """Add a payload to the estimate of a key, and return a copy of the estimate, float32.

        Parameters
        ----------
        source : Payload, or bytes of one
        key : str
            As at the sender.
        scale : float
            1 / n for the mean of n senders.
        expect, kind
            As for `tersegrad.decompress`; `kind` is of a new key's estimate. Give `expect` for a new key's payload from a stranger.

        Raises
        ------
        PayloadError
            As `tersegrad.decompress`; the estimate is unchanged.
        StateError
            The payload is of another shape than the key's estimate.
        """
        payload = (
            source if isinstance(source, Payload) else Payload.from_bytes(source, expect=expect)
        )
        self._add(check_key(key), payload, scale, kind)
        return self._copy(key)

    def decompress_many(
        self,
        source: Any,
        keys: Sequence[str],
        *,
        scale: float = 1.0,
        expect: Sequence[AnyArray] | None = None,
        kind: Literal["numpy", "torch"] | None = None,
    ) -> dict[str, AnyArray]:
        """Add a message of `EF21.compress_many`; copies of the estimates by key.

        `keys` are those of the mapping, in its order. The other parameters, and what is raised, are as for `decompress`; nothing has
        changed then.
        """
        message = (
            source if isinstance(source, Message) else Message.from_bytes(source, expect=expect)
        )
        names = [check_key(key) for key in keys]
        if len(names) != len(message) or len(set(names)) != len(names):
            raise InputError(f"{len(names)} keys for a message of {len(message)} tensors")
        rows = zip(message.codecs, message.dtypes, message.shapes, message.bodies(), strict=True)
        payloads = [
            Payload(codec, dtype, shape, body, message._kind, message.step)
            for codec, dtype, shape, body in rows
        ]
        for key, payload in zip(names, payloads, strict=True):
            self._check(key, payload)
            n = int(np.prod(payload.shape, dtype=np.int64))
            try:
                payload.codec._check(payload._body, n, payload.dtype, payload.step)
            except PayloadError as error:
                raise PayloadError(f"{key!r}: {error}") from error
        for key, payload in zip(names, payloads, strict=True):
            self._add(key, payload, scale, kind)
        return {key: self._copy(key) for key in names}

    def _check(self, key: str, payload: Payload) -> None:
        kept = self._estimates.arrays.get(key)
        if kept is not None and tuple(kept.shape) != payload.shape:
            raise StateError(
                f"estimate {key!r} has shape {tuple(kept.shape)}, the payload {payload.shape}: use "
                f"another key, or reset({key!r})"
            )

    def _add(self, key: str, payload: Payload, scale: float, kind: Any) -> None:
        self._check(key, payload)
        kept = self._estimates.arrays.get(key)
        if kept is not None:
            decompress(payload, out=kept, accumulate=True, scale=scale)
            return
        n = int(np.prod(payload.shape, dtype=np.int64))
        payload.codec._check(
            payload._body, n, payload.dtype, payload.step
        )  # before there is memory
        empty = View(np.empty(n, np.float32), "float32", payload.shape, kind or payload._kind)
        self._estimates.of(key, empty)
        decompress(payload, out=self._estimates.arrays[key], accumulate=True, scale=scale)

    def _copy(self, key: str) -> AnyArray:
        estimate: Any = self._estimates.arrays[key]
        return estimate.copy() if isinstance(estimate, np.ndarray) else estimate.clone()

    def estimate(self, key: str) -> AnyArray:
        """The estimate of a key, float32, not a copy. `KeyError` if the key is new."""
        return self._estimates.arrays[key]

    def rescale(self, factor: float) -> None:
        """Multiply every estimate, as the senders do."""
        self._estimates.rescale(check_factor(factor))

    def reset(self, key: str | None = None) -> None:
        """Forget one estimate, or all of them."""
        self._estimates.forget(key)

    def state_dict(self) -> dict[str, Any]:
        """A snapshot of plain arrays and numbers: with tensors, ``torch.load(weights_only=True)`` reads it."""
        return {"version": STATE_VERSION, "estimates": self._estimates.snapshot()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a snapshot; `StateError`, and nothing changed, if it is not one."""
        if not isinstance(state, Mapping) or state.get("version") != STATE_VERSION:
            raise StateError(f"not a state of EF21Receiver of version {STATE_VERSION}")
        self._estimates.arrays = self._estimates.checked(part_of(state, "estimates"))
