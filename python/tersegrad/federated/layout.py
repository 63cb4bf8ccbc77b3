"""What a model looks like: the names, shapes and dtypes that client and server must agree on."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..buffers import MAX_RANK, host_array
from ..codec import ENTRY_LIMIT
from ..errors import InputError

if TYPE_CHECKING:
    from ..buffers import AnyArray

DIGEST_BYTES = 16
#: What travels, by its code in a layout's digest: float32 for every float, and integers as they are.
DTYPE_CODES = {
    "float32": 1,
    "bool": 16,
    "int8": 17,
    "uint8": 18,
    "int16": 19,
    "uint16": 20,
    "int32": 21,
    "uint32": 22,
    "int64": 23,
    "uint64": 24,
}
_FLOATS = ("float16", "bfloat16", "float32", "float64")


class Tensor(NamedTuple):
    """One tensor of a layout."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # a key of DTYPE_CODES

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the entries as they are."""
        return self.size * np.dtype(self.dtype).itemsize

    @property
    def is_exact(self) -> bool:
        """Whether it travels as it is: integers and truth values do."""
        return self.dtype != "float32"

    def __str__(self) -> str:
        return f"{self.name!r} {self.dtype} {self.shape}"


class Layout(tuple[Tensor, ...]):
    """The tensors of a model in the order of their names, whichever order a mapping has them in.

    Every float counts as float32, which is what travels: a client that trains in bfloat16 fits a float32 server.

    Attributes
    ----------
    digest : bytes
        16 bytes that stand for the layout in every message.

    Examples
    --------
    >>> import tersegrad as tg
    >>> layout = tg.federated.Layout.of({"weight": ((3, 2), "float32"), "batches": ((), "int64")})
    >>> [tensor.name for tensor in layout]
    ['batches', 'weight']
    """

    digest: bytes

    @classmethod
    def of(cls, model: Mapping[str, Any] | Layout) -> Layout:
        """The layout of a model, given as arrays or tensors, or as pairs of shape and dtype, by name.

        Raises
        ------
        InputError
            If a name is not a string, or a tensor is of another dtype than bool, integers of 8 to 64 bits, float16, bfloat16,
            float32 or float64, or has 2**32 entries or more.
        """
        if isinstance(model, Layout):
            return model
        if not isinstance(model, Mapping):
            raise InputError(
                f"a layout is a mapping from names to arrays or (shape, dtype), not {type(model).__name__}"
            )
        try:
            names = sorted(model, key=lambda name: name.encode())
        except (AttributeError, UnicodeEncodeError) as error:
            raise InputError(f"names of tensors must be strings of valid text: {error}") from error
        layout = cls(_tensor(name, model[name]) for name in names)
        layout.digest = _digest(layout)
        return layout

    def difference(self, other: Layout) -> str:
        """A sentence on the first few tensors that are not the same in `other`."""
        mine, theirs = {tensor.name: tensor for tensor in self}, {t.name: t for t in other}
        names = [n for n in sorted(mine | theirs) if mine.get(n) != theirs.get(n)]
        listed = [f"{mine.get(n, f'no {n!r}')} against {theirs.get(n, f'no {n!r}')}" for n in names]
        more = f", and {len(names) - 3} more" if len(names) > 3 else ""
        return "; ".join(listed[:3]) + more


def arrays_of(model: Mapping[str, AnyArray], what: str) -> dict[str, npt.NDArray[Any]]:
    """The tensors or arrays of a mapping as NumPy arrays."""
    if not isinstance(model, Mapping):
        raise InputError(
            f"{what} must be a mapping from names to arrays, not {type(model).__name__}"
        )
    return {name: host_array(x, f"{what} {name!r}") for name, x in model.items()}


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, tuple):
        try:
            shape, dtype = tuple(int(size) for size in value[0]), _dtype_name(value[1])
        except (TypeError, ValueError, IndexError) as error:
            raise InputError(
                f"tensor {name!r}: {value!r} is not a pair of shape and dtype"
            ) from error
    else:
        array = host_array(value, f"tensor {name!r}")
        shape, dtype = array.shape, array.dtype.name
    if dtype not in _FLOATS and dtype not in DTYPE_CODES:
        raise InputError(f"tensor {name!r} has dtype {dtype}; floats, integers and bool can travel")
    tensor = Tensor(name, shape, "float32" if dtype in _FLOATS else dtype)
    if len(shape) > MAX_RANK or min(shape, default=0) < 0 or tensor.size >= ENTRY_LIMIT:
        raise InputError(
            f"tensor {name!r}: shape {shape} must have at most {MAX_RANK} dimensions and fewer than 2**32 entries"
        )
    return tensor


def _dtype_name(dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.")
    return name if name in _FLOATS or name in DTYPE_CODES else np.dtype(dtype).name


def _digest(layout: Layout) -> bytes:
    text = hashlib.sha256()
    for name, shape, dtype in layout:
        raw = name.encode()
        text.update(struct.pack("<I", len(raw)) + raw + bytes([DTYPE_CODES[dtype], len(shape)]))
        text.update(struct.pack(f"<{len(shape)}Q", *shape))
    return text.digest()[:DIGEST_BYTES]
