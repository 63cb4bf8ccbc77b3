"""The message of one rank for one bucket of gradients, and the mean of the messages of all.

| size | what |
|---|---|
| 16 | magic `54 47 42 01`, u32 layout checksum, u32 step, u8 failed, three zeros |
| 1 per parameter | SENT, ABSENT or NON_FINITE |
| the rest | in the bucket's order: the codec's body, or the dense values of a small parameter |

Every size is arithmetic: the messages of all ranks have one length, and one all-gather moves them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from . import Codec, Quantize
from .codec import decode_into
from .errors import StateError

HEAD = struct.Struct("<4sIIB3x")
MAGIC = b"TGB\x01"
SENT, ABSENT, NON_FINITE = 0, 1, 2
DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True, eq=False)
class Segment:
    """A parameter's place in the bucket and in the message."""

    parameter: torch.Tensor
    codec: Codec
    encoder: Codec  # `codec` with this rank's own rounding noise
    dense: bool
    entries: slice
    body: slice


class BucketMessage:
    """Layout and scratch of one bucket.

    It keeps no address of the bucket itself: DDP may move it, and wrapper hooks replace it.
    """

    def __init__(
        self,
        key: tuple[Any, ...],
        segments: Sequence[Segment],
        buffer: torch.Tensor,
        world_size: int,
    ) -> None:
        self.key = key
        self.segments = segments
        self.world_size = world_size
        self.layout = layout_checksum(segments, buffer)
        self.head_bytes = HEAD.size + len(segments)
        size = segments[-1].body.stop if segments else self.head_bytes
        self.own = torch.zeros(size, dtype=torch.uint8, device=buffer.device)
        self.gathered = torch.zeros(world_size * size, dtype=torch.uint8, device=buffer.device)
        self.total: torch.Tensor | None = None  # where a half-precision parameter is summed
        if buffer.dtype != torch.float32:
            largest = max((segment.parameter.numel() for segment in segments), default=0)
            self.total = torch.zeros(largest, dtype=torch.float32, device=buffer.device)

    def write_head(self, step: int, presence: bytes, failed: bool) -> None:
        head = bytearray(HEAD.pack(MAGIC, self.layout, step % 2**32, failed) + presence)
        self.own[: len(head)].copy_(torch.frombuffer(head, dtype=torch.uint8))

    def decode_mean(self, buffer: torch.Tensor, step: int, failure: str | None) -> int:
        """Overwrite `buffer` with the mean of all messages. Returns how many parameters became NaN.

        Every rank adds the same bits in rank order, in float32: replicas stay identical.
        """
        messages = self.gathered.view(self.world_size, -1)
        presence = self._read_heads(messages, step, failure)
        lost = 0
        for index, segment in enumerate(self.segments):
            mean = buffer[segment.entries]
            marks = [marks_of_rank[index] for marks_of_rank in presence]
            if NON_FINITE in marks:
                mean.fill_(float("nan"))
                lost += 1
                continue
            total = mean if self.total is None else self.total[: mean.numel()]
            total.zero_()
            for mark, message in zip(marks, messages, strict=True):
                if mark == SENT:
                    decode_into(
                        message[segment.body],
                        segment.codec,
                        total,
                        dtype=DTYPES[buffer.dtype],
                        step=step % 2**32,
                        accumulate=True,
                        scale=1.0 / self.world_size,
                    )
            if total is not mean:
                mean.copy_(total)
        return lost

    def _read_heads(self, messages: torch.Tensor, step: int, failure: str | None) -> list[bytes]:
        """Presence by rank. All ranks read the same heads, so all of them raise or none does."""
        presence = []
        for rank, numbers in enumerate(messages[:, : self.head_bytes].tolist()):
            head = bytes(numbers)
            magic, layout, sent_step, failed = HEAD.unpack_from(head)
            if failed:
                reason = failure or "its own error says why"
                raise StateError(f"rank {rank} could not compress a gradient: {reason}")
            if (magic, layout, sent_step) != (MAGIC, self.layout, step % 2**32):
                raise StateError(
                    f"rank {rank} sent layout {layout:08x} of step {sent_step}, this rank expects "
                    f"layout {self.layout:08x} of step {step}: give every rank the same codec and "
                    "the checkpoint of the same step"
                )
            presence.append(head[HEAD.size :])
        return presence


def layout_checksum(segments: Sequence[Segment], buffer: torch.Tensor) -> int:
    sizes = [(s.codec.to_dict(), s.entries.stop, s.body.stop) for s in segments]
    return zlib.crc32(repr((DTYPES[buffer.dtype], sizes)).encode())


def own_noise(codec: Codec, rank: int) -> Codec:
    """The codec with rounding noise of this rank's own, so that averaging reduces the noise.

    A decoder does not need the noise; the mask of a RandomK stays common to all ranks.
    """
    if isinstance(codec, Quantize) and codec.rounding == "stochastic":
        return replace(codec, seed=(codec.seed + rank * 0x9E3779B97F4A7C15) % 2**64)
    values: Any = getattr(codec, "values", None)
    if isinstance(values, Quantize):
        changed: Any = codec
        return replace(changed, values=own_noise(values, rank))  # type: ignore[no-any-return]
    return codec
