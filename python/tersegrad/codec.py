"""What a codec is, the registry, and the seam that adapters use: `encode_into` and `decode_into`.

A codec is a frozen dataclass: its fields are its parameters, its class the algorithm. Writing one outside of this package takes three
methods, see `Codec`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from . import _core
from .buffers import (
    DTYPE_CODES,
    Bytes,
    Floats,
    View,
    bytes_view,
    is_tensor,
    residual_view,
    view,
    writable_view,
)
from .errors import CodecError, InputError, PayloadError

if TYPE_CHECKING:
    import torch

    from .buffers import AnyArray

#: Bytes of codec parameters in a payload's header.
PARAMETER_BYTES = 20
#: Bytes of parameters a codec may have to serve as the value codec of a sparse one.
VALUE_PARAMETER_BYTES = 3
#: A payload has fewer entries than this.
ENTRY_LIMIT = 2**32

#: What callers are told of an input that is not finite, by what they chose to happen, and of such a sum; on the host and on devices.
NOT_FINITE_MESSAGES = {
    "error": "the input holds an infinity or NaN; mend it, or pass nonfinite='skip' to send zeros for this step",
    "reset": "the input or the residual held an infinity or NaN; the residual was set to zero",
}
SUM_MESSAGE = (
    "x is finite but x + residual is not: the residual held an infinity or NaN, or the sum exceeds float32; "
    "reset the residual"
)

_by_id: dict[int, type[Codec]] = {}
_C = TypeVar("_C", bound="Codec")


@dataclasses.dataclass(slots=True)
class Call:
    """What one call to a codec is told, and tells the next on the same stream of tensors."""

    #: Call number, mixed into random streams.
    step: int = 0
    #: The k-th largest magnitude of the last call, as the bits of a float32: a head start for the next top-k. Never changes a result.
    last_key: int = 0
    #: The same for tensors on a device: an int32 tensor of one entry there, which the host never reads.
    last_key_there: Any = None
    #: Told by the call: how many bytes of the body were used. Fewer than there were only if the codec has no fixed size.
    body_bytes: int = 0
    #: Told and taken by LowRank: where its next call begins. This one does change results: who compares bytes keeps it.
    memory: Floats | None = None


class Codec(ABC):
    """Base class of all codecs.

    A codec of your own is a frozen dataclass with an ``id`` from 128 to 254 that says how large a body is and how values go in and out
    of it. It then works everywhere: in `compress`, as bytes, with residuals, as ``TopK(values=...)``, in DDP and federated messages.

    Examples
    --------
    >>> import dataclasses, numpy as np, tersegrad as tg
    >>> @dataclasses.dataclass(frozen=True)
    ... class Coarse(tg.Codec, id=201):
    ...     def body_size(self, n, dtype="float32"):
    ...         return 4 + n
    ...     def _encode(self, values, body, dtype, step):
    ...         scale = np.abs(values).mean(dtype=np.float32) if values.size else np.float32(0)
    ...         body[:4] = np.frombuffer(scale.astype("<f4").tobytes(), np.uint8)
    ...         body[4:] = np.where(np.abs(values) < scale, 0, np.sign(values)).astype(np.int8).view(np.uint8)
    ...     def _decode(self, body, values, dtype, step):
    ...         values[:] = body[4:].view(np.int8) * np.frombuffer(body[:4].tobytes(), "<f4")[0]
    >>> payload = tg.compress(np.array([1.0, -3.0, 0.5], np.float32), Coarse())
    >>> tg.decompress(bytes(payload))
    array([ 0. , -1.5,  0. ], dtype=float32)
    """

    #: The codec id in the wire format.
    id: ClassVar[int]
    #: Whether entries may be left out of a payload, to decode to zero.
    is_sparse: ClassVar[bool] = False
    #: Whether payloads of this codec add without decoding, see `tersegrad.add`.
    is_additive: ClassVar[bool] = False

    def __init_subclass__(cls, *, id: int | None = None, **keywords: Any) -> None:  # noqa: A002
        super().__init_subclass__(**keywords)
        if id is None:
            return  # an abstract helper
        own = cls.__module__.startswith(__package__ + ".")
        if not (isinstance(id, int) and 1 <= id <= 254 and (own or id >= 128)):
            raise CodecError(f"codec id must be an integer from 128 to 254, not {id!r}")
        for other in _by_id.values():
            same = (other.__module__, other.__qualname__) == (cls.__module__, cls.__qualname__)
            if not same and (other.id == id or other.__name__ == cls.__name__):
                raise CodecError(
                    f"{cls.__name__} (id {id}) collides with the registered {other.__name__} (id {other.id})"
                )
        cls.id = id
        _by_id[id] = cls

    @property
    def is_fixed_size(self) -> bool:
        """Whether the size of a body follows from `n`: False for ``indices="rice"`` and ``"runs"``, `Threshold` and `Zstd`."""
        return True

    # What the author of a codec writes.

    def for_shape(self, shape: Sequence[int]) -> Codec:
        """The codec for tensors of a shape: itself, for all but `LowRank`, which sees a tensor as a matrix."""
        return self

    @abstractmethod
    def body_size(self, n: int, dtype: str = "float32") -> int:
        """The exact number of bytes that `n` entries of `dtype` become, header not counted.

        `CodecError` from a codec that has no fixed size; see `max_body_size`.
        """

    def max_body_size(self, n: int, dtype: str = "float32") -> int:
        """The most bytes that `n` entries of `dtype` can become: `body_size`, if it is fixed."""
        return self.body_size(n, dtype)

    def _encode(self, values: Floats, body: Bytes, dtype: str, step: int) -> None:
        """Write `values` (float32, 1-D, finite, read-only) to `body` (uint8, `body_size` long)."""
        raise NotImplementedError(f"{type(self).__name__} must define _encode")

    def _decode(self, body: Bytes, values: Floats, dtype: str, step: int) -> None:
        """Read `body` into `values` (float32, 1-D); raise `PayloadError` for a body no encoder writes."""
        raise NotImplementedError(f"{type(self).__name__} must define _decode")

    def _params(self) -> bytes:
        """The parameters a decoder needs; at most 20 bytes, at most 3 to serve as a value codec."""
        return b""

    @classmethod
    def _from_params(cls: type[_C], params: bytes) -> _C:
        """The codec of `_params`; `params` is padded with zeros."""
        return cls()

    # The fused form that the built-in codecs define instead of _encode and _decode. `x` and `out` are as in buffers.View.

    def _compress(
        self, x: npt.NDArray[Any], dtype: str, body: Bytes, residual: Floats | None, call: Call
    ) -> bool:
        """Write the body; leave in `residual` what it does not carry. False when an entry is not finite."""
        # The residual changes last: _encode is foreign code and may raise.
        sums = np.zeros(x.size, np.float32) if residual is None else residual.copy()
        if residual is None:
            _core.widen(x, sums)
        else:
            _core.accumulate(x, sums)
        if not _core.all_finite(sums):
            return False
        values = sums.view()
        values.flags.writeable = False
        self._encode(values, body, dtype, call.step)
        if residual is not None:
            _core.subtract(sums, self._decoded(body, x.size, dtype, call.step))
            residual[:] = sums
        return True

    def _decompress(
        self,
        body: Bytes,
        dtype: str,
        step: int,
        out: npt.NDArray[Any],
        accumulate: bool,
        scale: float,
        blank: bool,
    ) -> None:
        """Decode into `out`, which is all zeros already when `blank`. `PayloadError` before the first write."""
        _core.emit(self._decoded(body, out.size, dtype, step), out, accumulate, scale)

    def _decoded(self, body: Bytes, n: int, dtype: str, step: int) -> Floats:
        values = np.zeros(n, np.float32)
        self._decode(body, values, dtype, step)
        if not _core.all_finite(values):
            raise PayloadError("a value is infinite or not a number")
        _core.round_values(DTYPE_CODES[dtype], values)
        return values

    def _check(self, body: Bytes, n: int, dtype: str, step: int) -> None:
        """`PayloadError` for a body that `_decompress` would refuse."""
        self._decoded(body, n, dtype, step)

    # For bodies of strangers: first what `_check` does and how large the values are, then what `_decompress` does onto `out`.

    def _examine(self, body: Bytes, n: int, dtype: str, step: int) -> tuple[float, float]:
        """The sum of the values' squares and their largest magnitude; `PayloadError` as from `_check`."""
        values = self._decoded(body, n, dtype, step)
        squares = np.square(values, dtype=np.float64).sum()
        return float(squares), float(np.abs(values).max(initial=0))

    def _add(self, body: Bytes, dtype: str, step: int, out: npt.NDArray[Any], scale: float) -> None:
        """``out += scale * decoded``, for a body that passed `_examine`."""
        self._decompress(body, dtype, step, out, True, scale, False)

    # For codecs that are additive.

    def _sum_bodies(self, bodies: Sequence[Bytes], dtype: str, wrap: bool) -> Bytes:
        """The body that decodes to the sum of what `bodies` decode to; they passed `_check` and are of equal wire parameters.

        With `wrap`, integers wrap around instead of raising `InputError` for a sum beyond their width.
        """
        raise CodecError(f"{self} does not add without decoding")

    # What follows has another meaning only for codecs without a fixed size.

    def _min_body_size(self, n: int, dtype: str) -> int:
        """The least bytes that a body of `n` entries can have; no memory is taken for one that has fewer."""
        return self.body_size(n, dtype)

    def _size_in(self, data: Bytes, n: int, dtype: str) -> int:
        """How many bytes at the start of `data` are a body of `n` entries; `PayloadError` if that cannot be told."""
        return self.body_size(n, dtype)

    # The form of the parameters in a message of many tensors, before the codec meets one; at most 24 bytes.

    def _standing_params(self) -> bytes:
        return self._params()

    @classmethod
    def _from_standing(cls: type[_C], params: bytes) -> _C:
        return cls._from_params(params)

    # The wire form of the parameters; sparse codecs need n and the step for theirs.

    def _wire_params(self, n: int, step: int) -> bytes:
        return self._params()

    @classmethod
    def _from_wire(cls: type[_C], params: bytes, n: int) -> tuple[_C, int]:
        """The codec and the step that `_wire_params` states."""
        return cls._from_params(params), 0

    def __getstate__(self) -> dict[str, Any]:
        # The fields alone: a codec may cache its native form, which cannot be pickled.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    # The one text form.

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `Codec.from_dict` turns back into this codec; fit for JSON."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        entries: dict[str, Any] = {"codec": type(self).__name__}
        for field in fields:
            value = getattr(self, field.name)
            entries[field.name] = value.to_dict() if isinstance(value, Codec) else value
        return entries

    @staticmethod
    def from_dict(entries: dict[str, Any]) -> Codec:
        """The codec that `to_dict` described; `CodecError` if there is none."""
        if not isinstance(entries, dict) or "codec" not in entries:
            raise CodecError(
                f"a codec is described by a dict with the key 'codec', not {entries!r}"
            )
        fields = dict(entries)
        name = fields.pop("codec")
        for cls in _by_id.values():
            if cls.__name__ == name:
                break
        else:
            known = ", ".join(sorted(cls.__name__ for cls in _by_id.values()))
            raise CodecError(f"no codec is called {name!r}; registered are {known}")
        for key, value in fields.items():
            if isinstance(value, dict):
                fields[key] = Codec.from_dict(value)
        try:
            return cls(**fields)
        except TypeError as error:
            raise CodecError(f"{name}: {error}") from error


