"""Messages between ranks that know the layout beforehand: what `fsdp` and `outer` share.

| size | what |
|---|---|
| 16 | magic `54 47 58 01`, u32 layout checksum, u32 step, u8 failed, three zeros |
| 1 per part | FINITE or NON_FINITE |
| the rest | the parts' bodies in order, as their codecs write them |

Every size is arithmetic, so no rank tells another its own. What one rank could not do travels in
the head: all ranks read the same heads, so all of them raise or none does.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.distributed as dist

from .codec import Codec, check_codec, check_fixed_size, decode_into, encode_into
from .codecs import Identity, LowRank
from .device import exchange as device_exchange
from .device import of
from .errors import CodecError, InputError, StateError
from .in_flight import lend

HEAD = struct.Struct("<4sIIB3x")
MAGIC = b"TGX\x01"
TAG = 0x5447  # of messages between two ranks, apart from the user's own
FINITE, NON_FINITE = 0, 1
DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}

Rules = Mapping[str, Codec]


@dataclass(frozen=True)
class Selection:
    """Which codec a parameter gets.

    Parameters
    ----------
    codec : Codec
        For parameters of two or more dimensions and at least `min_size` entries. The others travel
        dense, exactly.
    rules : mapping of str to Codec
        Shell patterns of parameter names; the first that matches decides, whatever the size.
    min_size : int
    """

    codec: Codec
    rules: Rules
    min_size: int

    def __post_init__(self) -> None:
        check_flat(check_fixed_size(check_codec(self.codec)))
        if not isinstance(self.rules, Mapping):
            raise InputError(f"rules must map name patterns to codecs, not {self.rules!r}")
        for pattern, codec in self.rules.items():
            if not isinstance(pattern, str):
                raise InputError(f"a rule's pattern must be a string, not {pattern!r}")
            check_flat(check_fixed_size(check_codec(codec)))
        check_whole("min_size", self.min_size, 0)
        object.__setattr__(self, "rules", dict(self.rules))  # the caller's may change

    def of(self, name: str, shape: Sequence[int], n: int) -> Codec:
        for pattern, codec in self.rules.items():
            if fnmatchcase(name, pattern):
                return codec
        large = len(shape) >= 2 and n >= max(1, self.min_size)
        return self.codec if large else Identity()

    def checksum(self) -> int:
        rules = [(pattern, codec.to_dict()) for pattern, codec in self.rules.items()]
        return checksum_of(self.codec.to_dict(), rules, self.min_size)


@dataclass(frozen=True)
class Part:
    """Some entries of a parameter, and their place in a message."""

    name: str
    codec: Codec
    encoder: Codec  # `codec` with this rank's own rounding noise
    n: int
    body: slice


class Layout:
    """The parts of a message: (name, codec, entries) each, all of one dtype."""

    def __init__(
        self,
        parts: Sequence[tuple[str, Codec, int]],
        dtype: str,
        rank: int,
        alignment: int = 1,
    ) -> None:
        start = aligned(HEAD.size + len(parts), alignment)
        self.parts: list[Part] = []
        for name, codec, n in parts:
            end = start + codec.body_size(n, dtype)
            self.parts.append(Part(name, codec, own_noise(codec, rank), n, slice(start, end)))
            start = aligned(end, alignment)
        self.nbytes = start
        sizes = [(part.name, part.codec.to_dict(), part.body.stop) for part in self.parts]
        self.checksum = checksum_of(dtype, sizes)

    def head(self, step: int, failed: bool) -> bytes:
        return HEAD.pack(MAGIC, self.checksum, step % 2**32, failed)


def write(
    layouts: Sequence[Layout],
    messages: Sequence[torch.Tensor],
    values: Sequence[Sequence[torch.Tensor]],
    residuals: Sequence[Sequence[torch.Tensor | None]],
    step: int,
) -> str | None:
    """Write this rank's messages, which hold parts of the same parameters.

    A parameter that is not finite in one message is marked in all. Returns what went wrong, if
    anything did; the messages say so too.
    """
    if (backend := of(messages[0])) is not None:
        return device_exchange.write(backend, layouts, messages, values, residuals, step)
    marks = bytearray(len(layouts[0].parts))
    failure = None
    try:
        for layout, message, xs, rs in zip(layouts, messages, values, residuals, strict=True):
            for index, (part, x, residual) in enumerate(zip(layout.parts, xs, rs, strict=True)):
                body = message[part.body]
                if not encode_into(x, part.encoder, body, residual=residual, step=step % 2**32):
                    marks[index] = NON_FINITE
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    for layout, message in zip(layouts, messages, strict=True):
        head = layout.head(step, failure is not None) + marks
        message[: len(head)].copy_(torch.frombuffer(bytearray(head), dtype=torch.uint8))
    return failure


def read_marks(
    layout: Layout, messages: torch.Tensor, step: int, failure: str | None
) -> list[bytes]:
    """The marks of every rank's message; `messages` has one row per rank."""
    marks = []
    heads: list[list[int]] = messages[:, : HEAD.size + len(layout.parts)].tolist()
    for rank, numbers in enumerate(heads):
        head = bytes(numbers)
        magic, checksum, sent_step, failed = HEAD.unpack_from(head)
        if failed:
            reason = failure or "its own error says why"
            raise StateError(f"rank {rank} of the group could not compress: {reason}")
        if (magic, checksum, sent_step) != (MAGIC, layout.checksum, step % 2**32):
            raise StateError(
                f"rank {rank} of the group sent layout {checksum:08x} of step {sent_step}, this "
                f"rank expects layout {layout.checksum:08x} of step {step}: give every rank the "
                "same arguments and the checkpoint of the same step"
            )
        marks.append(head[HEAD.size :])
    return marks


