"""What a rank remembers of each parameter: residual, second residual, velocity.

Buckets are rebuilt between steps, so a bucket index means nothing: this belongs to parameters, and
in a checkpoint to their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from ..errors import StateError
from .ledger import Ledger

#: A parameter of fewer entries than twice this has one owner in the two-step exchange.
PART_ENTRIES = 4096
#: Parts begin at multiples of this, so that blocks and chunks of a codec stay whole.
ALIGNMENT = 1024


@dataclass(eq=False)
class Kept:
    """A flat float32 tensor, in the order of the parameter's memory, and what it was a step ago."""

    now: torch.Tensor
    before: torch.Tensor | None = None

    def copy_aside(self) -> None:
        if self.before is None:
            self.before = torch.empty_like(self.now)
        self.before.copy_(self.now)

    def exchange(self) -> torch.Tensor:
        """Put `now` aside and return what was before, to be overwritten: saves the copy."""
        if self.before is None:
            self.before = torch.empty_like(self.now)
        self.now, self.before = self.before, self.now
        return self.before

    def restore(self) -> None:
        if self.before is not None:
            self.now, self.before = self.before, self.now


@dataclass(eq=False)
class Second(Kept):
    """The residual of what an owner sent on in the two-step exchange, of part of a parameter."""

    start: int = 0
    world_size: int = 1


@dataclass(frozen=True)
class Part:
    """Entries of a parameter that one rank sums up in the two-step exchange."""

    start: int
    stop: int
    owner: int


@dataclass(eq=False)
class Entry:
    """What is known of a parameter. Holding it keeps its id from being used again."""

    parameter: torch.Tensor
    name: str | None = None
    residual: Kept | None = None
    velocity: Kept | None = None
    second: Second | None = None

    def new(self, n: int | None = None) -> torch.Tensor:
        size = self.parameter.numel() if n is None else n
        return torch.zeros(size, dtype=torch.float32, device=self.parameter.device)

    def residual_of(self) -> Kept:
        if self.residual is None:
            self.residual = Kept(self.new())
        return self.residual

    def velocity_of(self) -> Kept:
        if self.velocity is None:
            self.velocity = Kept(self.new())
        return self.velocity

    def second_of(self, part: Part, world_size: int) -> Second:
        if self.second is None:
            now = self.new(part.stop - part.start)
            self.second = Second(now, None, part.start, world_size)
        return self.second

    def fold(self, part: Part | None, world_size: int) -> None:
        """Move a second residual of another part into the residual, which then sends it.

        A residual weighs 1 / world_size in the mean, a second one all of it.
        """
        second = self.second
        if second is None:
            return
        n = second.now.numel()
        place = (second.start, second.start + n, second.world_size)
        if part is not None and place == (part.start, part.stop, world_size):
            return
        residual = self.residual_of().now[second.start : second.start + n]
        residual.add_(second.now, alpha=float(second.world_size))
        self.second = None

    def shaped(self, flat: torch.Tensor) -> torch.Tensor:
        """A view in the parameter's shape. Buckets keep its memory order, such as channels_last."""
        shape, strides = self.parameter.shape, self.parameter.stride()
        if torch.empty_like(self.parameter, device="meta").stride() == strides:
            return flat.as_strided(shape, strides)  # dense, in whatever order
        return flat.view(shape)

    def all_kept(self) -> Iterator[Kept]:
        for kept in (self.residual, self.velocity, self.second):
            if kept is not None:
                yield kept


