"""Nodes: dense inside, compressed between their leaders, and the result broadcast inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..errors import StateError
from .groups import Group, Groups, all_reduce, broadcast
from .memory import Memory


def through_leader(
    buffer: torch.Tensor,
    inside_sum: Any,
    inside: Group,
    exchange: Callable[[], torch.Tensor] | None,
    memory: Memory,
) -> torch.Tensor:
    """What the worker does with a bucket.

    `exchange` is the leader's part, None on other ranks. Whether it failed, and whether the step is
    spoiled, is told to the node before the result, so that none of its ranks waits in vain.
    """
    inside_sum.wait()
    told = torch.zeros(2, dtype=torch.int64, device=buffer.device)
    error: Exception | None = None
    if exchange is not None:
        try:
            exchange()
        except Exception as raised:
            error = raised
        told[0], told[1] = int(error is not None), int(memory.spoiled)
        if memory.ledger is not None:
            told[1:].add_(memory.ledger.spoiled)
    broadcast(inside, told).wait()
    failed, spoiled = told.tolist()
    if error is not None:
        raise error
    if failed:
        raise StateError("the leader of this node failed: its own error says why")
    memory.spoiled = memory.spoiled or bool(spoiled)
    broadcast(inside, buffer).wait()
    return buffer


def start_inside(buffer: torch.Tensor, groups: Groups) -> Any:
    """The mean of the node, on its way."""
    buffer.div_(groups.node_size)
    return all_reduce(groups.hook, buffer)
