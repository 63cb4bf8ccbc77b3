"""The one reader and writer of federated messages, docs/format.md section 6."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import _core
from ..buffers import Bytes, bytes_view
from ..codec import Codec
from ..errors import InputError, PayloadError
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


class Bodies(NamedTuple):
    """A message that was read: every tensor's codec, None where it travels as it is, and its body."""

    codecs: Sequence[Codec | None]
    bodies: Sequence[Bytes]
    step: int


def write(layout: Layout, parts: Bodies) -> bytes:
    """The message of these bodies."""
    entries = [
        b"" if codec is None else CODEC_ENTRY.pack(codec.id, b"", codec._standing_params())
        for codec in parts.codecs
    ]
    table = {entry: number for number, entry in enumerate(filter(None, dict.fromkeys(entries)))}
    head = _HEAD.pack(MAGIC, VERSION, len(table), b"", parts.step, layout.digest)
    numbers = bytes(table.get(entry, EXACT) for entry in entries)
    pieces = [*table, numbers, *(body.tobytes() for body in parts.bodies)]
    checksum = _core.crc32c(head)
    for piece in pieces:
        checksum = _core.crc32c(piece, checksum)
    return b"".join((head, CHECKSUM.pack(checksum), *pieces))


def bytes_of(message: Any) -> Bytes:
    """The bytes of a message, which nobody changes while they are in use; `PayloadError` if it is not made of bytes."""
    try:
        data = bytes_view(message, "message")
    except InputError as error:
        raise PayloadError(str(error)) from error
    return data if isinstance(message, bytes) else data.copy()


def read(data: Bytes, layout: Layout, limits: Limits | None) -> Bodies:
    """The bodies of a message, unexamined; nothing is copied, and nothing allocated by what the message says.

    Raises
    ------
    PayloadError
        If the tables are not those of a message of this layout, or break a limit.
    """
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
    table = [
        _read_codec(data[at : at + CODEC_ENTRY.size].tobytes(), limits)
        for at in range(HEADER_BYTES, start, CODEC_ENTRY.size)
    ]
    numbers = data[start : start + len(layout)].tolist()
    if list(dict.fromkeys(n for n in numbers if n != EXACT)) != list(range(codec_count)):
        raise PayloadError(
            "the codec table does not list each codec once, in the order of their first use"
        )
    codecs: list[Codec | None] = []
    sizes = []
    for tensor, number in zip(layout, numbers, strict=True):
        if tensor.is_exact != (number == EXACT):
            raise PayloadError(f"tensor {tensor} does not travel by codec number {number}")
        codec = None if number == EXACT else table[number]
        codecs.append(codec)
        sizes.append(
            tensor.size * np.dtype(tensor.dtype).itemsize
            if codec is None
            else codec.body_size(tensor.size)
        )
    at = start + len(layout)
    if data.size != at + sum(sizes):
        raise PayloadError(f"the message has {data.size} bytes; its tables make {at + sum(sizes)}")
    ends = (at + np.cumsum(sizes, dtype=np.int64)).tolist()
    bodies = [data[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    return Bodies(codecs, bodies, step)


def _read_codec(entry: bytes, limits: Limits | None) -> Codec:
    try:
        codec = read_codec_entry(entry)
    except PayloadError:
        raise
    except Exception as error:  # a codec from elsewhere may raise anything on a stranger's bytes
        raise PayloadError(f"the codec entry {entry.hex()} cannot be read: {error!r}") from error
    if limits is not None:
        limits.check_codec(codec)
    return codec