class Memory:
    """Every parameter's `Entry`, and the step that is open: it commits, or all of it is undone."""

    def __init__(self, rollback: bool = True) -> None:
        self.rollback = rollback
        self.bound = False
        self.spoiled = False  # the open step met a number that is not finite, on some rank
        self.ledger: Ledger | None = None  # for gradients on a device, which knows whether it did
        self._touched: list[Kept] = []
        self._entries: dict[int, Entry] = {}
        self._plans: dict[int, tuple[list[int], dict[int, list[Part]]]] = {}

    def of(self, parameter: torch.Tensor) -> Entry:
        entry = self._entries.get(id(parameter))
        if entry is None:
            entry = self._entries[id(parameter)] = Entry(parameter)
        return entry

    def bind(self, model: torch.nn.Module) -> None:
        """Take the names of `model`; forget the parameters that it does not have."""
        named = {}
        for name, parameter in named_in(model).items():
            entry = self.of(parameter)
            entry.name = name
            named[id(parameter)] = entry
        self._entries = named
        self._plans = {}
        self.bound = True

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    # --- The open step. ---

    def touch(self, kept: Kept) -> Kept:
        """To be called before a step changes `kept`."""
        if self.rollback:
            kept.copy_aside()
            self._touched.append(kept)
        return kept

    def advance(self, kept: Kept) -> tuple[torch.Tensor, torch.Tensor]:
        """What `kept` was, and where the step writes what it becomes."""
        before = kept.exchange()
        self._touched.append(kept)
        return before, kept.now

    def settle(self) -> bool:
        """Close the step: whether it was undone because it was spoiled, as far as the host knows."""
        undone = self.spoiled
        if undone and self.rollback:
            for kept in self._touched:
                kept.restore()
        if self.ledger is not None:
            self.ledger.settle(() if undone or not self.rollback else self._touched, undone)
        self._touched.clear()
        self.spoiled = False
        return undone

    # --- Parts. ---

    def parts(self, entry: Entry, world_size: int) -> list[Part]:
        """Who owns which entries of a parameter.

        It follows from the order of the parameters in the model and from nothing else, so that
        neither a rebuilt bucket nor a resumed run changes any bit.
        """
        loads, parts = self._plans.setdefault(world_size, ([0] * world_size, {}))
        for each in self._entries.values():
            if id(each) not in parts:
                parts[id(each)] = split(each.parameter.numel(), loads)
        return parts[id(entry)]

    # --- All of it. ---

    def rescale(self, factor: float) -> None:
        for entry in self:
            for kept in entry.all_kept():
                kept.now.mul_(factor)

    def reset(self) -> None:
        for entry in self:
            entry.residual = entry.velocity = entry.second = None

    def named(self, keeps: Callable[[Entry], bool]) -> dict[str, Entry]:
        """By name, the entries that `keeps` is true of."""
        if not self.bound:
            raise StateError(
                "parameter names are unknown: CompressionState(codec, model) or state.bind(model)"
            )
        entries = [entry for entry in self if keeps(entry)]
        named = {entry.name: entry for entry in entries if entry.name is not None}
        if len(named) < len(entries):
            shapes = [tuple(entry.parameter.shape) for entry in entries if entry.name is None]
            raise StateError(
                f"parameters of shapes {shapes} are not in the bound model: "
                "state.bind(model) with the whole model"
            )
        return named

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        return {"entries": list(self), "bound": self.bound, "rollback": self.rollback}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        """Ids are those of the copied parameters: a copied DDP model keeps its residuals."""
        self.__init__(kept["rollback"])  # type: ignore[misc]
        self._entries = {id(entry.parameter): entry for entry in kept["entries"]}
        self.bound = kept["bound"]


def split(n: int, loads: list[int]) -> list[Part]:
    """Cut `n` entries for the owners with the least load so far; adds to `loads`."""
    count = max(1, min(len(loads), n // PART_ENTRIES))
    cuts = [n * number // count // ALIGNMENT * ALIGNMENT for number in range(count)] + [n]
    owners = sorted(range(len(loads)), key=lambda rank: (loads[rank], rank))[:count]
    parts = [Part(*place) for place in zip(cuts, cuts[1:], sorted(owners), strict=False)]
    for part in parts:
        loads[part.owner] += part.stop - part.start
    return parts


def norm_of(entries: Sequence[Entry]) -> float:
    """The Euclidean norm of all residuals, the second ones too."""
    kept = [each for entry in entries for each in (entry.residual, entry.second) if each]
    norms = [float(torch.linalg.vector_norm(each.now, dtype=torch.float64)) for each in kept]
    return float(sum(norm * norm for norm in norms) ** 0.5)


def bare(model: torch.nn.Module) -> torch.nn.Module:
    """The module inside DDP and torch.compile."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), torch.nn.Module):
            model = inner
        else:
            return model


def named_in(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters by the names that the bare model gives them."""
    named = bare(model).named_parameters()
    return {name.replace("_orig_mod.", ""): parameter for name, parameter in named}
