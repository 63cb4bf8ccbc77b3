"""Scenarios: checkpoints and copies."""

from __future__ import annotations

import copy
import io
import shutil
import tempfile
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
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
    same_tensors,
    saved_and_loaded,
    scenario,
    small_buckets,
    train,
    weights,
    wide_model,
)
from torch import nn

import tersegrad as tg
from tersegrad.ddp import (
    CompressionState,
    MomentumCorrection,
    Warmup,
    compression_hook,
    load_distributed,
)

RUNS: dict[str, dict[str, Any]] = {
    "top-k": {},
    "stochastic": {"codec": tg.Quantize(bits=2, rounding="stochastic")},
    "two_step, momentum": {"exchange": "two_step", "momentum": MomentumCorrection(0.5)},
    "warming up": {
        "warmup": Warmup(2, (1.0, 0.5, 0.25)),
        "momentum": MomentumCorrection(0.5, nesterov=True),
    },
}


def model_of(name: str) -> DDP:
    return small_buckets(wide_model() if name.startswith("two_step") else deep_model())


@scenario()
def resume(rank: int) -> Any:
    return {name: straight_and_resumed(rank, name) for name in RUNS}


@scenario(world_size=3)
def resume_of_three(rank: int) -> Any:
    return {name: straight_and_resumed(rank, name) for name in RUNS}


def straight_and_resumed(rank: int, name: str) -> dict[str, Any]:
    """Six steps, against three, a checkpoint, new objects, and three more."""
    options = RUNS[name]
    straight = model_of(name)
    hooked(straight, **options)
    train(straight, rank, range(6))

    first = model_of(name)
    state = hooked(first, **options)
    train(first, rank, range(3))
    checkpoint = saved_and_loaded({"model": first.module.state_dict(), "hook": state.state_dict()})

    second = model_of(name)
    second.module.load_state_dict(checkpoint["model"])
    hooked(second, **options).load_state_dict(checkpoint["hook"])
    train(second, rank, range(3, 6))
    return {
        "straight": weights(straight),
        "resumed": weights(second),
        "hook": checkpoint["hook"],
    }


@scenario()
def distributed_checkpoint(rank: int) -> Any:
    """The same through torch.distributed.checkpoint, where every rank has keys of its own."""
    results = {}
    for name in ("top-k", "two_step, momentum"):
        folder = everyone(tempfile.mkdtemp(prefix="tersegrad-"))[0]
        straight = model_of(name)
        hooked(straight, **RUNS[name])
        train(straight, rank, range(6))

        first = model_of(name)
        state = hooked(first, **RUNS[name])
        train(first, rank, range(3))
        dcp.save({"compression": state, "model": first.module}, checkpoint_id=folder)

        second = model_of(name)
        loaded = hooked(second, **RUNS[name])
        dcp.load({"compression": loaded, "model": second.module}, checkpoint_id=folder)
        same = same_tensors(memory_of(loaded), memory_of(state))
        train(second, rank, range(3, 6))

        third = model_of(name)
        third.module.load_state_dict(first.module.state_dict())
        other = hooked(third, **RUNS[name])
        load_distributed(other, folder)
        same = same and same_tensors(memory_of(other), memory_of(state))
        dist.barrier()
        lacking = message_of(lambda: load_distributed(other, folder, "nothing"), tg.StateError)  # noqa: B023
        dist.barrier()
        if rank == 0:
            shutil.rmtree(folder)
        results[name] = {
            "straight": weights(straight),
            "resumed": weights(second),
            "same": same,
            "lacking": lacking,
        }
    return results


@scenario()
def checkpoint_errors(rank: int) -> Any:
    model = DDP(deep_model())
    state = CompressionState(CODEC)
    model.register_comm_hook(state, compression_hook)
    train(model, rank, range(1))
    messages = {"unbound": message_of(state.state_dict, tg.StateError)}
    state.bind(model)
    train(model, rank, range(1, 2))
    good = state.state_dict()
    before = memory_of(state)

    def changed(**residuals: torch.Tensor | None) -> dict[str, Any]:
        own = {**good["ranks"][str(rank)]}
        own["residuals"] = {**own["residuals"], **residuals}
        own["residuals"] = {n: r for n, r in own["residuals"].items() if r is not None}
        return {**good, "ranks": {str(rank): own}}

    shapes = {**good["shapes"], "head.weight": [2, 2], "0.bias": [7]}
    del shapes["2.weight"]
    bad_states = {
        "names": changed(**{"0.weight": None, "head.weight": torch.zeros(2, 2)}),
        "shape": changed(**{"0.weight": torch.zeros(2, 2)}),
        "rank": {**good, "ranks": {str(1 - rank): good["ranks"][str(rank)]}},
        "ranks": {**good, "world_size": 5},
        "version": {**good, "version": 99},
        "not a state": {"anything": 1},
        "model": {**good, "shapes": shapes},
    }
    for name, bad in bad_states.items():
        messages[name] = message_of(lambda bad=bad: state.load_state_dict(bad), tg.StateError)
    messages["another model"] = message_of(
        lambda: CompressionState(CODEC, nn.Linear(48, 48)).load_state_dict(good), tg.StateError
    )
    return {"messages": messages, "unchanged": same_tensors(before, memory_of(state))}


@scenario()
def copies(rank: int) -> Any:
    """A deep copy and a pickle of a DDP model: torch drops the hook, the state goes along."""
    model = DDP(deep_model())
    hooked(model)
    train(model, rank, range(2))

    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    duplicates = {"deepcopy": copy.deepcopy(model), "pickle": torch.load(file, weights_only=False)}
    train(model, rank, range(2, 4))
    result = {"original": weights(model)}
    for name, duplicate in duplicates.items():
        ((_, state),) = duplicate._comm_hooks
        duplicate.register_comm_hook(state, compression_hook)
        train(duplicate, rank, range(2, 4))
        result[name] = weights(duplicate)

    group = dist.new_group()
    lonely = copy.deepcopy(CompressionState(CODEC, process_group=group))
    other = DDP(deep_model())
    other.register_comm_hook(lonely, compression_hook)
    result["no group"] = message_of(loss_of(other, batch(rank, 0)).backward, tg.StateError)
    scaled = copy.deepcopy(CompressionState(CODEC, scaler=torch.amp.GradScaler("cpu")))
    third = DDP(deep_model())
    third.register_comm_hook(scaled, compression_hook)
    result["no scaler"] = message_of(loss_of(third, batch(rank, 0)).backward, tg.StateError)
    return result
