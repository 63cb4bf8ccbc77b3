"""The side that receives: messages of strangers in, their weighted mean out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..buffers import Bytes, Floats
from ..errors import InputError, StateError
from .layout import Layout, Tensor, arrays_of
from .limits import Limits
from .message import read

if TYPE_CHECKING:
    from ..buffers import AnyArray

Arrays = dict[str, npt.NDArray[Any]]
_DEFAULT = Limits()


class Accepted(NamedTuple):
    """What `Server.add` tells of a message that it took."""

    nbytes: int
    norm: float  # Euclidean, of all decoded floats
    largest: float  # magnitude of a decoded float


class Server:
    """Adds the messages of many clients into one accumulator of the model's size.

    Parameters
    ----------
    layout : Layout, or mapping of str to arrays or (shape, dtype)
        The server's own model. What a message says about shapes is never believed.
    limits : Limits, optional

    Attributes
    ----------
    layout : Layout
    limits : Limits
    count : int
        Messages added since the last reset.
    total_weight : float

    Examples
    --------
    See `Client`.
    """

    def __init__(self, layout: Mapping[str, Any] | Layout, *, limits: Limits = _DEFAULT) -> None:
        self.layout = Layout.of(layout)
        self.limits = limits
        self.reset()

    def reset(self) -> None:
        """Forget all messages."""
        self._sums: dict[str, Floats] = {
            t.name: np.zeros(t.size, np.float32) for t in self.layout if not t.is_exact
        }
        self._exact: Arrays = {}
        self._heaviest = -1.0
        self.count = 0
        self.total_weight = 0.0

    def add(self, message: Any, weight: float = 1.0) -> Accepted:
        """Add ``weight`` times the update of a client. Everything is checked before anything is written.

        Float sums depend on their order: for the same bits, add in the same order.

        Parameters
        ----------
        message : bytes, bytearray, memoryview, uint8 array or tensor
        weight : float
            Rounded to float32. Often the number of the client's examples, which is also a stranger's word: it is checked.

        Raises
        ------
        PayloadError
            If anything is wrong with message or weight. The accumulator is untouched: leave the client out and go on.
        """
        factor = self.limits.check_weight(weight)
        update = read(message, self.layout, self.limits)
        heaviest = factor > self._heaviest
        for tensor, codec, body in zip(self.layout, update.codecs, update.bodies, strict=True):
            if codec is not None:
                codec._add(body, "float32", update.step, self._sums[tensor.name], factor)
            elif heaviest:
                self._exact[tensor.name] = _exact_entries(body, tensor)
        self._heaviest = max(self._heaviest, factor)
        self.count += 1
        self.total_weight += factor
        return Accepted(update.nbytes, update.norm, update.largest)

    def mean(self) -> Arrays:
        """The weighted mean of what was added, as new arrays by name: float32 for all floats.

        Integers are not averaged: a counter, an index or a flag comes from the message of the greatest weight, the first of these.

        Raises
        ------
        StateError
            If nothing was added since the last reset, or with weight 0 only.
        """
        if not self.total_weight > 0:
            raise StateError(
                "there is no mean: no message of a positive weight was added since the last reset"
            )
        total = np.float32(self.total_weight)
        means: Arrays = {name: sums / total for name, sums in self._sums.items()}
        means |= {name: values.copy() for name, values in self._exact.items()}
        return {t.name: means[t.name].reshape(t.shape) for t in self.layout}

    def decode(self, message: Any) -> Arrays:
        """The update of one client as dense arrays by name, checked as in `add`: for medians, Krum and other robust means."""
        return decode(message, self.layout, limits=self.limits)


def decode(
    message: Any, layout: Mapping[str, Any] | Layout, *, limits: Limits = _DEFAULT
) -> Arrays:
    """The update that a message carries, as new arrays by name: float32 for all floats.

    Raises
    ------
    PayloadError
        If the message is damaged, forged, of another layout or beyond the limits.
    """
    layout = Layout.of(layout)
    update = read(message, layout, limits)
    arrays: Arrays = {}
    for tensor, codec, body in zip(layout, update.codecs, update.bodies, strict=True):
        if codec is None:
            arrays[tensor.name] = _exact_entries(body, tensor).reshape(tensor.shape)
        else:
            out = np.zeros(tensor.size, np.float32)
            codec._decompress(body, "float32", update.step, out, False, 1.0, True)
            arrays[tensor.name] = out.reshape(tensor.shape)
    return arrays


def _exact_entries(body: Bytes, tensor: Tensor) -> npt.NDArray[Any]:
    """A copy of the entries that travelled as they are."""
    dtype = np.dtype(tensor.dtype)
    return np.frombuffer(body.tobytes(), dtype.newbyteorder("<")).astype(dtype)


def apply(base: Mapping[str, AnyArray], update: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    """New weights: the floats of `base` plus those of `update`, and the integers of `update`.

    Parameters
    ----------
    base : mapping of str to torch.Tensor or numpy.ndarray
    update : mapping of str to numpy.ndarray
        From `Server.mean` or `decode`, made of messages that had a base.

    Returns
    -------
    dict of str to numpy.ndarray
        In the dtypes of `base`, float32 for bfloat16, which NumPy lacks. In float16, sums beyond its range become its largest.

    Raises
    ------
    InputError
        If base and update have other names.
    """
    starts, weights = arrays_of(base, "base"), {}
    if starts.keys() != update.keys():
        names = sorted(starts.keys() ^ update.keys())
        raise InputError(f"tensors {names} are in one of base and update only")
    for name, start in starts.items():
        change = update[name]
        if change.dtype == np.float32:
            change = start + change
            if start.dtype == np.float16:
                change = np.clip(change, -65504, 65504).astype(np.float16)
        weights[name] = change
    return weights