def codec_by_id(number: int) -> type[Codec]:
    """The registered class of a wire id; `PayloadError` if there is none."""
    try:
        return _by_id[number]
    except KeyError:
        raise PayloadError(
            f"codec id {number} is not registered; import the module that defines it first"
        ) from None


def check_codec(codec: object) -> Codec:
    """`codec` itself, if it is one."""
    if isinstance(codec, Codec):
        return codec
    if isinstance(codec, type) and issubclass(codec, Codec):
        raise CodecError(f"give a codec, not its class: {codec.__name__}(...)")
    raise CodecError(f"codec must be a tersegrad codec such as TopK(density=0.01), not {codec!r}")


def check_fixed_size(codec: Codec) -> Codec:
    """`codec` itself, if the sizes of its bodies are known beforehand."""
    if not codec.is_fixed_size:
        raise CodecError(
            f"{codec} makes bodies of different sizes; where a size must be known beforehand, take indices='auto' or "
            "'elias-fano' instead of 'rice' or 'runs', TopK instead of Threshold, and no Zstd"
        )
    return codec


def check_body_size(codec: Codec, size: int, n: int, dtype: str) -> None:
    """`PayloadError` unless a body of `n` entries can have `size` bytes."""
    most = codec.max_body_size(n, dtype)
    least = most if codec.is_fixed_size else codec._min_body_size(n, dtype)
    if not least <= size <= most:
        made = f"{most}" if least == most else f"{least} to {most}"
        raise PayloadError(f"the body has {size} bytes; {codec} makes {made} of {n} entries")


