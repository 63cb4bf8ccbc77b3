"""Scenarios: the hook with gradients on a device, here the host's memory through the device's code, beside the hook on the host."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from by_hand import buckets
from ddp_workers import (
    CODEC,
    DDP,
    batch,
    deep_model,
    descend,
    hooked,
    loss_of,
    memory_of,
    message_of,
    saved_and_loaded,
    scenario,
    small_buckets,
    train,
    weights,
    wide_model,
)
from devices import EMULATION
from exchange_scenarios import Halve

import tersegrad as tg
from tersegrad.ddp import MomentumCorrection, Warmup
from tersegrad.device import serving
from tersegrad.errors import StateError


def both(run: Callable[[], Any]) -> dict[str, Any]:
    """What it gives on the host and on the device."""
    on_host = run()
    with serving("cpu", EMULATION):
        return {"host": on_host, "device": run()}


@scenario()
def device_equals_host(rank: int) -> Any:
    noisy = tg.Quantize(bits=2, rounding="stochastic", seed=5)
    momentum = MomentumCorrection(0.9, nesterov=True, clip_norm=1.0)
    runs: dict[str, dict[str, Any]] = {
        "topk": {},
        "topk, two_step": {"exchange": "two_step"},
        "noisy": {"codec": noisy},
        "noisy, two_step": {"codec": noisy, "exchange": "two_step", "error_feedback": False},
        "sign": {"codec": tg.Sign(), "rollback": False},
        "rotated": {"codec": tg.Rotated(2, block=256, scale="mmse", seed=5)},
        "random k": {"codec": tg.RandomK(density=0.1, seed=3), "exchange": "two_step"},
        "chunks": {
            "codec": tg.ChunkTopK(k=4, chunk=256, values=tg.Quantize(8)),
            "scratch_bytes": 0,
        },
        "momentum": {"momentum": momentum},
        "momentum, two_step": {"momentum": momentum, "exchange": "two_step"},
        "warmup": {"codec": tg.TopK(density=0.02), "warmup": Warmup(1, (1.0, 0.5))},
        "bfloat16": {"dtype": torch.bfloat16},
        "float16, two_step": {"dtype": torch.float16, "exchange": "two_step"},
    }
    results = {}
    for name, options in runs.items():
        dtype = options.pop("dtype", torch.float32)
        codec = options.pop("codec", CODEC)

        def run(codec: Any = codec, dtype: Any = dtype, options: Any = options) -> Any:
            model = small_buckets(wide_model().to(dtype))
            state = hooked(model, codec, **options)
            train(model, rank, range(4))
            stats = state.stats()
            return {
                "weights": weights(model),
                "memory": memory_of(state),
                "engine": type(state._reducer.layouts[0].engine).__name__,
                "nonfinite": stats["nonfinite"],
                "skipped": state.skipped,
            }

        results[name] = both(run)
    return results


@scenario()
def device_rolls_back(rank: int) -> Any:
    """One NaN on rank 1 at step 2; a gradient of zeros on rank 0 at step 3, on all ranks at step 4."""

    def run(exchange: Any, momentum: Any) -> Any:
        model = small_buckets(deep_model())
        state = hooked(model, exchange=exchange, momentum=momentum)
        lost = []
        for step in range(6):
            changed = model.module[4].weight
            change: Any = lambda gradient: gradient  # noqa: E731
            if (step, rank) == (2, 1):
                change = lambda g: g.index_fill(0, torch.tensor([3]), float("nan"))  # noqa: E731
            elif step == 4 or (step, rank) == (3, 0):
                change = torch.zeros_like
            handle = changed.register_hook(change)
            loss_of(model, batch(rank, step)).backward()
            handle.remove()
            means = [parameter.grad for parameter in model.parameters()]
            lost.append([bool(mean.isnan().any()) for mean in means])
            assert [bool(mean.isnan().all()) for mean in means] == lost[-1]
            for mean in means:
                mean.nan_to_num_(0.0)
            descend(model)
        return {
            "weights": weights(model),
            "memory": memory_of(state),
            "lost": lost,
            "skipped": state.skipped,
            "nonfinite": state.stats()["nonfinite"],
        }

    results = {}
    for exchange in ("all_gather", "two_step"):
        for momentum in (None, MomentumCorrection(0.5)):
            name = f"{exchange}, momentum={momentum is not None}"
            results[name] = both(lambda e=exchange, m=momentum: run(e, m))
    return results


@scenario()
def device_resumes(rank: int) -> Any:
    """A checkpoint of the device on the host, and the other way round."""

    def run(steps: range, saved: Any = None) -> Any:
        model = small_buckets(deep_model())
        state = hooked(model)
        if saved is not None:
            model.module.load_state_dict(saved["model"])
            state.load_state_dict(saved["state"])
        train(model, rank, steps)
        return saved_and_loaded({"model": model.module.state_dict(), "state": state.state_dict()})

    straight = run(range(4))
    results = []
    for first in (True, False):
        with serving("cpu", EMULATION) if first else contextlib.nullcontext():
            saved = run(range(2))
        with contextlib.nullcontext() if first else serving("cpu", EMULATION):
            results.append(run(range(2, 4), saved))
    return {"straight": straight, "resumed": results}


@scenario()
def device_failures(rank: int) -> Any:
    """What one rank cannot do is known on all of them, later than on the host."""
    results = {}
    with serving("cpu", EMULATION):
        model = DDP(deep_model())
        hooked(model, Halve())
        results["no form"] = message_of(lambda: train(model, rank, range(1)), tg.CodecError)
        model = small_buckets(deep_model())
        state = hooked(model)
        train(model, rank, range(2))
        if rank == 1:  # a message of another step
            state.step += 5
        loss_of(model, batch(rank, 2)).backward()
        results["nan"] = all(bool(p.grad.isnan().all()) for p in model.parameters())
        results["wrong"] = message_of(state.stats, StateError)
    return results


@scenario()
def buckets_by_hand(rank: int) -> Any:
    """What the tests on a GPU do, on the host and its emulation of a device."""
    place = torch.device("cpu")
    return {
        exchange: both(lambda exchange=exchange: buckets(rank, place, exchange))
        for exchange in ("all_gather", "two_step")
    }
