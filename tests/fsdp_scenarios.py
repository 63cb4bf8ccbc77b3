"""What the workers of test_fsdp.py do."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._composable import replicate
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.tensor import Shard
from two_workers import FailsOnRank1, Scenario, collectives, error_of

import tersegrad as tg
from tersegrad.exchange import HEAD, own_noise
from tersegrad.fsdp import compress
from tersegrad.fsdp_exchange import CompressedReduceScatter

CPU = torch.device("cpu")
WIDTH = 37  # odd: the last rank keeps fewer rows
CODEC = tg.TopK(density=0.05, values=tg.Quantize(bits=4))
NOISY = tg.Quantize(bits=4, rounding="stochastic", seed=3)
TWO: dict[str, Scenario] = {}
FOUR: dict[str, Scenario] = {}


def scenario(registry: dict[str, Scenario]) -> Callable[[Scenario], Scenario]:
    def register(function: Scenario) -> Scenario:
        registry[function.__name__] = function
        return function

    return register


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.scale = nn.Parameter(torch.ones(1))  # rank 1 keeps none of it
        self.short = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.short:
            return torch.tanh(self.first(x))
        return x + self.scale * self.second(torch.tanh(self.first(x)))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def network() -> Network:
    torch.manual_seed(7)
    return Network()


def sharded(**options: Any) -> Any:
    """Three FSDP2 modules: the two blocks, and the root with the head."""
    model = network()
    for block in model.blocks:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def batch(rank: int, step: int) -> torch.Tensor:
    return torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1000 * step + rank))


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (model(x).float() - 0.1).square().sum()


def descend(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.003 * parameter.grad
            parameter.grad = None


def train(model: nn.Module, rank: int, steps: Iterable[int]) -> list[float]:
    losses = []
    for step in steps:
        loss = loss_of(model, batch(rank, step))
        loss.backward()
        descend(model)
        losses.append(float(loss.detach()))
    return losses


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.full_tensor().detach().clone() for name, p in model.named_parameters()}


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.full_tensor().clone() for name, p in model.named_parameters()}


def simulate(codec: tg.Codec, steps: range, error_feedback: bool) -> dict[str, torch.Tensor]:
    """The weights that all ranks should have, from compress and decompress in one process."""
    model = network()
    residuals = [
        {name: torch.zeros_like(p) for name, p in model.named_parameters()} for _ in range(2)
    ]
    for step in steps:
        sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for rank in range(2):
            loss_of(model, batch(rank, step)).backward()
            for name, parameter in model.named_parameters():
                compressed = parameter.dim() >= 2
                shares = [x.chunk(2) for x in (parameter.grad, residuals[rank][name], sums[name])]
                for gradient, residual, total in zip(*shares, strict=True):
                    payload = tg.compress(
                        gradient,
                        own_noise(codec, rank) if compressed else tg.Identity(),
                        residual=residual if compressed and error_feedback else None,
                        step=step,
                    )
                    tg.decompress(payload, out=total, accumulate=True)
                parameter.grad = None
        for name, parameter in model.named_parameters():
            parameter.grad = sums[name] / 2
        descend(model)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# --- Without loss: nothing changes. ---


@scenario(TWO)
def lossless(rank: int) -> Any:
    """Identity beside FSDP2 alone, however gradients are reduced."""
    results = {}
    options: dict[str, dict[str, Any]] = {
        "float32": {},
        "bfloat16": {"mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.bfloat16)},
        "float16": {"mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float16)},
        "bfloat16 parameters": {"mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32)},
        "kept unsharded": {"reshard_after_forward": False},
        "forced sum": {},
        "frozen": {},
        "accumulated": {},
    }
    for name, option in options.items():
        pair = []
        for compressed in (False, True):
            model = sharded(**option)
            if compressed:
                state = compress(model, tg.Identity())
            if name == "forced sum":
                for module in (*model.blocks, model):
                    module.set_force_sum_reduction_for_comms(True)
            if name == "frozen":
                model.blocks[0].first.weight.requires_grad_(False)
            if name == "accumulated":
                model.set_requires_gradient_sync(False)
                loss_of(model, batch(rank, 9)).backward()
                model.set_requires_gradient_sync(True)
            train(model, rank, range(3))
            pair.append(weights(model))
        results[name] = {"plain": pair[0], "compressed": pair[1], "stats": state.stats()}
    return results


@scenario(TWO)
def other_dimension(rank: int) -> Any:
    def place(parameter: nn.Parameter) -> Shard | None:
        return Shard(1) if parameter.dim() == 2 else None

    def model_of(codec: tg.Codec | None) -> tuple[nn.Module, Any]:
        torch.manual_seed(7)
        model = fully_shard(nn.Linear(WIDTH + 1, WIDTH), shard_placement_fn=place)
        return model, codec and compress(model, codec)

    def steps(model: nn.Module, numbers: range) -> None:
        for step in numbers:
            loss_of(model, torch.cat([batch(rank, step), torch.ones(8, 1)], 1)).backward()
            descend(model)

    plain, exact, straight = (model_of(codec)[0] for codec in (None, tg.Identity(), CODEC))
    for model in (plain, exact, straight):
        steps(model, range(4))
    first, state = model_of(CODEC)
    steps(first, range(2))
    saved = (first.state_dict(), state.state_dict())
    second, state = model_of(CODEC)
    second.load_state_dict(saved[0])
    state.load_state_dict(saved[1])
    steps(second, range(2, 4))
    return [weights(model) for model in (plain, exact, straight, second)]


# --- What travels. ---


@scenario(TWO)
def compressed(rank: int) -> Any:
    results = {}
    for codec in (CODEC, NOISY, tg.Sign(), tg.RandomK(density=0.1), tg.ChunkTopK(k=2, chunk=256)):
        for error_feedback in (True, False):
            model = sharded()
            state = compress(model, codec, error_feedback=error_feedback)
            train(model, rank, range(4))
            results[f"{codec!r}, {error_feedback}"] = {
                "weights": weights(model),
                "simulated": simulate(codec, range(4), error_feedback),
                "residuals": list(state.state_dict()["residuals"]),
            }
    return results


@scenario(TWO)
def learning(rank: int) -> Any:
    model, plain = sharded(), sharded()
    state = compress(model, CODEC)
    steps = [0] * 60
    return {
        "losses": train(model, rank, steps),
        "plain": train(plain, rank, steps),
        "norm": state.norm(),
        "stats": state.stats(),
    }


@scenario(TWO)
def one_collective_for_each_module(rank: int) -> Any:
    model = sharded()
    compress(model, CODEC)
    train(model, rank, range(1))
    with collectives() as calls:
        train(model, rank, range(1, 3))
    return [call for call in calls if "all_gather" not in call]  # which bring the parameters


@scenario(TWO)
def bytes_by_rules(rank: int) -> Any:
    rules = {"blocks.0.*": tg.Sign(), "*.bias": tg.Cast("float16"), "blocks.1.second*": CODEC}
    model = sharded()
    state = compress(model, tg.Quantize(bits=8), rules=rules)
    train(model, rank, range(1))
    chosen = {
        **dict.fromkeys(("blocks.0.first.weight", "blocks.0.second.weight"), tg.Sign()),
        **dict.fromkeys(("blocks.0.first.bias", "blocks.0.scale"), tg.Sign()),
        **dict.fromkeys(("blocks.1.first.bias", "head.bias"), tg.Cast("float16")),
        **dict.fromkeys(("blocks.1.first.weight", "head.weight"), tg.Quantize(bits=8)),
        "blocks.1.second.weight": CODEC,
        "blocks.1.scale": tg.Identity(),
    }
    expected = 3 * 2 * HEAD.size  # three modules, messages to two ranks
    for name, parameter in network().named_parameters():
        for share in parameter.chunk(2) if len(parameter) > 1 else (parameter, parameter[:0]):
            expected += 1 + chosen[name].body_size(share.numel())
    residuals = sorted(state.state_dict()["residuals"])
    return {"sent": state.stats()["sent_bytes"], "expected": expected, "residuals": residuals}


@scenario(TWO)
def unused_parameters(rank: int) -> Any:
    """Torch does not say which gradients are missing, unless it sends zeros for them."""
    results = {}
    for zeros in (False, True):
        model, plain = sharded(), sharded()
        state = compress(model, tg.Identity())
        for each in (model, plain):
            each.set_reduce_scatter_unused_params(zeros)
            each.blocks[0].short = True
            loss_of(each, batch(rank, 0)).backward()
        grads = [
            {n: p.grad.full_tensor() for n, p in each.named_parameters() if p.grad is not None}
            for each in (model, plain)
        ]
        results[zeros] = {"grads": grads, "stats": state.stats()}
    return results


# --- How it is reduced. ---


@scenario(TWO)
def operations(rank: int) -> Any:
    """The reduce-scatter as torch calls it, on numbers whose sums are known."""
    model = fully_shard(nn.Linear(4, 4, bias=False))
    compress(model, tg.Identity())
    reduce_scatter = model._get_fsdp_state()._fsdp_param_groups[0]._reduce_scatter_comm
    assert isinstance(reduce_scatter, CompressedReduceScatter)
    ops = {
        "sum": dist.ReduceOp.SUM,
        "avg": dist.ReduceOp.AVG,
        "premul": dist.ReduceOp.PREMUL_SUM(0.3),
    }
    results = {}
    group = dist.group.WORLD
    sent = [torch.randn(16, generator=torch.Generator().manual_seed(r)) for r in range(2)]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        parts = [x.to(dtype)[8 * rank : 8 * rank + 8].float() for x in sent]
        expected = {
            "sum": parts[0] + parts[1],
            "avg": (parts[0] + parts[1]) / 2,
            "premul": torch.tensor(0.3) * parts[0] + torch.tensor(0.3) * parts[1],
        }
        for name, op in ops.items():
            output = reduce_scatter.allocate((8,), dtype=dtype, device=torch.device("cpu"))
            returned = reduce_scatter(
                output_tensor=output, input_tensor=sent[rank].to(dtype), group=group, op=op
            )
            assert returned is None
            results[f"{name} {dtype}"] = (output, expected[name].to(dtype))
    output, given = torch.empty(8), sent[rank]
    errors = {
        "max": error_of(lambda: reduce_scatter(output, given, group, dist.ReduceOp.MAX)),
        "async": error_of(lambda: reduce_scatter(output, given, group, ops["sum"], True)),
        "float64": error_of(
            lambda: reduce_scatter(output.double(), given.double(), group, ops["sum"])
        ),
    }
    return {"results": results, "errors": errors}


@scenario(TWO)
def divide_factor(rank: int) -> Any:
    """A divide factor makes torch ask for PREMUL_SUM."""
    model = sharded()
    compress(model, tg.Identity())
    for module in (*model.blocks, model):
        module.set_gradient_divide_factor(8.0)
    loss_of(model, batch(rank, 0)).backward()
    plain = sharded()
    loss_of(plain, batch(rank, 0)).backward()
    return {"grads": gradients(model), "plain": gradients(plain)}


# --- Numbers that are not finite, ranks that differ. ---


@scenario(TWO)
def not_finite(rank: int) -> Any:
    model = sharded()
    state = compress(model, CODEC)
    train(model, rank, range(2))
    before = state.state_dict()["residuals"]

    def poisoned(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient[0, 0] = float("nan")  # in a row that rank 0 keeps
        return gradient

    def before_forward(head: nn.Linear, _: Any) -> None:
        head.weight.register_hook(poisoned)  # the unsharded weight

    if rank == 1:
        model.head.register_forward_pre_hook(before_forward)
    loss_of(model, batch(rank, 2)).backward()
    return {
        "before": before,
        "after": state.state_dict()["residuals"],
        "grads": gradients(model),
        "stats": state.stats(),
    }


@scenario(TWO)
def failures(rank: int) -> Any:
    broken, differing, behind = sharded(), sharded(), sharded()
    compress(broken, FailsOnRank1())
    compress(differing, tg.TopK(density=0.01 * (1 + rank)))
    compress(behind, CODEC)._exchanges[0].step += rank
    return {
        name: error_of(lambda model=model: train(model, rank, range(1)))
        for name, model in (("broken", broken), ("differing", differing), ("behind", behind))
    }


@scenario(TWO)
def refusals(rank: int) -> Any:
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    plain, once, custom = network(), sharded(), sharded()
    state = compress(once, CODEC)
    custom.blocks[1].set_custom_reduce_scatter(object())
    group = mesh["replicate"].get_group()
    mixed = nn.ModuleDict({"one": FullyShardedDataParallel(nn.Linear(4, 4), device_id=CPU)})
    errors = {
        "plain": error_of(lambda: compress(plain, CODEC)),
        "no module": error_of(lambda: compress("model", CODEC)),
        "fsdp1": error_of(lambda: compress(mixed, CODEC)),
        "twice": error_of(lambda: compress(once, CODEC)),
        "twice, otherwise": error_of(lambda: compress(once, CODEC, replicate_group=group)),
        "custom": error_of(lambda: compress(custom, CODEC)),
        "codec": error_of(lambda: compress(sharded(), "topk")),
        "class": error_of(lambda: compress(sharded(), tg.TopK)),
        "rule": error_of(lambda: compress(sharded(), CODEC, rules={"*.bias": 3})),
        "rules": error_of(lambda: compress(sharded(), CODEC, rules=[CODEC])),
        "min_size": error_of(lambda: compress(sharded(), CODEC, min_size=-1)),
        "group": error_of(lambda: compress(sharded(), CODEC, replicate_group="all")),
        "two dimensions": error_of(
            lambda: compress(sharded(mesh=mesh), CODEC, replicate_group=group)
        ),
        "rescale": error_of(lambda: state.rescale(float("nan"))),
    }
    unchanged = type(custom.blocks[0]._get_fsdp_state()._fsdp_param_groups[0]._reduce_scatter_comm)
    return {"errors": errors, "unchanged": unchanged.__name__}


# --- Checkpoints. ---


@scenario(TWO)
def resume(rank: int) -> Any:
    results = {}
    for name, codec in (("top-k", CODEC), ("stochastic", NOISY)):
        straight = sharded()
        compress(straight, codec)
        train(straight, rank, range(6))
        first = sharded()
        state = compress(first, codec)
        train(first, rank, range(3))
        file = io.BytesIO()
        torch.save({"model": first.state_dict(), "compression": state.state_dict()}, file)
        train(first, rank, range(1))  # what was saved is a copy
        file.seek(0)
        with torch.serialization.safe_globals(safe_classes()):
            saved = torch.load(file, weights_only=True)
        second = sharded()
        state = compress(second, codec)
        second.load_state_dict(saved["model"])
        state.load_state_dict(saved["compression"])
        train(second, rank, range(3, 6))
        results[name] = {
            "straight": weights(straight),
            "resumed": weights(second),
            "names": list(saved["compression"]["residuals"]),
        }
    return results


def safe_classes() -> list[Any]:
    """What torch needs to load DTensors, of which the model's own state dict consists."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    return [DTensor, DeviceMesh, DTensorSpec, TensorMeta, Shard]