def check_step(step: object) -> int:
    """`step` as the u32 that enters random streams."""
    if not isinstance(step, (int, np.integer)) or step < 0:
        raise InputError(f"step must be an integer from 0, not {step!r}")
    return int(step) & 0xFFFFFFFF


def check_count(n: int) -> int:
    """`n`, if a payload can hold as many entries."""
    if n >= ENTRY_LIMIT:
        raise InputError(f"the input has {n} entries; a payload holds fewer than 2**32: split it")
    return n


def encode(
    x: View, codec: Codec, body: Bytes, residual: Floats | None, call: Call, checked: bool = False
) -> bool:
    """`encode_into` on views. `checked` says that x is known to be finite, which saves a pass over it."""
    call.body_bytes = body.size
    if residual is not None and not checked and not _core.all_finite(x.array):
        return False
    if codec._compress(x.array, x.dtype, body, residual, call):
        return True
    call.last_key = 0
    if residual is not None and not checked:
        raise InputError(SUM_MESSAGE)
    return False


def used(body: Bytes, call: Call) -> Bytes:
    """What `encode` has written of a body."""
    return body if call.body_bytes == body.size else body[: call.body_bytes].copy()


def encode_into(
    x: AnyArray,
    codec: Codec,
    body: AnyArray,
    *,
    residual: AnyArray | None = None,
    step: int = 0,
    status: torch.Tensor | None = None,
) -> bool:
    """Write only the body of a payload, into memory of the caller.

    Parameters
    ----------
    x : torch.Tensor or numpy.ndarray
        float32, float16 or bfloat16, any shape.
    codec : Codec
    body : uint8 array or tensor
        Of exactly ``codec.body_size(n, dtype)`` bytes.
    residual : float32 array of x's kind and shape, optional
        Added to `x`; left holding what the body does not carry.
    step : int
        Call number, mixed into random streams.
    status : tensor of one int32 on the device of x, optional
        For `x` on a CUDA device: receives 0, or another number if `x` is not finite, and nothing waits for the device. `body` must
        begin at a multiple of 16 bytes there.

    Returns
    -------
    bool
        False if `x` holds an infinity or NaN: the residual is then untouched and `body` undefined. True with `status`.
    """
    if is_tensor(x):
        from .device.seam import encode_into as encode_there
        from .device.seam import of

        if (backend := of(x)) is not None:
            return encode_there(backend, x, check_codec(codec), body, residual, step, status)
    source = view(x)
    n = check_count(source.array.size)
    target = bytes_view(body, "body")
    codec = check_codec(codec).for_shape(source.shape)
    expected = codec.body_size(n, source.dtype)
    if target.size != expected or not target.flags.writeable:
        raise InputError(f"body must be {expected} writable bytes, not {target.size}")
    kept = None if residual is None else residual_view(residual, source)
    return encode(source, codec, target, kept, Call(check_step(step)))


