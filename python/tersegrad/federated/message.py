"""The one reader and writer of federated messages, docs/format.md section 6."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from .. import _core
from ..buffers import Bytes, bytes_view
from ..codec import Codec
from ..errors import PayloadError
from ..message import CODEC_ENTRY, read_codec_entry
from ..payload import CHECKSUM, VERSION, verify_checksum
from .layout import DIGEST_BYTES, Layout
from .limits import Limits

MAGIC = b"TGRF"
#: The codec number of a tensor that travels as it is.
EXACT = 255

# magic, version, codecs, zeros, step, layout; then the checksum, the codec table, one number for each tensor, the bodies.
_HEAD = struct.Struct(f"<4sBB2sI{DIGEST_BYTES}s")
HEADER_BYTES = _HEAD.size + CHECKSUM.size


class Update(NamedTuple):
    """A message that was read and examined. Codecs are None where a tensor travels as it is."""

    codecs: Sequence[Codec | None]
    bodies: Sequence[Bytes]
    step: int
    nbytes: int
    norm: float  # Euclidean, of all floats
    largest: float  # magnitude of a float


def write(
    layout: Layout, codecs: Sequence[Codec | None], bodies: Sequence[Bytes], step: int
) -> bytes:
    """The message of these bodies; the codec of a tensor that travels as it is is None."""
    entries = [
        b"" if codec is None else CODEC_ENTRY.pack(codec.id, b"", codec._standing_params())
        for codec in codecs
    ]
    table = {entry: number for number, entry in enumerate(filter(None, dict.fromkeys(entries)))}
    head = _HEAD.pack(MAGIC, VERSION, len(table), b"", step, layout.digest)
    numbers = bytes(table.get(entry, EXACT) for entry in entries)
    pieces: list[bytes | Bytes] = [*table, numbers, *bodies]
    checksum = _core.crc32c(head)
    for piece in pieces:
        checksum = _core.crc32c(piece, checksum)
    return b"".join((head, CHECKSUM.pack(checksum), *pieces))


def read(message: Any, layout: Layout, limits: Limits | None = None) -> Update:
    """Read a message for this layout and examine all of it. Nothing is allocated by what the message says.

    Raises
    ------
    PayloadError
        If anything is wrong with the message, or it breaks a limit.
    """
    try:
        data = bytes_view(message, "message")
        if not isinstance(message, bytes):
            data = data.copy()  # nobody may change it between check and use
        codecs, bodies, step = _read_tables(data, layout, limits)
        norm, largest = _examine(layout, codecs, bodies, step)
    except (PayloadError, MemoryError):
        raise
    except Exception as error:  # what is no bytes; and a codec from elsewhere may raise anything
        raise PayloadError(f"the message cannot be read: {error}") from error
    if limits is not None and largest > limits.max_abs:
        raise PayloadError(f"a value has magnitude {largest:g}; the limit is {limits.max_abs:g}")
    if limits is not None and limits.max_norm is not None and norm > limits.max_norm:
        raise PayloadError(f"the update has norm {norm:g}; the limit is {limits.max_norm:g}")
    return Update(codecs, bodies, step, data.size, norm, largest)


def _read_tables(
    data: Bytes, layout: Layout, limits: Limits | None
) -> tuple[list[Codec | None], list[Bytes], int]:
    if data.size < HEADER_BYTES:
        raise PayloadError(
            f"{data.size} bytes cannot hold a federated message: its header takes {HEADER_BYTES}"
        )
    magic, version, codec_count, zeros, step, digest = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise PayloadError(f"not a federated message: it starts with {magic!r}, not {MAGIC!r}")
    if version != VERSION or zeros != b"\0\0":
        raise PayloadError(f"message version {version} with flags {zeros.hex()} is not supported")
    if digest != layout.digest:
        raise PayloadError("the message is for a model of another layout: names, shapes or dtypes")
    if limits is not None and limits.max_bytes is not None and data.size > limits.max_bytes:
        raise PayloadError(f"the message has {data.size} bytes; the limit is {limits.max_bytes}")
    start = HEADER_BYTES + codec_count * CODEC_ENTRY.size
    if data.size < start + len(layout):
        raise PayloadError("the message is too short for its tables")
    verify_checksum(data, _HEAD.size, "message")
    entries = data[HEADER_BYTES:start].reshape(codec_count, CODEC_ENTRY.size)
    table = [read_codec_entry(entry.tobytes()) for entry in entries]
    if limits is not None:
        for stated in table:
            limits.check_codec(stated)
    numbers = data[start : start + len(layout)].tolist()
    in_order = list(dict.fromkeys(n for n in numbers if n != EXACT)) == list(range(codec_count))
    if not in_order or len(set(table)) != codec_count:
        raise PayloadError(
            "the codec table does not list each codec once, in the order of their first use"
        )
    codecs: list[Codec | None] = []
    bodies: list[Bytes] = []
    at = start + len(layout)
    for tensor, number in zip(layout, numbers, strict=True):
        if tensor.is_exact != (number == EXACT):
            raise PayloadError(f"tensor {tensor} does not travel by codec number {number}")
        codec = None if number == EXACT else table[number].for_shape(tensor.shape)
        try:
            size = (
                tensor.nbytes
                if codec is None
                else codec._size_in(data[at:], tensor.size, "float32")
            )
        except PayloadError as error:
            raise PayloadError(f"tensor {tensor}: {error}") from error
        if size > data.size - at:
            raise PayloadError(f"tensor {tensor}: {data.size - at} of {size} bytes are there")
        codecs.append(codec)
        bodies.append(data[at : at + size])
        at += size
    if at != data.size:
        raise PayloadError(f"the message has {data.size - at} bytes too many")
    return codecs, bodies, step


def _examine(
    layout: Layout, codecs: Sequence[Codec | None], bodies: Sequence[Bytes], step: int
) -> tuple[float, float]:
    """Norm and largest magnitude of all floats; `PayloadError` if a body is not one that its codec writes."""
    squares = largest = 0.0
    for tensor, codec, body in zip(layout, codecs, bodies, strict=True):
        if codec is not None:
            try:
                one_squares, one_largest = codec._examine(body, tensor.size, "float32", step)
            except PayloadError as error:
                raise PayloadError(f"tensor {tensor}: {error}") from error
            squares += one_squares
            largest = max(largest, one_largest)
        elif tensor.dtype == "bool" and body.max(initial=0) > 1:
            raise PayloadError(f"tensor {tensor}: a truth value is neither 0 nor 1")
    return math.sqrt(squares), largest
