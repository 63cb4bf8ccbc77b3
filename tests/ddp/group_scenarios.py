"""Scenarios of three and four ranks: nodes, the two-step exchange, other numbers of ranks."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ddp_oracle import simulate
from ddp_workers import (
    CODEC,
    DDP,
    batch,
    deep_model,
    everyone,
    hooked,
    loss_of,
    memory_of,
    message_of,
    residuals_of,
    same_tensors,
    scenario,
    small_buckets,
    train,
    weights,
    wide_model,
)
from exchange_scenarios import Halve

import tersegrad as tg
from tersegrad.ddp import MomentumCorrection, Warmup, load_distributed, merge_states


@scenario(world_size=3)
def three_ranks(rank: int) -> Any:
    """All exchanges, and which one `auto` takes for a small and a large message."""
    results = {}
    for exchange in ("all_gather", "two_step"):
        model = small_buckets(wide_model())
        hooked(model, exchange=exchange)
        train(model, rank, range(3))
        results[exchange] = {
            "weights": weights(model),
            "simulated": simulate(wide_model(), CODEC, range(3), world_size=3, exchange=exchange),
        }
    forms = {}
    for name, codec in {"small": CODEC, "large": tg.Identity()}.items():
        wide = torch.nn.Sequential(torch.nn.Linear(48, 4_200), torch.nn.Linear(4_200, 48))
        model = DDP(wide)
        state = hooked(model, codec)
        train(model, rank, range(2))
        forms[name] = {bucket["exchange"] for bucket in state.stats()["buckets"]}
        results[f"auto {name}"] = {"weights": weights(model)}
    return {"results": results, "forms": forms}


def nodes(rank: int) -> tuple[Any, Any]:
    """Two nodes of two; rank 0 and rank 2 lead them."""
    insides = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    return insides[rank // 2], dist.new_group([0, 2])


@scenario(world_size=4)
def two_nodes(rank: int) -> Any:
    results = {}
    runs: dict[str, dict[str, Any]] = {
        "all_gather": {},
        "two_step": {"exchange": "two_step", "momentum": MomentumCorrection(0.5)},
    }
    pair = nodes(rank)
    for name, options in runs.items():
        model = small_buckets(wide_model())
        state = hooked(model, process_group=pair, **options)
        train(model, rank, range(4))
        simulated = simulate(wide_model(), CODEC, range(4), node_size=2, **options)
        straight = weights(model)

        resumed = small_buckets(wide_model())
        first = small_buckets(wide_model())
        half = hooked(first, process_group=pair, **options)
        train(first, rank, range(2))
        resumed.module.load_state_dict(first.module.state_dict())
        hooked(resumed, process_group=pair, **options).load_state_dict(half.state_dict())
        train(resumed, rank, range(2, 4))
        results[name] = {
            "weights": straight,
            "simulated": simulated,
            "resumed": weights(resumed),
            "residuals": list(residuals_of(state)),
            "sent": state.stats()["sent_bytes"],
        }
    warm = small_buckets(deep_model())
    hooked(warm, process_group=pair, warmup=Warmup(1, (1.0, 0.5)))
    train(warm, rank, range(3))
    results["warmup"] = {"weights": weights(warm)}
    return results


@dataclass(frozen=True)
class FaultyLeader(Halve, id=214):
    """Fails on rank 2, which leads a node."""

    def _encode(self, values: np.ndarray, body: np.ndarray, dtype: str, step: int) -> None:
        if dist.get_rank() == 2:
            raise ArithmeticError("the leader is broken")
        super()._encode(values, body, dtype, step)


@scenario(world_size=4)
def failing_leader(rank: int) -> Any:
    pair = nodes(rank)
    model = small_buckets(deep_model())
    hooked(model, FaultyLeader(), process_group=pair)
    broken = message_of(loss_of(model, batch(rank, 0)).backward, RuntimeError)

    model = small_buckets(deep_model())
    state = hooked(model, process_group=pair)
    train(model, rank, range(1))
    before = memory_of(state)
    x = batch(rank, 1)
    x[0, 0] = float("inf") if rank == 3 else 0.0
    loss_of(model, x).backward()
    kept = same_tensors(before, memory_of(state))

    model = small_buckets(deep_model())
    hooked(model, process_group=(pair[0], None))
    no_leader = ""
    if rank % 2 == 0:
        no_leader = message_of(loss_of(model, batch(rank, 0)).backward, tg.StateError)
    return {"broken": broken, "kept": kept, "skipped": state.skipped, "no leader": no_leader}


@scenario(world_size=4)
def failing_rule_in_a_node(rank: int) -> Any:
    """A rule raises on one rank, that leads its node or does not, at the first bucket or a later one."""
    found = {}
    pair = nodes(rank)
    for broken in (3, 2):
        for name in ("0.bias", "14.weight"):

            def choose(
                parameter: str, _: torch.Tensor, broken: int = broken, at: str = name
            ) -> tg.Codec | None:
                if rank == broken and parameter == at:
                    raise ArithmeticError("the rule is broken")
                return None

            model = small_buckets(deep_model())
            hooked(model, rules=choose, process_group=pair, exchange="all_gather")
            begin = time.monotonic()
            message = message_of(loss_of(model, batch(rank, 0)).backward, Exception)
            found[f"{broken} {name}"] = {"says": message, "took": time.monotonic() - begin}
    return found


def total_of(states: list[dict[str, Any]], name: str) -> torch.Tensor:
    """What all ranks together have not sent of a parameter, in float64."""
    parts = [own for state in states for own in state["ranks"].values()]
    return sum(own["residuals"][name].double() for own in parts)


@scenario(world_size=4)
def fewer_ranks(rank: int) -> Any:
    """Four ranks train; the first two, in a group of their own, go on from their state."""
    results: dict[str, Any] = {}
    pair = dist.new_group([0, 1])
    for exchange in ("all_gather", "two_step"):
        folder = everyone(tempfile.mkdtemp(prefix="tersegrad-"))[0]
        model = small_buckets(wide_model())
        momentum = MomentumCorrection(0.5)
        state = hooked(model, exchange=exchange, momentum=momentum)
        train(model, rank, range(3))
        dcp.save({"compression": state}, checkpoint_id=folder)
        states = everyone(state.state_dict())
        if rank < 2:
            smaller = small_buckets(wide_model(), process_group=pair)
            fewer = hooked(smaller, exchange=exchange, momentum=momentum)
            lone = message_of(lambda: fewer.load_state_dict(states[rank]), tg.StateError)  # noqa: B023
            fewer.load_state_dict(merge_states(states))
            mine = memory_of(fewer)
            load_distributed(fewer, folder)
            results[exchange] = {
                "old": states,
                "new": fewer.state_dict(),
                "same": same_tensors(mine, memory_of(fewer)),
                "lone": lone,
            }
            train(smaller, rank, range(3, 5))
            results[exchange]["weights"] = weights(smaller)
        dist.barrier()
        if rank == 0:
            shutil.rmtree(folder)
    return results