class HostVerdict:
    """How each part fared, where the host knows."""

    def __init__(self, marks: Sequence[bytes]) -> None:
        self._marks = marks
        self._lost: set[int] = set()

    def begin(self, index: int, place: torch.Tensor) -> None:
        """Set `place`, which is zero, to what a sum starts from: NaN if some rank's part is not finite."""
        if any(row[index] == NON_FINITE for row in self._marks):
            place.fill_(float("nan"))
            self._lost.add(index)

    def skips(self, index: int) -> bool:
        """Whether there is nothing to add."""
        return index in self._lost

    def settle(
        self, index: int, name: str, old: Mapping[str, torch.Tensor], fresh: dict[str, torch.Tensor]
    ) -> None:
        """Have the residual of such a part stay what it was."""
        if index in self._lost:
            fresh.pop(name, None)

    def close(self, counters: dict[str, float], ledger: Any) -> Any:
        counters["nonfinite"] += len(self._lost)
        return ledger


def judge(layout: Layout, messages: torch.Tensor, step: int, failure: str | None) -> Any:
    """What the heads of all ranks say; `StateError` if they do not fit, on a device as soon as the host asks."""
    if (backend := of(messages)) is not None:
        return device_exchange.DeviceVerdict(backend, layout, messages, step, failure)
    return HostVerdict(read_marks(layout, messages, step, failure))


def add_all(
    messages: Iterable[torch.Tensor],
    part: Part,
    total: torch.Tensor,
    dtype: str,
    step: int,
    scale: float,
) -> None:
    """Add `scale` times a part of each message to `total`, in float32, in the order given.

    All ranks that add in the same order get the same bits.
    """
    if (backend := of(total)) is not None:
        start, number = part.body.start, step % 2**32
        backend.add_many(part.codec, list(messages), start, dtype, number, total, scale)
        return
    for message in messages:
        decode_into(
            message[part.body],
            part.codec,
            total,
            dtype=dtype,
            step=step % 2**32,
            accumulate=True,
            scale=scale,
        )


def agree(group: dist.ProcessGroup, device: torch.device, facts: Mapping[str, int]) -> list[str]:
    """Compare `facts` among the ranks of the group: the names of those that differ.

    Messages of different sizes make gloo abort the process, so this comes before the first one.
    """
    own = torch.tensor(list(facts.values()), dtype=torch.int64, device=device)
    gathered = all_gather(own, group)
    same = (gathered == gathered[0]).all(dim=0).tolist()
    return [name for name, equal in zip(facts, same, strict=True) if not equal]


def all_gather(own: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """One row per rank of the group."""
    gathered = own.new_empty(dist.get_world_size(group) * own.numel())
    newer: Any = getattr(dist, "all_gather_single", None)  # the older name warns where there is one
    (newer or dist.all_gather_into_tensor)(lend(gathered), lend(own), group=group)
    return gathered.view(-1, own.numel())


def gather_directly(own: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """`all_gather` with one message from each rank to each other, where that is faster: in memory of the host.

    The all-gather of gloo passes pieces on in a ring. Where ranks come at different times to a slow link it took half as long again.
    """
    if own.device.type != "cpu":
        return all_gather(own, group)
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    gathered = own.new_empty(world_size, own.numel())
    gathered[rank] = own
    works: list[Any] = []
    for peer in (peer for peer in range(world_size) if peer != rank):
        place = dist.get_global_rank(group, peer)
        works.append(dist.irecv(lend(gathered[peer]), place, group=group, tag=TAG))
        works.append(dist.isend(lend(own), place, group=group, tag=TAG))
    for work in works:
        work.wait()
    return gathered


def aligned(size: int, alignment: int) -> int:
    """Where the next part begins, after so many bytes."""
    return -(-size // alignment) * alignment


def check_flat(codec: Codec) -> Codec:
    """`codec`, if it codes any part of a tensor alike; a LowRank needs the whole matrix."""
    if isinstance(codec, LowRank):
        raise CodecError(
            f"{codec} codes whole matrices, and here a tensor travels in parts: use it in the DDP hook with exchange='auto', in "
            "compress or in federated messages, and a codec such as TopK or Quantize here"
        )
    return codec


def own_noise(codec: Codec, rank: int) -> Codec:
    """The codec with rounding noise of this rank's own, so that averaging reduces the noise.

    A decoder does not need the noise; the mask of a RandomK stays common to all ranks.
    """
    changed: Any = codec
    if getattr(codec, "rounding", None) == "stochastic":
        return replace(changed, seed=(changed.seed + rank * 0x9E3779B97F4A7C15) % 2**64)  # type: ignore[no-any-return]
    values: Any = getattr(codec, "values", None)
    if getattr(values, "rounding", None) == "stochastic":
        return replace(changed, values=own_noise(values, rank))  # type: ignore[no-any-return]
    return codec


def check_whole(name: str, number: object, least: int) -> int:
    """`number`, if it is an integer of at least `least`."""
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise InputError(f"{name} must be an integer from {least}, not {number!r}")
    return number


def checksum_of(*facts: object) -> int:
    return zlib.crc32(repr(facts).encode())
