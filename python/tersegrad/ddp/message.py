"""The head of a message: what it is, and how each parameter of the bucket fared on its rank.

| size | what |
|---|---|
| 16 | magic `54 47 42 02`, u32 layout checksum, u32 step, u8 failed, three zeros |
| 1 per parameter | SENT, ABSENT or NON_FINITE |

After it come bodies, whose sizes are arithmetic: nothing is negotiated.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch

from ..errors import StateError

HEAD = struct.Struct("<4sIIB3x")
MAGIC = b"TGB\x02"
SENT, ABSENT, NON_FINITE = 0, 1, 2


def head_bytes(slots: int) -> int:
    return HEAD.size + slots


def write_head(message: torch.Tensor, checksum: int, step: int, marks: bytes, failed: bool) -> None:
    head = bytearray(HEAD.pack(MAGIC, checksum, step % 2**32, failed) + marks)
    message[: len(head)].copy_(torch.frombuffer(head, dtype=torch.uint8))


def read_heads(
    messages: Sequence[torch.Tensor], slots: int, checksum: int, step: int, failure: str | None
) -> list[bytes]:
    """The marks of every rank, in rank order.

    All ranks read the same heads, so that all of them raise or none does. `failure` is what this
    rank's own failure was, to be told with it.
    """
    marks = []
    for rank, message in enumerate(messages):
        head = bytes(message[: head_bytes(slots)].tolist())
        magic, sent_checksum, sent_step, failed = HEAD.unpack_from(head)
        if failed:
            reason = failure or "its own error says why"
            raise StateError(f"rank {rank} could not compress a gradient: {reason}")
        if (magic, sent_checksum, sent_step) != (MAGIC, checksum, step % 2**32):
            raise StateError(
                f"rank {rank} sent layout {sent_checksum:08x} of step {sent_step}, this rank "
                f"expects layout {checksum:08x} of step {step}: give every rank the same codec and "
                "the checkpoint of the same step"
            )
        marks.append(head[HEAD.size :])
    return marks
