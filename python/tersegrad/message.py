"""Many tensors in one native call and one packed message: docs/format.md, section 5."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from . import _core
from .api import NonFinite, check_nonfinite
from .buffers import (
    DTYPE_CODES,
    DTYPES,
    ITEM_BYTES,
    MAX_RANK,
    Bytes,
    Kind,
    View,
    address_of,
    bytes_view,
    has_numpy_bfloat16,
    is_tensor,
    like,
    locate,
    new_entries,
    residual_view,
    view,
    writable_view,
)
from .codec import (
    ENTRY_LIMIT,
    Call,
    Codec,
    check_codec,
    check_scale,
    check_step,
    codec_by_id,
    encode,
)
from .codecs.native import Native
from .errors import CodecError, InputError, NonFiniteError, PayloadError
from .payload import VERSION, check_kind

if TYPE_CHECKING:
    from .buffers import AnyArray

MAGIC = b"TGRM"
STANDING_BYTES = 24  # parameters of a codec that has not met a tensor

# magic, version, codecs, zeros, tensors, step, body bytes; then the checksum and the tables.
_HEAD = struct.Struct("<4sBB2sIIQ")
_CHECKSUM = struct.Struct("<I")
_CODEC = struct.Struct(f"<B3s{STANDING_BYTES}s")
_TENSOR = struct.Struct("<BBBB")
HEADER_BYTES = _HEAD.size + _CHECKSUM.size


class Message:
    """Many compressed tensors: what `compress_many` returns and `decompress_many` takes.

    Attributes
    ----------
    codecs : tuple of Codec
        One per tensor.
    dtypes : tuple of str
    shapes : tuple of tuple of int
    step : int
    skipped : tuple of int
        Positions of the tensors that were not finite and stand for zeros.
    """

    __slots__ = ("_bodies", "_kind", "_sizes", "codecs", "dtypes", "shapes", "skipped", "step")

    def __init__(
        self,
        codecs: Sequence[Codec],
        dtypes: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
        bodies: Bytes,
        sizes: Sequence[int],
        kind: Kind,
        step: int,
        skipped: Sequence[int] = (),
    ) -> None:
        self.codecs = tuple(codecs)
        self.dtypes = tuple(dtypes)
        self.shapes = tuple(shapes)
        self.step = step
        self.skipped = tuple(skipped)
        self._bodies = bodies
        self._sizes = sizes
        self._kind = kind

    def __len__(self) -> int:
        return len(self.shapes)

    def __repr__(self) -> str:
        return f"Message({len(self)} tensors, nbytes={self.nbytes}, ratio={self.ratio:.1f})"

    def _table(self) -> dict[int, bytes]:
        """How each codec object states itself. Few objects stand for many tensors, and some of them state the same."""
        codecs = {id(codec): codec for codec in self.codecs}
        return {
            key: _CODEC.pack(codec.id, b"", codec._standing_params())
            for key, codec in codecs.items()
        }

    @property
    def nbytes(self) -> int:
        """Bytes on the wire, header and tables included."""
        tables = _CODEC.size * len(set(self._table().values())) + sum(
            _TENSOR.size + 4 * len(s) for s in self.shapes
        )
        return HEADER_BYTES + tables + self._bodies.size

    @property
    def ratio(self) -> float:
        """Original bytes divided by bytes on the wire."""
        sizes = zip(self.shapes, self.dtypes, strict=True)
        return sum(math.prod(shape) * ITEM_BYTES[dtype] for shape, dtype in sizes) / self.nbytes

    def bodies(self) -> list[Bytes]:
        """The coded entries of every tensor, without a copy."""
        ends = np.cumsum(self._sizes, dtype=np.int64).tolist()
        return [self._bodies[end - size : end] for end, size in zip(ends, self._sizes, strict=True)]

    def __bytes__(self) -> bytes:
        entries = self._table()
        numbers = {entry: number for number, entry in enumerate(dict.fromkeys(entries.values()))}
        tables = list(numbers)
        for codec, dtype, shape in zip(self.codecs, self.dtypes, self.shapes, strict=True):
            number = numbers[entries[id(codec)]]
            tables.append(_TENSOR.pack(number, DTYPE_CODES[dtype], len(shape), 0))
            tables.append(struct.pack(f"<{len(shape)}I", *shape))
        head = _HEAD.pack(
            MAGIC, VERSION, len(numbers), b"", len(self), self.step, self._bodies.size
        )
        table = b"".join(tables)
        checksum = _core.crc32c(self._bodies, _core.crc32c(table, _core.crc32c(head)))
        return b"".join((head, _CHECKSUM.pack(checksum), table, self._bodies.data))

    @classmethod
    def from_bytes(cls, buffer: Any, *, expect: Sequence[AnyArray] | None = None) -> Message:
        """Read a message without copying the bodies; `expect` gives tensors whose shapes and dtypes it must have.

        Raises
        ------
        PayloadError
            If the buffer is truncated, extended, damaged or forged, or not what was expected.
        """
        data = bytes_view(buffer, "message")
        if data.size < HEADER_BYTES:
            raise PayloadError(
                f"{data.size} bytes cannot hold a message: its header alone takes {HEADER_BYTES}"
            )
        magic, version, codec_count, zeros, count, step, body_bytes = _HEAD.unpack_from(data)
        if magic != MAGIC:
            raise PayloadError(f"not a tersegrad message: it starts with {magic!r}, not {MAGIC!r}")
        if version != VERSION or zeros != b"\0\0":
            raise PayloadError(
                f"message version {version} with flags {zeros.hex()} is not supported"
            )
        (stated,) = _CHECKSUM.unpack_from(data, _HEAD.size)
        checksum = _core.crc32c(data[HEADER_BYTES:], _core.crc32c(data[: _HEAD.size]))
        if stated != checksum:
            raise PayloadError(
                f"checksum {checksum:08x} does not match the stated {stated:08x}: the message is damaged"
            )
        if expect is not None and count != len(expect):
            raise PayloadError(f"the message has {count} tensors; expected were {len(expect)}")
        reader = _Reader(data, body_bytes)
        codecs = [_read_codec(*_CODEC.unpack(reader.take(_CODEC.size))) for _ in range(codec_count)]
        used, dtypes, shapes, sizes = [], [], [], []
        for position in range(count):
            number, dtype_code, rank, zero = _TENSOR.unpack(reader.take(_TENSOR.size))
            if number >= codec_count or dtype_code not in DTYPES or rank > MAX_RANK or zero:
                raise PayloadError(
                    f"tensor {position}: codec {number}, dtype code {dtype_code} or rank {rank} is out of range"
                )
            shape = struct.unpack(f"<{rank}I", reader.take(4 * rank))
            if math.prod(size for size in shape if size) >= ENTRY_LIMIT:
                raise PayloadError(f"tensor {position}: shape {shape} has 2**32 entries or more")
            used.append(codecs[number])
            dtypes.append(DTYPES[dtype_code])
            shapes.append(shape)
            sizes.append(codecs[number].body_size(math.prod(shape), DTYPES[dtype_code]))
        if list(dict.fromkeys(used)) != codecs:
            raise PayloadError(
                "the codec table does not list each codec once, in the order of their first use"
            )
        if reader.left != 0 or sum(sizes) != body_bytes:
            raise PayloadError(f"the bodies have {body_bytes} bytes; the tables make {sum(sizes)}")
        if expect is not None:
            _check_expected(shapes, dtypes, expect)
        bodies = data[data.size - body_bytes :]
        kind: Kind = "torch" if is_tensor(buffer) else "numpy"
        return cls(used, dtypes, shapes, bodies, sizes, kind, step)


class _Reader:
    """The tables between header and bodies; refuses to read beyond them."""

    def __init__(self, data: Bytes, body_bytes: int) -> None:
        self._data = data
        self._at = HEADER_BYTES
        self.left = data.size - HEADER_BYTES - body_bytes

    def take(self, size: int) -> bytes:
        self.left -= size
        if self.left < 0:
            raise PayloadError("the message is too short for its tables and bodies")
        self._at += size
        return self._data[self._at - size : self._at].tobytes()


def _read_codec(codec_id: int, zeros: bytes, params: bytes) -> Codec:
    try:
        codec = codec_by_id(codec_id)._from_standing(params)
        canonical = codec._standing_params().ljust(STANDING_BYTES, b"\0")
    except (CodecError, struct.error) as error:
        raise PayloadError(f"codec parameters are out of range: {error}") from error
    if canonical != params or zeros != b"\0\0\0":
        raise PayloadError(f"the parameter bytes {params.hex()} are not those of {codec}")
    return codec


def _check_expected(
    shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str], expect: Sequence[AnyArray]
) -> None:
    for position, (shape, dtype, like_this) in enumerate(zip(shapes, dtypes, expect, strict=True)):
        wanted = view(like_this, "expect")
        if (shape, dtype) != (wanted.shape, wanted.dtype):
            raise PayloadError(
                f"tensor {position} of the message is {dtype} {shape}; expected was {wanted.dtype} {wanted.shape}"
            )


def compress_many(
    tensors: Sequence[AnyArray],
    codec: Codec | Sequence[Codec],
    *,
    residuals: Sequence[AnyArray | None] | None = None,
    nonfinite: NonFinite = "error",
    step: int = 0,
) -> Message:
    """Compress many tensors, such as all gradients of a model, in one native call and into one message.

    Parameters
    ----------
    tensors : sequence of torch.Tensor or numpy.ndarray
        All of one kind; otherwise as for `compress`.
    codec : Codec or sequence of Codec
        One for all, or one for each.
    residuals : sequence of float32 arrays or None, optional
        As for `compress`, one for each tensor; None where there is none.
    nonfinite : {"error", "skip", "reset"}
        As for `compress`. ``"error"`` leaves every residual as it was, ``"skip"`` those of the tensors in ``message.skipped``;
        ``"reset"`` sets the residuals of the offending tensors to zero.
    step : int
        Call number, mixed into random streams.

    Returns
    -------
    Message
    """
    codecs = [codec] * len(tensors) if isinstance(codec, Codec) else list(codec)
    kept = [None] * len(tensors) if residuals is None else list(residuals)
    if not len(codecs) == len(kept) == len(tensors):
        raise InputError(
            f"{len(tensors)} tensors, {len(codecs)} codecs and {len(kept)} residuals do not pair up"
        )
    for x, r in zip(tensors, kept, strict=True):
        if r is not None:
            residual_view(r, view(x))
    calls = [Call() for _ in tensors]
    return pack(tensors, codecs, kept, check_nonfinite(nonfinite), check_step(step), calls)


def pack(
    tensors: Sequence[AnyArray],
    codecs: Sequence[Codec],
    residuals: Sequence[AnyArray | None],
    nonfinite: NonFinite,
    step: int,
    calls: Sequence[Call],
) -> Message:
    """`compress_many` on residuals that were checked, with head starts from the last call on the same tensors."""
    distinct = {
        id(codec): codec for codec in codecs
    }  # by identity: hashing a dataclass takes a microsecond
    numbers = {key: number for number, key in enumerate(distinct)}
    rows, dtypes, shapes, kinds, owners = [], [], [], set(), []
    for tensor, codec, residual, call in zip(tensors, codecs, residuals, calls, strict=True):
        address, count, dtype, shape, kind, owner = locate(tensor)
        kept = 0 if residual is None else address_of(residual)
        rows.append((numbers[id(codec)], address, count, DTYPE_CODES[dtype], kept, call.last_key))
        dtypes.append(dtype)
        shapes.append(shape)
        kinds.add(kind)
        owners.append(owner)
    if len(kinds) > 1:
        raise InputError("the tensors of one message must be all torch tensors or all NumPy arrays")
    natives = [
        native._native
        for codec in distinct.values()
        if isinstance(native := check_codec(codec), Native) and native._is_native
    ]
    if len(natives) < len(distinct):
        body, sizes, finite = _encode_one_by_one(tensors, codecs, residuals, nonfinite, step, calls)
    else:
        body, sizes, finite, keys = _core.encode_many(
            natives, rows, step, nonfinite == "reset", nonfinite == "error"
        )
        for call, key, ok in zip(calls, keys, finite, strict=True):
            call.last_key = key if ok else 0
    skipped = [position for position, ok in enumerate(finite) if not ok]
    if skipped:
        _settle_non_finite(skipped, tensors, codecs, residuals, nonfinite, step, body, sizes)
    return Message(
        codecs,
        dtypes,
        shapes,
        body,
        sizes,
        kinds.pop() if kinds else "numpy",
        step,
        skipped,
    )


def _encode_one_by_one(
    tensors: Sequence[AnyArray],
    codecs: Sequence[Codec],
    residuals: Sequence[AnyArray | None],
    nonfinite: NonFinite,
    step: int,
    calls: Sequence[Call],
) -> tuple[Bytes, list[int], list[bool]]:
    """What the native call does, for codecs that are written in Python."""
    views = [view(tensor) for tensor in tensors]
    kept = [
        None if r is None else residual_view(r, x) for r, x in zip(residuals, views, strict=True)
    ]
    sizes = [c.body_size(x.array.size, x.dtype) for c, x in zip(codecs, views, strict=True)]
    body = np.empty(sum(sizes), np.uint8)
    finite = [nonfinite == "reset" or _core.all_finite(x.array) for x in views]
    if nonfinite == "error" and not all(finite):
        return body, sizes, finite
    start = 0
    for position, (x, codec, residual, size, call) in enumerate(
        zip(views, codecs, kept, sizes, calls, strict=True)
    ):
        if finite[position]:
            call.step = step
            part = body[start : start + size]
            finite[position] = encode(x, codec, part, residual, call, checked=True)
        start += size
    return body, sizes, finite


def _settle_non_finite(
    skipped: Sequence[int],
    tensors: Sequence[AnyArray],
    codecs: Sequence[Codec],
    residuals: Sequence[AnyArray | None],
    nonfinite: NonFinite,
    step: int,
    body: Bytes,
    sizes: Sequence[int],
) -> None:
    if nonfinite == "skip":
        starts = np.cumsum([0, *sizes], dtype=np.int64)
        for position in skipped:
            x = view(tensors[position])
            zeros = View(new_entries(x.array.size, x.dtype, zero=True), x.dtype, x.shape, x.kind)
            part = body[starts[position] : starts[position] + sizes[position]]
            encode(zeros, codecs[position], part, None, Call(step))
        return
    if nonfinite == "reset":
        for position in skipped:
            residual = residuals[position]
            if residual is not None:
                writable_view(residual, "residual").array.fill(0)
        raise NonFiniteError(
            f"tensors {list(skipped)} or their residuals held an infinity or NaN; these residuals were set to zero"
        )
    raise NonFiniteError(
        f"tensors {list(skipped)} hold an infinity or NaN; mend them, or pass nonfinite='skip' to send zeros for this step"
    )


def decompress_many(
    source: Any,
    *,
    out: Sequence[AnyArray] | None = None,
    accumulate: bool = False,
    scale: float = 1.0,
    expect: Sequence[AnyArray] | None = None,
    kind: Literal["numpy", "torch"] | None = None,
) -> list[AnyArray]:
    """Restore the tensors of a message.

    Parameters
    ----------
    source : Message, bytes, bytearray, memoryview, uint8 array or tensor
    out : sequence of arrays, optional
        Filled, or with `accumulate` added to, and returned. Nothing is written before the whole message has been checked.
    accumulate, scale, kind
        As for `decompress`.
    expect : sequence of arrays, optional
        Refuse a message whose shapes and dtypes differ from theirs.
    """
    message = source if isinstance(source, Message) else Message.from_bytes(source, expect=expect)
    if expect is not None and message is source:
        if len(message) != len(expect):
            raise PayloadError(
                f"the message has {len(message)} tensors; expected were {len(expect)}"
            )
        _check_expected(message.shapes, message.dtypes, expect)
    factor = check_scale(scale)
    if out is None and accumulate:
        raise InputError("accumulate=True needs out=, the arrays to add to")
    if out is not None and len(out) != len(message):
        raise InputError(f"out has {len(out)} arrays, the message {len(message)} tensors")
    bodies = message.bodies()
    for position, (codec, dtype, shape, body) in enumerate(
        zip(message.codecs, message.dtypes, message.shapes, bodies, strict=True)
    ):
        try:
            codec._check(body, math.prod(shape), dtype, message.step)
        except PayloadError as error:
            raise PayloadError(f"tensor {position}: {error}") from error
    results: list[AnyArray] = []
    targets = []
    for position, (codec, dtype, shape) in enumerate(
        zip(message.codecs, message.dtypes, message.shapes, strict=True)
    ):
        if out is None:
            chosen = _chosen_kind(kind, message._kind, dtype)
            array = new_entries(math.prod(shape), dtype, zero=codec.is_sparse)
            results.append(like(array, dtype, shape, chosen))
        else:
            target = writable_view(out[position], f"out[{position}]")
            if target.shape != shape:
                raise InputError(f"out[{position}] has shape {target.shape}, the message {shape}")
            array = target.array
            results.append(out[position])
        targets.append(array)
    for codec, dtype, body, array in zip(
        message.codecs, message.dtypes, bodies, targets, strict=True
    ):
        codec._decompress(
            body, dtype, message.step, array, accumulate, factor, out is None and codec.is_sparse
        )
    return results


def _chosen_kind(kind: Kind | None, own: Kind, dtype: str) -> Kind:
    if kind is not None:
        check_kind(kind)
        return kind
    return "torch" if dtype == "bfloat16" and not has_numpy_bfloat16() else own
