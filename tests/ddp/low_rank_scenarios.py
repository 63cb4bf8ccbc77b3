"""Scenarios: LowRank parameters, whose factors are averaged."""

from __future__ import annotations

import os
from typing import Any

import torch
from ddp_workers import (
    DDP,
    batch,
    deep_model,
    descend,
    hooked,
    loss_of,
    message_of,
    recorded_collectives,
    residuals_of,
    scenario,
    small_buckets,
    train,
    weights,
)
from exchange_scenarios import Tiny, train_tiny
from torch import nn

import tersegrad as tg
from tersegrad.ddp import MomentumCorrection

RULES = {"*.bias": tg.Cast("bfloat16"), "2.weight": tg.TopK(0.1)}


def simulated(model: nn.Module, codec: tg.LowRank, steps: range, world_size: int = 2) -> Any:
    """What two ranks should have, from the codec's own pieces in float32; biases dense."""
    from tersegrad import _core

    kept: dict[str, Any] = {}
    for step in steps:
        gradients: list[dict[str, torch.Tensor]] = []
        for rank in range(world_size):
            loss_of(model, batch(rank, step, torch.float32)).backward()
            gradients.append({n: p.grad.flatten().clone() for n, p in model.named_parameters()})
            model.zero_grad()
        for name, parameter in model.named_parameters():
            own = [each[name] for each in gradients]
            bound = codec.for_shape(parameter.shape)
            n = parameter.numel()
            if parameter.dim() < 2 or n < 1024 or not bound.rows(n):
                mean = torch.zeros(n)
                for gradient in own:
                    mean += gradient / world_size
                parameter.grad = mean.view_as(parameter)
                continue
            columns, rows = bound.columns, bound.rows(n)
            assert columns is not None
            residuals, memory = kept.setdefault(
                name, ([torch.zeros(n) for _ in own], torch.zeros(columns * codec.rank))
            )
            ps = [torch.zeros(rows * codec.rank) for _ in own]
            qs = [torch.zeros(columns * codec.rank) for _ in own]
            place = [columns], [codec.rank]
            for gradient, residual, p, q in zip(own, residuals, ps, qs, strict=True):
                _core.lowrank_first(
                    [gradient.numpy()],
                    [residual.numpy()],
                    *place,
                    [codec.seed],
                    [memory.numpy()],
                    [p.numpy()],
                    [q.numpy()],
                )
            total = sum(ps[1:], ps[0])
            for residual, p, q in zip(residuals, ps, qs, strict=True):
                p.copy_(total)
                _core.lowrank_second([residual.numpy()], *place, 1, [p.numpy()], [q.numpy()])
            memory.copy_(sum(qs[1:], qs[0]) * (1 / world_size))
            mean = torch.zeros(n)
            p, q = ps[0].numpy(), memory.numpy()
            for residual in residuals:
                _core.lowrank_subtract([residual.numpy()], *place, [p], [q], 1)
            _core.lowrank_decode(p, q, columns, codec.rank, 1, mean.numpy(), False, 1.0)
            parameter.grad = mean.view_as(parameter)
        descend(model)
    return weights(model)


@scenario()
def factors_are_averaged(rank: int) -> Any:
    codec = tg.LowRank(2)
    model = small_buckets(deep_model())
    with recorded_collectives() as calls:
        state = hooked(model, codec)
        train(model, rank, range(5))
    return {
        "weights": weights(model),
        "simulated": simulated(deep_model(), codec, range(5)),
        "calls": calls,
        "stats": state.stats(),
        "residuals": residuals_of(state),
    }


@scenario()
def low_rank_options(rank: int) -> Any:
    runs: dict[str, dict[str, Any]] = {
        "brain": {"codec": tg.LowRank(2, factors="bfloat16")},
        "rules": {"codec": tg.LowRank(2), "rules": RULES},
        "momentum": {"codec": tg.LowRank(1), "momentum": MomentumCorrection(0.9)},
        "no feedback": {"codec": tg.LowRank(2), "error_feedback": False},
        "careful": {"codec": tg.LowRank(2), "rollback": False, "scratch_bytes": 0},
        "chosen": {
            "codec": tg.TopK(0.1),
            "rules": lambda name, p: tg.LowRank(1) if "0" in name else None,
        },
        "warmup": {"codec": tg.LowRank(2), "warmup_steps": 2},
        "mixed factors": {
            "codec": tg.LowRank(2),
            "rules": {"0.*": tg.LowRank(1, factors="bfloat16")},
        },
    }
    results = {}
    for name, options in runs.items():
        for dtype in (torch.float32, torch.bfloat16):
            model = small_buckets(deep_model(dtype))
            hooked(model, options["codec"], **{k: v for k, v in options.items() if k != "codec"})
            train(model, rank, range(6))
            results[f"{name} {dtype}"] = weights(model)
    return results


@scenario()
def low_rank_replicas(rank: int) -> Any:
    """Sixteen buckets, two all-reduces and a gather of each."""
    steps = 2000 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 400
    model = DDP(Tiny(), bucket_cap_mb=8 * 8 * 4 / 2**20)
    state = hooked(model, tg.LowRank(1), min_size=1)
    train_tiny(model, rank, steps)
    return {"weights": weights(model), "stats": state.stats(), "steps": steps}


@scenario()
def low_rank_five_hundred_steps(rank: int) -> Any:
    model = DDP(Tiny(4), bucket_cap_mb=8 * 8 * 4 / 2**20)
    hooked(model, tg.LowRank(2, factors="bfloat16"), min_size=1)
    train_tiny(model, rank, 500)
    return weights(model)


@scenario()
def low_rank_checkpoint(rank: int) -> Any:
    codec = tg.LowRank(2)
    whole = small_buckets(deep_model())
    hooked(whole, codec)
    train(whole, rank, range(8))
    first = small_buckets(deep_model())
    state = hooked(first, codec)
    train(first, rank, range(4))
    saved, parameters = state.state_dict(), first.module.state_dict()
    second = small_buckets(deep_model())
    second.module.load_state_dict(parameters)
    again = hooked(second, codec)
    again.load_state_dict(saved)
    train(second, rank, range(4, 8))
    other = hooked(small_buckets(deep_model()), tg.LowRank(1))
    refusal = message_of(lambda: other.load_state_dict(saved), tg.StateError)
    return {"whole": weights(whole), "resumed": weights(second), "saved": saved, "refusal": refusal}


@scenario()
def low_rank_nan(rank: int) -> Any:
    """One rank's gradient is not a number in one step: that step is as if it had not been."""
    model = small_buckets(deep_model())
    state = hooked(model, tg.LowRank(2))
    train(model, rank, range(3))
    before = weights(model), residuals_of(state), state.state_dict()["ranks"][str(rank)]["factors"]
    loss = loss_of(model, batch(rank, 3, torch.float32))
    if rank == 1:
        loss = loss * float("nan")
    loss.backward()
    spoiled = all(bool(p.grad.isnan().all()) for p in model.parameters())
    model.zero_grad()
    after = weights(model), residuals_of(state), state.state_dict()["ranks"][str(rank)]["factors"]
    skipped = state.skipped
    train(model, rank, range(4, 6))
    return {
        "before": before,
        "after": after,
        "spoiled": spoiled,
        "skipped": skipped,
        "weights": weights(model),
    }
