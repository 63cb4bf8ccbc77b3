"""The process groups of a state, copies of them for the worker, and their collectives."""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from ..errors import StateError
from ..in_flight import lend

Group: TypeAlias = Any  # a ProcessGroup, or the gloo backend that is the worker's copy of one
GroupOrPair: TypeAlias = Any  # None, a ProcessGroup, or a pair of them


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
    node_size : int
        Ranks of a node; 1 without nodes.
    """

    hook: Group
    exchange: Group | None
    node_size: int = 1
    nodes: bool = False
    _copies: dict[str, Group] = field(default_factory=dict)

    @classmethod
    def of(cls, given: GroupOrPair) -> Groups:
        if not isinstance(given, tuple):
            group = given or dist.group.WORLD
            if group is None:
                raise StateError(
                    "no process group: call torch.distributed.init_process_group first"
                )
            size_of(group)
            return cls(group, group)
        inside, between = given
        size = size_of(inside)
        if dist.get_rank(inside) != 0:
            return cls(inside, None, size, True)
        outside = between is None or between is dist.GroupMember.NON_GROUP_MEMBER
        if outside or dist.get_rank(between) < 0:
            raise StateError(
                "rank 0 of the group inside a node leads it, and must be in the group between "
                "nodes: process_group=(inside, between)"
            )
        return cls(inside, between, size, True)

    def place(self) -> tuple[int, int]:
        """Rank and number of ranks where compressed messages travel."""
        if self.exchange is None:
            return 0, 1
        return dist.get_rank(self.exchange), size_of(self.exchange)

    def has_gloo(self, device: torch.device) -> bool:
        """Whether collectives on tensors of a device block a thread of the host."""
        return dist.is_gloo_available() and isinstance(
            self.hook._get_backend(device), dist.ProcessGroupGloo
        )

    def copy(self, which: str, device: torch.device) -> Group:
        """A group of the ranks of `hook` or `exchange`, for the worker alone.

        All its ranks come here at the first bucket that needs it. It is made without
        `torch.distributed.new_group`, which either all ranks of the program must call, or whose
        names differ between ranks that are in different numbers of groups, so that they wait for
        each other. Where there is no gloo there is no worker: the group itself.
        """
        group = getattr(self, which)
        if not self.has_gloo(device):
            return group
        if which not in self._copies:
            token = torch.tensor([time.time_ns()])
            gathered = token.new_empty(size_of(group))
            all_gather(group, gathered, token).wait()
            ranks = dist.get_process_group_ranks(group)
            name = f"tersegrad/{ranks}/{int(gathered[0])}"
            store = distributed_c10d.PrefixStore(name, distributed_c10d._get_default_store())
            self._copies[which] = dist.ProcessGroupGloo(
                store,
                dist.get_rank(group),
                size_of(group),
                timeout=group._get_backend(device).options._timeout,
            )
        return self._copies[which]


def size_of(group: Group) -> int:
    try:
        return dist.get_world_size(group)
    except (ValueError, RuntimeError) as error:
        raise StateError(
            "the state's process group was destroyed: set state.process_group to the new one "
            f"(None is the default group). {error}"
        ) from error


def agree(group: Group, device: torch.device, facts: dict[str, Any]) -> int:
    """Compare the ranks; `StateError` on all of them if they differ. Returns the bytes sent.

    Messages of different sizes make gloo abort the process, so this comes before the first one.
    """
    numbers = [
        fact if isinstance(fact, int) else zlib.crc32(repr(fact).encode())
        for fact in facts.values()
    ]
    own = torch.tensor(numbers, dtype=torch.int64, device=device)
    gathered = own.new_empty(group.size() * len(numbers))
    all_gather(group, gathered, own).wait()
    rows = gathered.view(-1, len(numbers)).tolist()
    for subject, column in zip(facts, zip(*rows, strict=True), strict=True):
        others = [rank for rank, value in enumerate(column) if value != column[0]]
        if others:
            raise StateError(
                f"the ranks disagree about the {subject}: rank 0 has another than ranks {others}. "
                "Give every rank the same CompressionState and the checkpoint of the same step; "
                f"this rank has {facts[subject]}"
            )
    return own.numel() * own.element_size()


# --- Collectives on a group, or on the worker's copy of one: each returns its Work. ---


def all_reduce(group: Group, buffer: torch.Tensor) -> Any:
    lent = lend(buffer)
    if isinstance(group, dist.ProcessGroup):
        return dist.all_reduce(lent, group=group, async_op=True)
    return group.allreduce([lent])


def all_gather(group: Group, gathered: torch.Tensor, own: torch.Tensor) -> Any:
    lent = lend(gathered), lend(own)
    if isinstance(group, dist.ProcessGroup):
        # By the name that this torch does not warn about.
        newer = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        return newer(*lent, group=group, async_op=True)
    return group._allgather_base(*lent)


def all_to_all(
    group: Group,
    received: torch.Tensor,
    own: torch.Tensor,
    received_sizes: list[int],
    own_sizes: list[int],
) -> Any:
    arguments = lend(received), lend(own), received_sizes, own_sizes
    if isinstance(group, dist.ProcessGroup):
        return dist.all_to_all_single(*arguments, group=group, async_op=True)
    return group.alltoall_base(*arguments)


def broadcast(group: Group, tensor: torch.Tensor) -> Any:
    """From rank 0 of the group."""
    lent = lend(tensor)
    if isinstance(group, dist.ProcessGroup):
        source = dist.get_global_rank(group, 0)
        return dist.broadcast(lent, source, group=group, async_op=True)
    return group.broadcast(lent, 0)