@scenario(TWO)
def checkpoint_errors(rank: int) -> Any:
    model = sharded()
    state = compress(model, CODEC)
    train(model, rank, range(2))
    saved, other = state.state_dict(), compress(sharded(), CODEC, rules={"head*": tg.Identity()})
    residuals = saved["residuals"]
    wrong = {
        "not a state": {"model": 1},
        "version": {**saved, "version": 2},
        "rank": {**saved, "rank": 1 - rank},
        "world size": {**saved, "world_size": 3},
        "names": {**saved, "residuals": {**residuals, "gone.weight": torch.zeros(2)}},
        "shape": {**saved, "residuals": {**residuals, "head.weight": torch.zeros(2)}},
        "modules": {**saved, "steps": {"body": 1}},
    }
    errors = {
        name: error_of(lambda state_dict=state_dict: state.load_state_dict(state_dict))
        for name, state_dict in wrong.items()
    }
    errors["model"] = error_of(lambda: other.load_state_dict(saved))
    norm = state.norm()
    state.rescale(0.5)
    halved = state.norm()
    state.reset()
    return {
        "errors": errors,
        "unchanged": (saved, {**saved, "residuals": residuals}),
        "norms": (norm, halved, state.norm()),
    }


# --- Replicas of shards, on four ranks. ---


def replicated_mesh() -> Any:
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))


@scenario(FOUR)
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


@scenario(FOUR)
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


@scenario(FOUR)
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


@scenario(FOUR)
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
