"""Scenarios: numbers that are not finite, and ranks that differ."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ddp_oracle import Simulation
from ddp_workers import (
    CODEC,
    DDP,
    LEARNING_RATE,
    batch,
    deep_model,
    descend,
    hooked,
    loss_of,
    memory_of,
    message_of,
    scenario,
    small_buckets,
    train,
    weights,
)
from exchange_scenarios import Halve
from torch import nn

import tersegrad as tg
from tersegrad.ddp import CompressionState, MomentumCorrection


@dataclass(frozen=True)
class Faulty(Halve, id=212):
    """Fails on rank 1."""

    def _encode(self, values: np.ndarray, body: np.ndarray, dtype: str, step: int) -> None:
        if dist.get_rank() == 1:
            raise ArithmeticError("the codec is broken")
        super()._encode(values, body, dtype, step)


@dataclass(frozen=True)
class FaultyOwner(Halve, id=213):
    """Fails on rank 1, but not in the main thread, where the first message is made."""

    def _encode(self, values: np.ndarray, body: np.ndarray, dtype: str, step: int) -> None:
        if dist.get_rank() == 1 and threading.current_thread() is not threading.main_thread():
            raise ArithmeticError("the owner is broken")
        super()._encode(values, body, dtype, step)


def spoil(parameter: torch.Tensor, value: float) -> Any:
    """Put a bad number into the next gradients of a parameter. Returns the handle to stop it."""

    def bad(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient.view(-1)[3] = value
        return gradient

    return parameter.register_hook(bad)


SPOILED = {1: ("4.weight", float("inf")), 2: ("6.bias", float("nan"))}


def train_spoiled(model: DDP, state: CompressionState, rank: int, steps: range) -> list[Any]:
    """Rank 1 has an infinity in a weight's gradient at step 1, a NaN in that of a bias at step 2.

    Neither step is applied, as with a GradScaler.
    """
    parameters = dict(model.module.named_parameters())
    notes = []
    for step in steps:
        name, value = SPOILED.get(step, (None, 0.0))
        handle = spoil(parameters[name], value) if name is not None and rank == 1 else None
        before = memory_of(state)
        loss_of(model, batch(rank, step)).backward()
        after = memory_of(state)
        changed = [n for n in before if not torch.equal(before[n], after[n])]
        notes.append(
            {
                "nan": [n for n, p in parameters.items() if bool(p.grad.isnan().all())],
                "finite": [n for n, p in parameters.items() if bool(p.grad.isfinite().all())],
                "changed": changed,
                "skipped": state.stats()["skipped_steps"],
                "nonfinite": state.stats()["nonfinite"],
            }
        )
        if handle is not None:
            handle.remove()
        if name is None:
            descend(model)
        model.zero_grad()
    return notes


WAYS: dict[str, dict[str, Any]] = {
    "all_gather": {},
    "two_step": {"exchange": "two_step"},
    "momentum": {"momentum": MomentumCorrection(0.5), "exchange": "two_step"},
    "no rollback": {"rollback": False},
}


@scenario()
def not_finite(rank: int) -> Any:
    results = {}
    for way, options in WAYS.items():
        model = small_buckets(deep_model())
        state = hooked(model, **options)
        notes = train_spoiled(model, state, rank, range(5))
        simulation = Simulation(
            deep_model(), CODEC, **{k: v for k, v in options.items() if k != "rollback"}
        )
        for steps in (range(1), range(3, 5)):  # the others never happened
            simulated = simulation.run(steps)
        results[way] = {
            "notes": notes,
            "weights": weights(model),
            "simulated": simulated,
            "names": [name for name, _ in model.module.named_parameters()],
        }
    return results


@scenario()
def not_finite_while_warming_up(rank: int) -> Any:
    """In the dense phase momentum alone is remembered, and undone."""
    model = small_buckets(deep_model())
    state = hooked(model, warmup_steps=3, momentum=MomentumCorrection(0.5))
    notes = train_spoiled(model, state, rank, range(4))
    return {"notes": notes, "weights": weights(model)}


@scenario()
def loss_scaling(rank: int) -> Any:
    """A scale that doubles every two steps, and is halved by an overflow on rank 1 at step 3.

    It is a power of two, so that nothing but the overflow may change a bit.
    """
    results: dict[str, Any] = {}
    for way, options in {k: v for k, v in WAYS.items() if k != "no rollback"}.items():
        for scaled in (True, False):
            scaler = torch.amp.GradScaler(
                "cpu", init_scale=1024.0, growth_interval=2, enabled=scaled
            )
            model = small_buckets(deep_model())
            state = hooked(model, scaler=scaler, **options)
            optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
            scales = []
            for step in range(6):
                x = batch(rank, step)
                if step == 3 and rank == 1:
                    x[0, 0] = float("inf")
                optimizer.zero_grad()
                scaler.scale(loss_of(model, x)).backward()
                if scaled or step != 3:
                    scaler.step(optimizer)
                scaler.update()
                scales.append(scaler.get_scale())
            saved = state.state_dict()
            results[f"{way} {scaled}"] = {
                "weights": weights(model),
                "scales": scales,
                "saved scale": saved["scale"],
                "memory": memory_of(state),
                "skipped": saved["skipped"],
            }
    return results


@scenario()
def disagreeing_ranks(rank: int) -> Any:
    """The states of the ranks differ; messages of different sizes would make gloo abort."""
    pairs: dict[str, Callable[[DDP], CompressionState]] = {
        "codec": lambda model: hooked(model, tg.TopK(density=(0.01, 0.02)[rank])),
        "min_size": lambda model: hooked(model, min_size=(1, 10**6)[rank]),
        "warmup": lambda model: hooked(model, warmup_steps=(0, 3)[rank]),
    }
    messages = {}
    for name, make in pairs.items():
        model = DDP(deep_model())
        make(model)
        loss = loss_of(model, batch(rank, 0))
        messages[name] = message_of(loss.backward, tg.StateError)

    model = DDP(deep_model())
    hooked(model).step = rank
    messages["step"] = message_of(loss_of(model, batch(rank, 0)).backward, tg.StateError)

    def choose(name: str, parameter: torch.Tensor) -> tg.Codec | None:
        if rank == 1:
            raise ArithmeticError("the rule is broken")
        return None

    model = DDP(deep_model())
    hooked(model, rules=choose)
    messages["rule"] = message_of(loss_of(model, batch(rank, 0)).backward, tg.StateError)

    model = DDP(deep_model())  # agreed at first, and then one rank goes elsewhere
    state = hooked(model)
    train(model, rank, range(2))
    state.step += rank
    messages["later"] = message_of(loss_of(model, batch(rank, 2)).backward, RuntimeError)
    return messages


@scenario()
def failing_codec(rank: int) -> Any:
    """Rank 1 fails when it encodes, and in two steps when it sends the mean on."""
    messages = {}
    for name, options in {
        "all_gather": {},
        "two_step": {"exchange": "two_step"},
        "owner": {"exchange": "two_step", "codec": FaultyOwner()},
    }.items():
        model = small_buckets(deep_model())
        hooked(model, options.pop("codec", Faulty()), **options)
        messages[name] = message_of(loss_of(model, batch(rank, 0)).backward, RuntimeError)
    return messages


@scenario()
def refused_gradients(rank: int) -> Any:
    double = DDP(deep_model(torch.float64))
    hooked(double)
    lookup = DDP(nn.Embedding(100, 20, sparse=True))
    hooked(lookup)
    indices = torch.arange(4)
    return {
        "float64": message_of(loss_of(double, batch(rank, 0).double()).backward, tg.InputError),
        "sparse": message_of(lookup(indices).sum().backward, tg.InputError),
    }
