"""The one reader and writer of the wire format, docs/format.md."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

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
    like,
    shape_and_dtype,
)
from .codec import ENTRY_LIMIT, PARAMETER_BYTES, Codec, check_body_size, codec_by_id
from .device import as_tensor, of
from .errors import CodecError, PayloadError

if TYPE_CHECKING:
    from .buffers import AnyArray

MAGIC = b"TGRD"
VERSION = 1

# magic, version, codec, dtype, rank, parameters, body bytes; then the checksum, the shape, the body.
_HEAD = struct.Struct(f"<4sBBBB{PARAMETER_BYTES}sQ")
CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _HEAD.size + CHECKSUM.size


class Payload:
    """A compressed tensor: what `compress` returns and `decompress` takes.

    ``bytes(payload)`` is the message for the wire; `Payload.from_bytes` reads it back.

    Attributes
    ----------
    codec : Codec
        How the body is coded. After `from_bytes` it states resolved parameters, ``TopK(k=...)`` for ``TopK(density=...)``.
    dtype : str
        ``"float32"``, ``"float16"`` or ``"bfloat16"``.
    shape : tuple of int
    step : int
        The call number that entered random streams.
    skipped : bool
        Whether the input was not finite and the payload stands for zeros.
    """

    __slots__ = ("_body", "_kind", "codec", "dtype", "shape", "skipped", "step")

    def __init__(
        self,
        codec: Codec,
        dtype: str,
        shape: tuple[int, ...],
        body: Bytes,
        kind: Kind,
        step: int = 0,
        skipped: bool = False,
    ) -> None:
        self.codec = codec
        self.dtype = dtype
        self.shape = shape
        self.step = step
        self.skipped = skipped
        self._body = body
        self._kind = kind

    @property
    def body(self) -> AnyArray:
        """The coded entries: uint8, 1-D, of the input's kind and on its device."""
        return like(self._body, "uint8", (self._body.size,), self._kind)

    @property
    def nbytes(self) -> int:
        """Bytes on the wire, header included."""
        return HEADER_BYTES + 8 * len(self.shape) + self._body.size

    @property
    def ratio(self) -> float:
        """Original bytes divided by bytes on the wire."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype] / self.nbytes

    def __repr__(self) -> str:
        return f"Payload({self.codec}, {self.dtype}, shape={self.shape}, nbytes={self.nbytes})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Payload) and bytes(self) == bytes(other)

    def __hash__(self) -> int:
        return hash(bytes(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return Payload.from_bytes, (bytes(self),)

    def __bytes__(self) -> bytes:
        body = self._body
        head = _HEAD.pack(
            MAGIC,
            VERSION,
            self.codec.id,
            DTYPE_CODES[self.dtype],
            len(self.shape),
            self.codec._wire_params(math.prod(self.shape), self.step),
            body.size,
        )
        shape = struct.pack(f"<{len(self.shape)}Q", *self.shape)
        checksum = _core.crc32c(body, _core.crc32c(head + shape))
        return b"".join((head, CHECKSUM.pack(checksum), shape, body.data))

    @classmethod
    def from_bytes(cls, buffer: Any, *, expect: AnyArray | None = None) -> Payload:
        """Read a payload without copying its body.

        Parameters
        ----------
        buffer : bytes, bytearray, memoryview, uint8 array or tensor
            Exactly one payload. It must not change while the payload is in use.
        expect : array or tensor, optional
            Refuse a payload that has another shape or dtype than this one.

        Raises
        ------
        PayloadError
            If the buffer is truncated, extended, damaged or forged; the message says what is wrong.
        """
        if of(buffer) is not None:  # its header and checksum are for the host
            from .device.payload import upload

            buffer = as_tensor(buffer)
            payload = cls.from_bytes(bytes_view(buffer.cpu().numpy(), "payload"), expect=expect)
            return upload(payload, buffer.device)
        data = bytes_view(buffer, "payload")
        if data.size < HEADER_BYTES:
            raise PayloadError(
                f"{data.size} bytes cannot hold a payload: its header alone takes {HEADER_BYTES}"
            )
        magic, version, codec_id, dtype_code, rank, params, body_bytes = _HEAD.unpack_from(data)
        if magic != MAGIC:
            raise PayloadError(f"not a tersegrad payload: it starts with {magic!r}, not {MAGIC!r}")
        if version != VERSION:
            raise PayloadError(
                f"payload version {version} is not supported; this tersegrad reads version {VERSION}"
            )
        if rank > MAX_RANK:
            raise PayloadError(f"rank {rank} exceeds {MAX_RANK}")
        start = HEADER_BYTES + 8 * rank
        if data.size != start + body_bytes:
            raise PayloadError(
                f"the payload states {start + body_bytes} bytes, the buffer has {data.size}"
            )
        verify_checksum(data, _HEAD.size, "payload")
        if dtype_code not in DTYPES:
            raise PayloadError(f"dtype code {dtype_code} is unknown")
        dtype = DTYPES[dtype_code]
        shape = struct.unpack_from(f"<{rank}Q", data, HEADER_BYTES)
        if math.prod(size for size in shape if size) >= ENTRY_LIMIT:
            raise PayloadError(f"shape {shape} has 2**32 entries or more")
        if expect is not None:
            check_expected(shape, dtype, expect)
        n = math.prod(shape)
        codec, step = _read_parameters(codec_id, params, n)
        check_body_size(codec, body_bytes, n, dtype)
        return cls(
            codec, dtype, shape, data[start:], "torch" if is_tensor(buffer) else "numpy", step
        )


def verify_checksum(data: Bytes, at: int, what: str) -> None:
    """`PayloadError` unless the checksum at offset `at` is that of all other bytes."""
    (stated,) = CHECKSUM.unpack_from(data, at)
    checksum = _core.crc32c(data[at + CHECKSUM.size :], _core.crc32c(data[:at]))
    if stated != checksum:
        raise PayloadError(
            f"checksum {checksum:08x} does not match the stated {stated:08x}: the {what} is damaged"
        )


def _read_parameters(codec_id: int, params: bytes, n: int) -> tuple[Codec, int]:
    try:
        codec, step = codec_by_id(codec_id)._from_wire(params, n)
        canonical = codec._wire_params(n, step).ljust(PARAMETER_BYTES, b"\0")
    except (CodecError, struct.error) as error:
        raise PayloadError(f"codec parameters are out of range: {error}") from error
    if canonical != params:
        raise PayloadError(f"the parameter bytes {params.hex()} are not those of {codec}")
    return codec, step


def check_expected(
    shape: tuple[int, ...], dtype: str, expect: AnyArray, what: str = "the payload"
) -> None:
    """`PayloadError` unless shape and dtype are those of `expect`."""
    wanted = shape_and_dtype(expect, "expect")
    if (shape, dtype) != wanted:
        raise PayloadError(f"{what} holds {dtype} {shape}; expected was {wanted[1]} {wanted[0]}")
