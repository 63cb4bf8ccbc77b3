"""What the two workers of test_outer.py do."""

from __future__ import annotations

import copy
import io
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_workers import FailsOnRank1, Scenario, collectives, error_of

import tersegrad as tg
from tersegrad.exchange import HEAD, own_noise
from tersegrad.outer import OuterSync

WIDTH = 40
INNER_STEPS = 4
CODEC = tg.ChunkTopK(k=16, chunk=512, values=tg.Quantize(bits=2))
NOISY = tg.Quantize(bits=4, rounding="stochastic", seed=3)
SCENARIOS: dict[str, Scenario] = {}
Tensors = dict[str, torch.Tensor]


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__] = function
    return function


def network(seed: int = 7, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)).to(dtype)


class Compiled(nn.Module):
    """Names its parameters as torch.compile does."""

    def __init__(self) -> None:
        super().__init__()
        self._orig_mod = network()


def train_one(model: nn.Module, rank: int, step: int) -> float:
    """One step of SGD on this rank's own batch."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    dtype = next(model.parameters()).dtype
    loss = (model(torch.randn(8, WIDTH, generator=generator).to(dtype)) - 0.1).square().sum()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.001 * parameter.grad
            parameter.grad = None
    return float(loss.detach())


def train(model: nn.Module, sync: OuterSync, rank: int, steps: range) -> list[bool]:
    met = []
    for step in steps:
        train_one(model, rank, step)
        met.append(sync.step())
    return met


def weights(model: nn.Module) -> Tensors:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def simulate(rounds: int, codec: tg.Codec, **options: Any) -> Tensors:
    """The workers' common weights, from compress and decompress in one process."""
    outer_lr, momentum = options.get("outer_lr", 0.7), options.get("momentum", 0.9)
    anchor = {name: p.detach() for name, p in network().named_parameters()}
    velocity = {name: torch.zeros_like(p) for name, p in anchor.items()}
    residuals = [{name: torch.zeros_like(p) for name, p in anchor.items()} for _ in range(2)]
    for number in range(rounds):
        means = {name: torch.zeros_like(p) for name, p in anchor.items()}
        for rank in range(2):
            model = network()
            model.load_state_dict(anchor)
            for step in range(number * INNER_STEPS, (number + 1) * INNER_STEPS):
                train_one(model, rank, step)
            for name, parameter in model.named_parameters():
                residual = residuals[rank][name].mul_(options.get("residual_decay", 1.0))
                exact = parameter.dim() < 2
                payload = tg.compress(
                    anchor[name] - parameter.detach(),
                    tg.Identity() if exact else own_noise(codec, rank),
                    residual=None if exact else residual,
                    step=number,
                )
                tg.decompress(payload, out=means[name], accumulate=True, scale=0.5)
        for name, mean in means.items():
            velocity[name] = velocity[name] * momentum + mean
            nesterov = mean + velocity[name] * momentum
            update = nesterov if options.get("nesterov", True) else velocity[name]
            anchor[name] = anchor[name] - update * outer_lr
    return anchor


# --- What a synchronisation does. ---


@scenario
def followed(rank: int) -> Any:
    """Every codec and outer optimizer beside the simulation."""
    chosen: list[tuple[tg.Codec, dict[str, Any]]] = [
        (CODEC, {}),
        (CODEC, {"momentum": 0.0, "outer_lr": 1.0, "residual_decay": 0.95}),
        (CODEC, {"nesterov": False, "momentum": 0.5}),
        (tg.Identity(), {"momentum": 0.0, "outer_lr": 1.0}),
        (NOISY, {}),
        (tg.TopK(density=0.05, values=tg.Sign()), {}),
        (tg.RandomK(density=0.1), {}),
    ]
    results = {}
    for codec, options in chosen:
        model = network(seed=7 + rank)  # the workers start apart
        sync = OuterSync(model, INNER_STEPS, codec, **options)
        train(model, sync, rank, range(3 * INNER_STEPS))
        simulated = simulate(3, codec, **options)
        results[f"{codec!r} {options}"] = {"weights": weights(model), "simulated": simulated}
    return results


@scenario
def schedule(rank: int) -> Any:
    model = network()
    sync = OuterSync(model, INNER_STEPS, CODEC)
    with collectives() as calls:
        met = train(model, sync, rank, range(10))
    parts = list(network().parameters())
    bodies = sum((CODEC if p.dim() >= 2 else tg.Identity()).body_size(p.numel()) for p in parts)
    return {
        "met": met,
        "calls": calls,
        "stats": sync.stats(),
        "message": sync.message_bytes,
        "arithmetic": HEAD.size + len(parts) + bodies,
        "dense": 10 * sum(p.nbytes for p in parts),
    }


@scenario
def learning(rank: int) -> Any:
    model = network()
    sync = OuterSync(model, INNER_STEPS, CODEC, outer_lr=1.0, momentum=0.5)
    losses = [(train_one(model, rank, rank), sync.step())[0] for _ in range(200)]
    return {"losses": losses, "stats": sync.stats(), "weights": weights(model)}


