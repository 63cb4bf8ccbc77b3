"""Where the parameters of a bucket lie in it, and where their bodies lie in the messages."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from .. import Codec, Identity
from ..codec import Call
from ..errors import StateError
from ..exchange import DTYPES, own_noise
from .engine import engine_of
from .memory import Entry, Memory, Part
from .message import head_bytes
from .telemetry import Counters

Form = Literal["dense", "all_gather", "two_step", "noop"]


@dataclass(eq=False)
class Piece:
    """Entries that one body holds: a parameter, or what one owner has of it."""

    part: Part  # entries of the parameter
    entries: slice  # of the bucket
    body: slice  # of the section
    call: Call = field(default_factory=Call)  # head starts for the thresholds of a top-k,
    second_call: Call = field(default_factory=Call)  # and for those of the owner

    @property
    def inside(self) -> slice:
        return slice(self.part.start, self.part.stop)


@dataclass(eq=False)
class Slot:
    """A parameter of the bucket."""

    index: int
    entry: Entry
    codec: Codec
    encoder: Codec  # `codec` with this rank's own rounding noise,
    second_encoder: Codec  # and with that of the owner
    entries: slice  # of the bucket
    pieces: list[Piece] = field(default_factory=list)

    @property
    def dense(self) -> bool:
        return isinstance(self.codec, Identity)


@dataclass(eq=False)
class Section:
    """A message, or the part of it that goes to one owner: a head, then the owner's bodies."""

    start: int
    size: int
    pieces: list[tuple[Slot, Piece]] = field(default_factory=list)


class Layout:
    """The plan of one bucket, valid until DDP rebuilds it or a warm-up phase ends.

    It keeps no address of the bucket itself: DDP may move it, and wrapper hooks replace it.

    Parameters
    ----------
    key : tuple
        What the layout was made for; another key needs another layout.
    index : int
        Of the bucket.
    buffer : Tensor
        The bucket's gradients, flat.
    parameters : sequence of Tensor
        In the bucket's order.
    codec_of : function of Entry
    memory : Memory
    form : {"dense", "all_gather", "two_step", "noop"}
    rank, world_size : int
        In the group that exchanges.
    """

    def __init__(
        self,
        key: tuple[Any, ...],
        index: int,
        buffer: torch.Tensor,
        parameters: Sequence[torch.Tensor],
        codec_of: Callable[[Entry], Codec],
        memory: Memory,
        form: Form,
        rank: int,
        world_size: int,
        counters: Counters,
    ) -> None:
        self.key, self.index, self.form = key, index, form
        self.agreed = False  # whether the ranks were compared
        self.rank, self.world_size = rank, world_size
        self.dtype = DTYPES[buffer.dtype]
        self.device = buffer.device
        self.dense_bytes = buffer.numel() * buffer.element_size()
        self.counters = Counters(counters)
        self.engine: Any = engine_of(buffer)
        self.slots: list[Slot] = []
        entry = 0
        for parameter in parameters:
            n = parameter.numel()
            known = memory.of(parameter)
            codec = codec_of(known)
            encoders = own_noise(codec, rank), own_noise(codec, world_size + rank)
            places = slice(entry, entry + n)
            self.slots.append(Slot(len(self.slots), known, codec, *encoders, places))
            entry += n
        if entry != buffer.numel():
            raise StateError(f"a bucket of {buffer.numel()} entries for {entry} parameter entries")
        self.head_bytes = self._aligned(head_bytes(len(self.slots)))
        self.sections: list[Section] = []
        if form in ("all_gather", "two_step"):
            self._place_bodies(memory)
        self.section_bytes = max((section.size for section in self.sections), default=0)
        self.message_bytes = sum(section.size for section in self.sections)
        self.checksum = zlib.crc32(repr(self._facts()).encode())
        self.engine.prepare(self)

    def _place_bodies(self, memory: Memory) -> None:
        two_step = self.form == "two_step"
        sizes = [self.head_bytes] * (self.world_size if two_step else 1)
        owned: list[list[tuple[Slot, Piece]]] = [[] for _ in sizes]
        for slot in self.slots:
            n = slot.entry.parameter.numel()
            parts = memory.parts(slot.entry, self.world_size) if two_step else [Part(0, n, 0)]
            for part in parts:
                start = slot.entries.start
                entries = slice(start + part.start, start + part.stop)
                size = slot.codec.body_size(part.stop - part.start, self.dtype)
                body = slice(sizes[part.owner], sizes[part.owner] + size)
                piece = Piece(part, entries, body)
                slot.pieces.append(piece)
                owned[part.owner].append((slot, piece))
                sizes[part.owner] = self._aligned(body.stop)
        start = 0
        for size, pieces in zip(sizes, owned, strict=True):
            self.sections.append(Section(start, size, pieces))
            start += size

    def _aligned(self, size: int) -> int:
        """Where the next body begins, after so many bytes."""
        alignment: int = self.engine.alignment
        return -(-size // alignment) * alignment

    def place(self, slot: Slot, piece: Piece) -> slice:
        """Of a body, in the message of all sections."""
        start = self.sections[piece.part.owner].start
        return slice(start + piece.body.start, start + piece.body.stop)

    def fold_seconds(self) -> None:
        """Give up the second residuals of parts that this rank does not own any more."""
        for slot in self.slots:
            mine = [piece.part for piece in slot.pieces if piece.part.owner == self.rank]
            keeps = self.form == "two_step" and mine and not slot.dense
            slot.entry.fold(mine[0] if keeps else None, self.world_size)

    def _facts(self) -> tuple[Any, ...]:
        slots = [
            (slot.codec.to_dict(), slot.entries.stop, [(p.part, p.body.stop) for p in slot.pieces])
            for slot in self.slots
        ]
        return self.dtype, self.form, slots
