"""The one reader and writer of messages of many tensors, docs/format.md section 5."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _core
from .buffers import (
    DTYPE_CODES,
    DTYPES,
    ITEM_BYTES,
    MAX_RANK,
    Bytes,
    Kind,
    bytes_view,
    is_tensor,
)
from .codec import ENTRY_LIMIT, Codec, codec_by_id
from .device import as_tensor, of
from .errors import CodecError, InputError, NonFiniteError, PayloadError
from .payload import CHECKSUM, VERSION, check_expected, verify_checksum

if TYPE_CHECKING:
    from .buffers import AnyArray

MAGIC = b"TGRM"
STANDING_BYTES = 24  # parameters of a codec that has not met a tensor

# magic, version, codecs, zeros, tensors, step, body bytes; then the checksum and the tables.
_HEAD = struct.Struct("<4sBB2sIIQ")
CODEC_ENTRY = struct.Struct(f"<B3s{STANDING_BYTES}s")
_TENSOR = struct.Struct("<BBBB")
HEADER_BYTES = _HEAD.size + CHECKSUM.size


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
            key: CODEC_ENTRY.pack(codec.id, b"", codec._standing_params())
            for key, codec in codecs.items()
        }

    @property
    def nbytes(self) -> int:
        """Bytes on the wire, header and tables included."""
        return self._head_bytes() + self._bodies.size

    def _head_bytes(self) -> int:
        tables = CODEC_ENTRY.size * len(set(self._table().values()))
        return HEADER_BYTES + tables + sum(_TENSOR.size + 4 * len(s) for s in self.shapes)

    @property
    def ratio(self) -> float:
        """Original bytes divided by bytes on the wire."""
        sizes = zip(self.shapes, self.dtypes, strict=True)
        return sum(math.prod(shape) * ITEM_BYTES[dtype] for shape, dtype in sizes) / self.nbytes

    def bodies(self) -> list[Bytes]:
        """The coded entries of every tensor, without a copy."""
        ends, bodies = np.cumsum(self._sizes, dtype=np.int64).tolist(), self._bodies
        return [bodies[end - size : end] for end, size in zip(ends, self._sizes, strict=True)]

    def __bytes__(self) -> bytes:
        entries, bodies = self._table(), self._bodies
        numbers = {entry: number for number, entry in enumerate(dict.fromkeys(entries.values()))}
        tables = list(numbers)
        for codec, dtype, shape in zip(self.codecs, self.dtypes, self.shapes, strict=True):
            number = numbers[entries[id(codec)]]
            tables.append(_TENSOR.pack(number, DTYPE_CODES[dtype], len(shape), 0))
            tables.append(struct.pack(f"<{len(shape)}I", *shape))
        head = _HEAD.pack(MAGIC, VERSION, len(numbers), b"", len(self), self.step, bodies.size)
        table = b"".join(tables)
        checksum = _core.crc32c(bodies, _core.crc32c(table, _core.crc32c(head)))
        return b"".join((head, CHECKSUM.pack(checksum), table, bodies.data))

    @classmethod
    def from_bytes(cls, buffer: Any, *, expect: Sequence[AnyArray] | None = None) -> Message:
        """Read a message without copying the bodies; `expect` gives tensors whose shapes and dtypes it must have.

        Raises
        ------
        PayloadError
            If the buffer is truncated, extended, damaged or forged, or not what was expected.
        """
        if of(buffer) is not None:  # its header and checksum are for the host
            from .device.message import upload

            buffer = as_tensor(buffer)
            message = cls.from_bytes(bytes_view(buffer.cpu().numpy(), "message"), expect=expect)
            return upload(message, buffer.device)
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
        verify_checksum(data, _HEAD.size, "message")
        reader = _Reader(data, body_bytes)
        codecs = [read_codec_entry(reader.take(CODEC_ENTRY.size)) for _ in range(codec_count)]
        used, dtypes, shapes = [], [], []
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
        if list(dict.fromkeys(used)) != codecs:
            raise PayloadError(
                "the codec table does not list each codec once, in the order of their first use"
            )
        if expect is not None:
            check_all_expected(shapes, dtypes, expect)
        bodies = data[data.size - body_bytes :]
        sizes, start = [], 0
        for codec, dtype, shape in zip(used, dtypes, shapes, strict=True):
            bound = codec.for_shape(shape)
            sizes.append(bound._size_in(bodies[start:], math.prod(shape), dtype))
            start += sizes[-1]
        if reader.left != 0 or start != body_bytes:
            raise PayloadError(f"the bodies have {body_bytes} bytes; the tables make {start}")
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


def read_codec_entry(entry: bytes) -> Codec:
    """The codec that an entry of a codec table states; `PayloadError` if it states none."""
    codec_id, zeros, params = CODEC_ENTRY.unpack(entry)
    try:
        codec = codec_by_id(codec_id)._from_standing(params)
        canonical = codec._standing_params().ljust(STANDING_BYTES, b"\0")
    except (CodecError, struct.error) as error:
        raise PayloadError(f"codec parameters are out of range: {error}") from error
    if canonical != params or zeros != b"\0\0\0":
        raise PayloadError(f"the parameter bytes {params.hex()} are not those of {codec}")
    return codec


def check_all_expected(
    shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str], expect: Sequence[AnyArray]
) -> None:
    """`PayloadError` unless number, shapes and dtypes are those of `expect`."""
    if len(shapes) != len(expect):
        raise PayloadError(f"the message has {len(shapes)} tensors; expected were {len(expect)}")
    for position, (shape, dtype, wanted) in enumerate(zip(shapes, dtypes, expect, strict=True)):
        check_expected(shape, dtype, wanted, f"tensor {position} of the message")


def refuse_not_finite(sums: Sequence[int], bad: Sequence[int], nonfinite: str) -> None:
    """Raise as the caller of `compress_many` chose, for tensors that are not finite (`bad`) or whose sums with residuals are not."""
    if sums:
        raise InputError(
            f"tensors {list(sums)} are finite but their sums with the residuals are not: a residual held an infinity or NaN, or a sum "
            "exceeds float32; reset the residuals of this call"
        )
    if bad and nonfinite == "reset":
        raise NonFiniteError(
            f"tensors {list(bad)} or their residuals held an infinity or NaN; these residuals were set to zero"
        )
    if bad and nonfinite == "error":
        raise NonFiniteError(
            f"tensors {list(bad)} hold an infinity or NaN; mend them, or pass nonfinite='skip' to send zeros for this step"
        )