def decode_into(
    body: AnyArray,
    codec: Codec,
    out: AnyArray,
    *,
    dtype: str | None = None,
    step: int = 0,
    accumulate: bool = False,
    scale: float = 1.0,
) -> None:
    """Decode a body that `encode_into` wrote, into ``out`` or, with `accumulate`, onto it.

    Parameters
    ----------
    body : uint8 array or tensor
    codec : Codec
        The one that encoded.
    out : float32, float16 or bfloat16 array
        Contiguous, with as many entries as were encoded.
    dtype : str, optional
        The dtype that was encoded; by default that of `out`.
    step : int
        As given to `encode_into`.
    accumulate : bool
        ``out += scale * decoded`` instead of ``out = scale * decoded``.
    scale : float

    Raises
    ------
    PayloadError
        If the body is not one that the codec writes; `out` is then unchanged.
    """
    if is_tensor(out):
        from .device.seam import decode_into as decode_there
        from .device.seam import of

        if (backend := of(out)) is not None:
            factor = check_scale(scale)
            decode_there(backend, body, check_codec(codec), out, dtype, step, accumulate, factor)
            return
    target = writable_view(out, "out")
    dtype = target.dtype if dtype is None else dtype
    if dtype not in DTYPE_CODES:
        raise InputError(f"dtype must be one of {', '.join(DTYPE_CODES)}, not {dtype!r}")
    source = bytes_view(body, "body")
    codec = check_codec(codec).for_shape(target.shape)
    check_body_size(codec, source.size, check_count(target.array.size), dtype)
    codec._decompress(
        source, dtype, check_step(step), target.array, accumulate, check_scale(scale), False
    )


def check_scale(scale: object) -> float:
    """`scale`, if it is a finite float32."""
    try:
        number = float(scale)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = float("nan")
    if not abs(number) <= 3.4028234663852886e38:
        raise InputError(f"scale must be a finite number, not {scale!r}")
    return number
