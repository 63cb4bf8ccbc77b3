"""The side that sends: updates in, one small message out, and what it left out kept for the next."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import _core
from ..buffers import Bytes, Floats
from ..codec import Call, Codec, check_codec, check_step, used
from ..codecs.cast import Identity
from ..errors import CodecError, InputError, NonFiniteError, StateError
from .layout import Layout, Tensor, arrays_of
from .message import EXACT, read, write

if TYPE_CHECKING:
    from ..buffers import AnyArray

STATE_VERSION = 1
_IDENTITY = Identity()


class Client:
    """Compresses model updates, with error feedback: what one message leaves out is added to the next.

    Floats travel as float32, by a codec; tensors of fewer than `min_size` entries, integers and truth values travel exactly.

    Parameters
    ----------
    codec : Codec
        For every tensor that no rule names. Give each client its own `seed` where the codec has one, or all round alike.
    rules : mapping of str to Codec, optional
        Codecs by a pattern of names, such as ``{"*.bias": Cast("bfloat16")}``; the first that matches counts.
    min_size : int
        Floats of fewer entries travel exactly, whatever the rules say.
    error_feedback : bool
        Keep residuals.

    Examples
    --------
    >>> import numpy as np, tersegrad as tg
    >>> model = {"weight": np.zeros((100, 10), np.float32)}
    >>> client = tg.federated.Client(tg.TopK(density=0.01, values=tg.Quantize(bits=8)))
    >>> trained = {"weight": np.ones((100, 10), np.float32)}
    >>> message = client.encode(trained, base=model)
    >>> server = tg.federated.Server(model)
    >>> _ = server.add(message, weight=20)
    >>> int(server.mean()["weight"].sum())
    10
    """

    def __init__(
        self,
        codec: Codec,
        *,
        rules: Mapping[str, Codec] | None = None,
        min_size: int = 64,
        error_feedback: bool = True,
    ) -> None:
        self.codec = check_codec(codec)
        self.rules = {pattern: check_codec(rule) for pattern, rule in (rules or {}).items()}
        if len(self.rules) > EXACT - 2:
            raise CodecError(
                f"{len(self.rules)} rules are too many: a message names {EXACT} codecs"
            )
        if type(min_size) is not int or min_size < 0:
            raise InputError(f"min_size must be an integer from 0, not {min_size!r}")
        self.min_size = min_size
        self.error_feedback = bool(error_feedback)
        self.reset()

    def reset(self) -> None:
        """Forget residuals, layout and step."""
        self._layout = Layout.of({})
        self._residuals: dict[str, Floats] = {}
        self._calls: dict[str, Call] = {}
        self._step = 0

    def encode(
        self,
        update: Mapping[str, AnyArray],
        *,
        base: Mapping[str, AnyArray] | None = None,
        step: int | None = None,
    ) -> bytes:
        """The message for one update; if it raises, nothing has changed.

        Parameters
        ----------
        update : mapping of str to torch.Tensor or numpy.ndarray
            By name, any shapes: floats of 16 to 64 bits, integers, bool. Their order does not matter.
        base : mapping, optional
            What training started from: `update` then holds weights, and the differences of the floats are sent, formed in float32
            (in float64 for float64). Integers are sent as they are.
        step : int, optional
            Call number, mixed into random streams; counted up by default.

        Raises
        ------
        InputError
            If a tensor cannot travel, or `base` has other tensors.
        NonFiniteError
            If an update, or its sum with the residual, is infinite or NaN somewhere; the error names the tensors.
        StateError
            If the residuals are of another layout.
        """
        arrays = arrays_of(update, "tensor")
        layout = Layout.of(arrays)
        if base is not None:
            arrays = _differences(arrays, layout, base)
        if self._residuals and layout != self._layout:
            raise StateError(
                f"this client keeps residuals of another layout: {layout.difference(self._layout)}; "
                "reset() forgets them"
            )
        number = self._step if step is None else check_step(step)
        entries = [_flat(arrays[tensor.name], tensor) for tensor in layout]
        infinite = [
            tensor.name
            for tensor, x in zip(layout, entries, strict=True)
            if not tensor.is_exact and not _core.all_finite(x)
        ]
        if infinite:
            raise NonFiniteError(
                f"tensors {infinite} hold an infinity or NaN; nothing was sent or kept"
            )
        codecs = [self._codec_for(tensor) for tensor in layout]
        calls: dict[str, Call] = {}
        residuals: dict[str, Floats] = {}
        bodies = []
        for tensor, codec, x in zip(layout, codecs, entries, strict=True):
            if codec is None:
                bodies.append(x.view(np.uint8))
                continue
            # No memory: a state holds none, and a client that was loaded must send what this one would.
            call = Call(number, self._calls.get(tensor.name, Call()).last_key)
            bodies.append(self._encode(tensor, codec, x, call, residuals))
            calls[tensor.name] = call
        message = write(layout, codecs, bodies, number)
        self._layout, self._residuals, self._calls = layout, residuals, calls
        self._step = (number + 1) & 0xFFFFFFFF
        return message

    def _encode(
        self, tensor: Tensor, codec: Codec, x: Floats, call: Call, residuals: dict[str, Floats]
    ) -> Bytes:
        codec = codec.for_shape(tensor.shape)
        body = np.empty(codec.max_body_size(x.size), np.uint8)
        call.body_bytes = body.size
        residual = None
        if self.error_feedback:
            # A copy, so that a failure at a later tensor leaves all residuals as they were.
            kept = self._residuals.get(tensor.name)
            residual = np.zeros(x.size, np.float32) if kept is None else kept.copy()
            residuals[tensor.name] = residual
        if not codec._compress(x, "float32", body, residual, call):
            raise NonFiniteError(
                f"tensor {tensor.name!r} and its residual add up to an infinity or NaN"
            )
        return used(body, call)

    def _codec_for(self, tensor: Tensor) -> Codec | None:
        if tensor.is_exact:
            return None
        if tensor.size < self.min_size:
            return _IDENTITY
        matches = (
            rule for pattern, rule in self.rules.items() if fnmatchcase(tensor.name, pattern)
        )
        return next(matches, self.codec)

    def undo(self, message: bytes) -> None:
        """Take back a message that was lost or refused: what it carried goes back into the residuals, and so into the next.

        Call it once for a message of this client, at any time after `encode`, also in another process that loaded the state.
        Entries that it carried are restored to within one rounding of float32. Integers are not kept.

        Raises
        ------
        StateError
            If the client keeps no residuals.
        PayloadError
            If it is not a message of this client's layout; nothing has changed.
        """
        if not self._residuals:
            raise StateError("there are no residuals that could take the message back")
        sent = read(message, self._layout)
        for tensor, codec, body in zip(self._layout, sent.codecs, sent.bodies, strict=True):
            if codec is not None:
                codec._add(body, "float32", sent.step, self._residuals[tensor.name], 1.0)

    def state_dict(self) -> dict[str, Any]:
        """A snapshot of plain data: ``version``, ``step``, ``layout`` (``{name: [dtype, *shape]}``), ``residuals`` (``{name: array}``)."""
        return {
            "version": STATE_VERSION,
            "step": self._step,
            "layout": {name: [dtype, *shape] for name, shape, dtype in self._layout},
            "residuals": {
                tensor.name: self._residuals[tensor.name].reshape(tensor.shape).copy()
                for tensor in self._layout
                if tensor.name in self._residuals
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a snapshot; `StateError`, and nothing changed, if it is not one."""
        try:
            version, step = state["version"], check_step(int(state["step"]))
            layout = Layout.of({n: (tuple(s), d) for n, (d, *s) in state["layout"].items()})
            kept = arrays_of(state["residuals"], "residual")
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise StateError(f"not a state of a federated client: {error!r}") from error
        if version != STATE_VERSION:
            raise StateError(
                f"state version {version!r} is not supported; this is version {STATE_VERSION}"
            )
        wanted = {tensor.name: tensor.shape for tensor in layout if not tensor.is_exact}
        wrong = [name for name in kept if kept[name].shape != wanted.get(name)]
        wrong += [name for name in wanted if kept and name not in kept]
        if wrong:
            raise StateError(f"residuals {wrong} are missing or not of the state's layout")
        bad = [n for n, r in kept.items() if r.dtype != np.float32 or not np.isfinite(r).all()]
        if bad:
            raise StateError(f"residuals {bad} must be finite float32")
        self._residuals = {name: r.reshape(-1).copy() for name, r in kept.items()}
        self._layout, self._calls, self._step = layout, {}, step


def _differences(
    arrays: Mapping[str, npt.NDArray[Any]], layout: Layout, base: Mapping[str, AnyArray]
) -> dict[str, npt.NDArray[Any]]:
    """`arrays`, with the floats less those of `base`."""
    starts = arrays_of(base, "base")
    other = Layout.of(starts)
    if other != layout:
        raise InputError(f"update and base have other tensors: {layout.difference(other)}")
    differences = dict(arrays)
    for tensor in layout:
        weights, start = arrays[tensor.name], starts[tensor.name]
        if not tensor.is_exact:
            wide = np.float64 if np.float64 in (weights.dtype, start.dtype) else np.float32
            with np.errstate(all="ignore"):  # what is not finite is reported by name
                differences[tensor.name] = np.subtract(weights, start, dtype=wide)
    return differences


def _flat(x: npt.NDArray[Any], tensor: Tensor) -> npt.NDArray[Any]:
    """What travels of an array: float32, or the integers in little-endian order."""
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(x, np.dtype(tensor.dtype).newbyteorder("<")).reshape(-1)
