"""The process groups of a state, and whether its ranks are set up alike."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.distributed as dist

from ..errors import StateError
from .exchange import all_gather

Group: TypeAlias = dist.ProcessGroup
GroupOrPair: TypeAlias = Group | tuple[Group, Any] | None


@dataclass(eq=False)
class Groups:
    """Where a rank exchanges.

    Parameters
    ----------
    hook : ProcessGroup
        The hook issues its collectives here: the only group, or the one inside the node.
    exchange : ProcessGroup or None
        Compressed messages travel here: the only group, or the one between nodes; None on a rank
        that is not the leader of its node.
    inside_size : int
        Ranks of a node; 1 without nodes.
    """

    hook: Group
    exchange: Group | None
    inside_size: int
    _copies: dict[str, Group]

    @classmethod
    def of(cls, given: GroupOrPair) -> Groups:
        if not isinstance(given, tuple):
            group = given or dist.group.WORLD
            if group is None:
                raise StateError(
                    "no process group: call torch.distributed.init_process_group first"
                )
            size_of(group)
            return cls(group, group, 1, {})
        inside, between = given
        leads = dist.get_rank(inside) == 0
        member = between is not None and between is not dist.GroupMember.NON_GROUP_MEMBER
        if leads and (not member or dist.get_rank(between) < 0):
            raise StateError(
                "rank 0 of the group inside a node leads it, and must be in the group between nodes: "
                "process_group=(inside, between)"
            )
        return cls(inside, between if leads else None, size_of(inside), {})

    @property
    def nodes(self) -> bool:
        return self.hook is not self.exchange

    def place(self) -> tuple[int, int]:
        """Rank and number of ranks where compressed messages travel."""
        if self.exchange is None:
            return 0, 1
        return dist.get_rank(self.exchange), size_of(self.exchange)

    def copy(self, name: str) -> Group:
        """A group of the same ranks as `hook` or `exchange` for the worker alone.

        All ranks of it must come here at the same point: at the first bucket that needs it.
        """
        if name not in self._copies:
            group: Group = getattr(self, name)
            timeout = None
            if dist.get_backend(group) == "gloo":
                timeout = group._get_backend(torch.device("cpu")).options._timeout
            self._copies[name] = dist.new_group(
                dist.get_process_group_ranks(group),
                timeout=timeout,
                backend=dist.get_backend(group),
                use_local_synchronization=True,
            )
        return self._copies[name]


def size_of(group: Group) -> int:
    try:
        return dist.get_world_size(group)
    except (ValueError, RuntimeError) as error:
        raise StateError(
            "the state's process group was destroyed: set state.process_group to the new one "
            f"(None is the default group). {error}"
        ) from error


def agree(group: Group, device: torch.device, facts: dict[str, Any], who: str) -> int:
    """Compare the ranks; `StateError` on all of them if they differ. Returns the bytes sent.

    Messages of different sizes make gloo abort the process, so this comes before the first one.
    """
    numbers = [
        fact if isinstance(fact, int) else zlib.crc32(repr(fact).encode())
        for fact in facts.values()
    ]
    own = torch.tensor(numbers, dtype=torch.int64, device=device)
    gathered = own.new_empty(size_of(group) * len(numbers))
    all_gather()(gathered, own, group=group)
    rows = gathered.view(-1, len(numbers)).tolist()
    for subject, column in zip(facts, zip(*rows, strict=True), strict=True):
        others = [rank for rank, value in enumerate(column) if value != column[0]]
        if others:
            raise StateError(
                f"the ranks disagree about the {subject}: rank 0 has another than ranks {others}. "
                "Give every rank the same CompressionState and the checkpoint of the same step; this "
                f"rank has {who}"
            )
    return own.numel() * own.element_size()