@scenario
def half_precision(rank: int) -> Any:
    results = {}
    for dtype in (torch.bfloat16, torch.float16):
        model = network(dtype=dtype)
        sync = OuterSync(model, 2, CODEC)
        still = weights(model)
        for _ in range(4):
            sync.step()
        results[str(dtype)] = {"start": still, "still": weights(model)}
        train(model, sync, rank, range(6))
        results[str(dtype)].update(moved=weights(model), anchor=sync.state_dict()["anchor"])
    return results


@scenario
def other_tensors(rank: int) -> Any:
    """Buffers, frozen parameters, names inside DDP and torch.compile."""
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH))
    model.register_buffer("constant", torch.full((3,), float(rank)))
    model.register_buffer("flags", torch.tensor([rank == 0, True]))
    model[0].weight.requires_grad_(False)
    sync = OuterSync(model, 2, CODEC, rules={"2.*": tg.Sign()})
    started = weights(model)
    train_one(model, rank, 0)
    sync.step()
    train_one(model, rank, 1)
    before = weights(model)
    sync.step()
    return {
        "started": started,
        "before": before,
        "after": weights(model),
        "residuals": list(sync.state_dict()["residuals"]),
        "wrapped": list(OuterSync(DistributedDataParallel(network())).state_dict()["anchor"]),
        "compiled": list(OuterSync(Compiled()).state_dict()["anchor"]),
    }


# --- Numbers that are not finite, workers that differ. ---


@scenario
def not_finite(rank: int) -> Any:
    results = {}
    for nonfinite in ("error", "skip"):
        model = network()
        sync = OuterSync(model, 2, CODEC, nonfinite=nonfinite)
        train(model, sync, rank, range(2))
        before = sync.state_dict()
        train_one(model, rank, 2)
        sync.step()
        train_one(model, rank, 3)
        alone = copy.deepcopy(model)
        if rank == 1:
            with torch.no_grad():
                model[2].weight[3, 3] = float("nan")
        raised = error_of(sync.step) if nonfinite == "error" else sync.step()
        results[nonfinite] = {
            "before": before,
            "after": sync.state_dict(),
            "raised": raised,
            "skipped": sync.stats()["skipped"],
            "weights": weights(model),
            "alone": weights(alone),
        }
        if nonfinite == "error":
            model.load_state_dict(alone.state_dict())
            results["again"] = (sync.step(), weights(model))
        else:
            with torch.no_grad():
                model[0].bias.fill_(float("inf"))
            sync.step()
            results["nobody left"] = error_of(sync.step)
    return results


@scenario
def disagreements(rank: int) -> Any:
    broken = OuterSync(network(), 1, FailsOnRank1())
    behind = OuterSync(network(), 1, CODEC)
    behind.syncs += rank
    larger = nn.Linear(WIDTH + rank, WIDTH)
    return {
        "broken": error_of(broken.step),
        "behind": error_of(behind.step),
        "codec": error_of(lambda: OuterSync(network(), 30, tg.TopK(k=5 + rank))),
        "rules": error_of(lambda: OuterSync(network(), rules={f"{rank}*": CODEC})),
        "other": error_of(lambda: OuterSync(network(), 30 + rank)),
        "model": error_of(lambda: OuterSync(larger)),
    }


# --- Checkpoints. ---


@scenario
def resume(rank: int) -> Any:
    results = {}
    for name, codec in (("top-k", CODEC), ("stochastic", NOISY)):
        straight = network()
        train(straight, OuterSync(straight, INNER_STEPS, codec), rank, range(14))
        first = network()
        sync = OuterSync(first, INNER_STEPS, codec)
        train(first, sync, rank, range(6))  # in the middle of a round
        file = io.BytesIO()
        torch.save({"model": first.state_dict(), "sync": sync.state_dict()}, file)
        train(first, sync, rank, range(5))  # what was saved is a copy
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        second = network(seed=1)
        sync = OuterSync(second, INNER_STEPS, codec)
        second.load_state_dict(saved["model"])
        sync.load_state_dict(saved["sync"])
        met = train(second, sync, rank, range(6, 14))
        results[name] = {"straight": weights(straight), "resumed": weights(second), "met": met}
    return results


@scenario
def checkpoint_errors(rank: int) -> Any:
    model = network()
    sync = OuterSync(model, INNER_STEPS, CODEC)
    train(model, sync, rank, range(6))
    saved = sync.state_dict()
    anchor = saved["anchor"]
    renamed = {("head.weight" if name == "2.weight" else name): t for name, t in anchor.items()}
    wrong = {
        "not a state": {"model": 1},
        "version": {**saved, "version": 2},
        "rank": {**saved, "rank": 1 - rank},
        "world size": {**saved, "world_size": 3},
        "names": {**saved, "anchor": renamed},
        "shape": {**saved, "momentum": {**saved["momentum"], "0.weight": torch.zeros(2)}},
        "other momentum": {**saved, "momentum": {}},
    }
    errors = {
        name: error_of(lambda state=state: sync.load_state_dict(state))
        for name, state in wrong.items()
    }
    train_one(model, rank, 6)
    errors["model moved"] = error_of(lambda: sync.load_state_dict(saved))
    return {"errors": errors, "saved": saved, "after": sync.state_dict()}
