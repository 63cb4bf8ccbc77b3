"""What the four workers of test_fsdp.py do: two copies of a model, each sharded over two ranks."""

from __future__ import annotations

from typing import Any

from fsdp_models import CODEC, batch, loss_of, network, sharded, train, weights
from torch.distributed._composable import replicate
from torch.distributed.device_mesh import init_device_mesh
from two_workers import Scenario, error_of

import tersegrad as tg
from tersegrad.fsdp import compress

SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__] = function
    return function


def replicated_mesh() -> Any:
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))


@scenario
def replicas(rank: int) -> Any:
    mesh = replicated_mesh()
    group = mesh["replicate"].get_group()
    native = sharded(mesh=mesh)
    train(native, rank, range(3))
    exact, model = sharded(mesh=mesh["shard"]), sharded(mesh=mesh["shard"])
    compress(exact, tg.Identity(), replicate_group=group)
    train(exact, rank, range(3))
    state = compress(model, CODEC, replicate_group=group)
    losses = train(model, rank, [rank] * 30)
    return {
        "native": weights(native),
        "exact": weights(exact),
        "weights": weights(model),
        "losses": losses,
        "stats": state.stats(),
        "residual entries": sum(r.numel() for r in state.state_dict()["residuals"].values()),
    }


@scenario
def replicas_resume(rank: int) -> Any:
    mesh = replicated_mesh()
    models, states = [], []
    for _ in range(3):
        models.append(sharded(mesh=mesh["shard"]))
        group = mesh["replicate"].get_group()
        states.append(compress(models[-1], CODEC, replicate_group=group))
    train(models[0], rank, range(4))
    train(models[1], rank, range(2))
    models[2].load_state_dict(models[1].state_dict())
    states[2].load_state_dict(states[1].state_dict())
    train(models[2], rank, range(2, 4))
    return {"straight": weights(models[0]), "resumed": weights(models[2])}


@scenario
def replicas_not_finite(rank: int) -> Any:
    mesh = replicated_mesh()
    model = sharded(mesh=mesh["shard"])
    state = compress(model, CODEC, replicate_group=mesh["replicate"].get_group())
    train(model, rank, range(2))
    before = state.state_dict()["residuals"]
    x = batch(rank, 2)
    if rank == 3:
        x[0, 0] = float("inf")
    loss_of(model, x).backward()
    local = {name: p.grad.to_local() for name, p in model.named_parameters()}
    return {
        "before": before,
        "after": state.state_dict()["residuals"],
        "nan": [name for name, g in local.items() if g.numel() and bool(g.isnan().all())],
        "finite": [name for name, g in local.items() if bool(g.isfinite().all())],
    }


@scenario
def native_replicas(rank: int) -> Any:
    """Torch averages replicas itself over a mesh of two dimensions; the shards are compressed."""
    mesh = replicated_mesh()
    plain, exact = sharded(mesh=mesh), sharded(mesh=mesh)
    compress(exact, tg.Identity())
    for model in (plain, exact):
        train(model, rank, range(3))
    composable = replicate(network())
    return {
        "plain": weights(plain),
        "exact": weights(exact),
        "replicate": error_of(lambda: compress(composable, CODEC)),
    }
