"""A density that follows the speed of the link."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..buffers import View, view
from ..codec import Codec, check_codec
from ..codecs import Identity
from ..codecs.check import check_density, check_integer
from ..errors import CodecError, InputError, StateError
from ..message import Message
from .measure import MIN_SIZE, codec_line
from .units import parse_rate, parse_seconds

if TYPE_CHECKING:
    from ..buffers import AnyArray

STATE_VERSION = 1
_STEPS = 1000  # densities between the lowest and the highest


class AdaptiveCodec:
    """Gives the codec for the next round: the highest density whose message the link carries by the deadline.

    It is not a codec of the wire: it holds one, and replaces it. Residuals stay valid, since they do not depend on the codec.

    Parameters
    ----------
    codec : Codec
        With a density, such as ``TopK(density=0.01, values=Quantize(bits=4))``; the density is where it starts.
    layout : array, or list or dict of arrays
        What is sent each round. Shapes and dtypes count; values do not.
    deadline : float or str
        Seconds that sending may take, or ``"5s"``.
    min_density, max_density : float
        It stays between them. At `min_density` a slow link may miss the deadline: then `expected_seconds` is above `deadline`.
    uplink : float or str, optional
        The first guess, in bits per second or as ``"2mbit"``. Forgotten at the first observation.
    window : int
        How many observations it remembers.
    hysteresis : float
        The density rises only if it rises by this share at least.
    min_size : int
        Tensors of fewer entries travel as they are.

    Notes
    -----
    The control law, once per `observe`:

    1. The speed of the link is taken as the lower quartile of the last `window` speeds observed, ``sorted(speeds)[(count - 1) // 4]``.
       With a window of eight one stalled round changes nothing, two slow it down, and it takes seven fast ones to
       trust a faster link.
    2. The message may have ``speed * deadline / 8`` bytes. `Codec.body_size` gives the size of a message at any density, so the
       highest density that fits is found by bisection, without compressing anything. A codec whose bodies have no fixed size
       is taken to fill the same share of the most it can take as in the message observed last.
    3. A lower density is taken at once. A higher one is taken when it is at least ``1 + hysteresis`` times the present one, or
       reaches `max_density`. So the size expected never exceeds what step 2 allows (unless at `min_density`), and a jittering link
       does not make it flutter.

    A constant delay L per message does no harm: it makes small messages look slow, but at ``b`` bytes on a link of ``B`` bytes a second
    the step ``b -> D * b / (L + b / B)`` closes in on ``b = (D - L) * B``, what the deadline D allows, whenever L < D.

    Examples
    --------
    >>> import numpy as np, tersegrad as tg
    >>> gradient = np.zeros(1_000_000, np.float32)
    >>> codec = tg.TopK(density=0.01, values=tg.Quantize(bits=4))
    >>> adaptive = tg.AdaptiveCodec(codec, gradient, deadline="1s")
    >>> feedback = tg.ErrorFeedback(adaptive.codec)
    >>> payload = feedback.compress(gradient, key="w")
    >>> feedback.codec = adaptive.observe(sent_bytes=payload.nbytes, seconds=2.0)
    >>> round(feedback.codec.density, 4)
    0.0046
    """

    def __init__(
        self,
        codec: Codec,
        layout: AnyArray | Sequence[AnyArray] | Mapping[str, AnyArray],
        *,
        deadline: float | str,
        min_density: float = 0.0005,
        max_density: float = 0.1,
        uplink: float | str | None = None,
        window: int = 8,
        hysteresis: float = 0.1,
        min_size: int = MIN_SIZE,
    ) -> None:
        density = getattr(check_codec(codec), "density", None)
        if not isinstance(density, (int, float)):
            raise CodecError(
                f"AdaptiveCodec changes the density, and {codec_line(codec)} has none: give TopK(density=...) or RandomK(density=...)"
            )
        check_density("AdaptiveCodec", min_density)
        check_density("AdaptiveCodec", max_density)
        if not min_density <= density <= max_density:
            raise CodecError(
                f"AdaptiveCodec: the densities must be in order, not {min_density} <= {density} <= {max_density}"
            )
        check_integer("AdaptiveCodec", "window", window, 1, 1_000_000)
        if not (isinstance(hysteresis, (int, float)) and 0 <= hysteresis < math.inf):
            raise CodecError(f"AdaptiveCodec: hysteresis must be 0 or more, not {hysteresis!r}")
        self.codec = codec
        self.deadline = parse_seconds(deadline)
        self.min_density, self.max_density = float(min_density), float(max_density)
        self.hysteresis = hysteresis
        if isinstance(layout, Mapping):
            layout = list(layout.values())
        views = [view(x) for x in (layout if isinstance(layout, (list, tuple)) else [layout])]
        self._compressed = [(x.array.size, x.dtype) for x in views if x.array.size >= min_size]
        self._fixed_bytes = _bytes_besides(codec, views, min_size)
        self._share = 1.0  # what the last message took of the most that it could have taken
        self._speeds: deque[float] = deque(maxlen=window)
        self._guess = None if uplink is None else parse_rate(uplink)
        if self._guess is not None:
            self.codec = self._with_density(self._highest_density())

    @property
    def uplink(self) -> float | None:
        """The speed it counts on, in bits per second: None before there is a guess or an observation."""
        if not self._speeds:
            return self._guess
        return sorted(self._speeds)[(len(self._speeds) - 1) // 4]

    @property
    def nbytes(self) -> int:
        """Bytes of a message of `compress_many` with the present codec; an estimate where its bodies have no fixed size."""
        return self._size(self.codec)

    @property
    def expected_seconds(self) -> float | None:
        """To send a message of the present codec: None before there is a guess or an observation."""
        uplink = self.uplink
        return None if uplink is None else 8 * self.nbytes / uplink

    def observe(self, sent_bytes: float, seconds: float) -> Codec:
        """Take note of how long `sent_bytes` took, and return the codec for the next round.

        `InputError`, and nothing changed, unless both are finite and above zero.
        """
        for name, value in (("sent_bytes", sent_bytes), ("seconds", seconds)):
            if not (isinstance(value, (int, float, np.number)) and 0 < value < math.inf):
                raise InputError(f"{name} must be a finite number above 0, not {value!r}")
        if not getattr(self.codec, "is_fixed_size", True):
            self._share = min(1.0, float(sent_bytes) / self._most(self.codec))
        self._speeds.append(8 * float(sent_bytes) / float(seconds))
        density, present = self._highest_density(), self._density()
        rises = density >= present * (1 + self.hysteresis) or density == self.max_density
        if density < present or (density > present and rises):
            self.codec = self._with_density(density)
        return self.codec

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: ``torch.load(weights_only=True)`` and JSON hold them."""
        return {
            "version": STATE_VERSION,
            "density": self._density(),
            "share": self._share,
            "speeds": list(self._speeds),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a snapshot; `StateError`, and nothing changed, if it is not one."""
        try:
            version, share, density = (
                state["version"],
                float(state["share"]),
                float(state["density"]),
            )
            speeds = [float(speed) for speed in state["speeds"]]
        except (TypeError, KeyError, ValueError) as error:
            raise StateError(f"not a state of AdaptiveCodec: {error!r}") from error
        if version != STATE_VERSION:
            raise StateError(
                f"state version {version!r} is not supported; this is version {STATE_VERSION}"
            )
        if not self.min_density <= density <= self.max_density:
            raise StateError(
                f"density {density} lies outside {self.min_density} to {self.max_density}"
            )
        if not (all(0 < speed < math.inf for speed in speeds) and 0 < share <= 1):
            raise StateError("a speed is not a finite number above 0, or the share not one up to 1")
        self._speeds = deque(speeds, maxlen=self._speeds.maxlen)
        self._share = share
        self.codec = self._with_density(density)

    def _density(self) -> float:
        return float(self.codec.density)  # type: ignore[attr-defined]

    def _with_density(self, density: float) -> Codec:
        codec: Codec = dataclasses.replace(self.codec, density=density)  # type: ignore[type-var]
        return codec

    def _size(self, codec: Codec) -> int:
        return math.ceil(self._share * self._most(codec))

    def _most(self, codec: Codec) -> int:
        return self._fixed_bytes + sum(codec.max_body_size(n, d) for n, d in self._compressed)

    def _highest_density(self) -> float:
        """The highest step of the ladder whose message fits; the lowest step if none does."""
        uplink = self.uplink
        assert uplink is not None
        budget = uplink * self.deadline / 8
        low, high = 0, _STEPS + 1  # low fits, or is the lowest; high does not fit
        while high - low > 1:
            middle = (low + high) // 2
            if self._size(self._with_density(self._step(middle))) <= budget:
                low = middle
            else:
                high = middle
        return self._step(low)

    def _step(self, step: int) -> float:
        """Densities from the lowest to the highest in equal ratios, with few digits."""
        ratio = self.max_density / self.min_density
        density = float(f"{self.min_density * ratio ** (step / _STEPS):.4g}")
        return min(max(density, self.min_density), self.max_density)


def _bytes_besides(codec: Codec, views: Sequence[View], min_size: int) -> int:
    """Bytes of a message besides the bodies that `codec` makes: header, tables, tensors that travel as they are."""
    small = [x.array.size < min_size for x in views]
    codecs = [Identity() if exact else codec for exact in small]
    dtypes, shapes = [x.dtype for x in views], [x.shape for x in views]
    header = Message(codecs, dtypes, shapes, np.empty(0, np.uint8), [], "numpy", 0).nbytes
    exact_bytes = (x.array.nbytes for x, exact in zip(views, small, strict=True) if exact)
    return header + sum(exact_bytes)
