"""What the two workers of test_fsdp.py do."""

from __future__ import annotations

import io
from typing import Any

import torch
import torch.distributed as dist
from devices import EMULATION
from fsdp_models import (
    CODEC,
    NOISY,
    WIDTH,
    batch,
    descend,
    gradients,
    loss_of,
    network,
    sharded,
    simulate,
    train,
    weights,
)
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.tensor import Shard
from two_workers import FailsOnRank1, Scenario, collectives, error_of

import tersegrad as tg
from tersegrad.device import serving
from tersegrad.exchange import HEAD
from tersegrad.fsdp import compress
from tersegrad.fsdp_exchange import CompressedReduceScatter

CPU = torch.device("cpu")
SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__] = function
    return function


# --- Without loss: nothing changes. ---


@scenario
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


@scenario
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


@scenario
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


@scenario
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


@scenario
def one_collective_for_each_module(rank: int) -> Any:
    model = sharded()
    compress(model, CODEC)
    train(model, rank, range(1))
    with collectives() as calls:
        train(model, rank, range(1, 3))
    return [call for call in calls if "all_gather" not in call]  # which bring the parameters


@scenario
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


@scenario
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


@scenario
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


@scenario
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


@scenario
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


@scenario
def failures(rank: int) -> Any:
    broken, differing, behind = sharded(), sharded(), sharded()
    compress(broken, FailsOnRank1())
    compress(differing, tg.TopK(density=0.01 * (1 + rank)))
    compress(behind, CODEC)._exchanges[0].step += rank
    return {
        name: error_of(lambda model=model: train(model, rank, range(1)))
        for name, model in (("broken", broken), ("differing", differing), ("behind", behind))
    }


@scenario
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


@scenario
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


@scenario
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


# --- Gradients on a device. ---


@scenario
def on_a_device(rank: int) -> Any:
    """The host's memory through the device's code, beside the host: four steps, the third with a NaN on rank 1."""

    def run(codec: tg.Codec, error_feedback: bool) -> Any:
        model = sharded()
        state = compress(model, codec, error_feedback=error_feedback)
        for step in range(4):
            loss = loss_of(model, batch(rank, step))
            if (step, rank) == (2, 1):
                loss = loss * float("nan")
            loss.backward()
            lost = [bool(g.isnan().all()) for g in gradients(model).values()]
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.grad.to_local().nan_to_num_(0.0)
            descend(model)
        saved = state.state_dict()
        return {
            "weights": weights(model),
            "residuals": saved["residuals"],
            "lost": lost,
            "nonfinite": state.stats()["nonfinite"],
            "ledger": all(exchange.ledger is not None for exchange in state._exchanges),
        }

    results = {}
    for codec in (CODEC, NOISY, tg.Sign()):
        for error_feedback in (True, False):
            on_host = run(codec, error_feedback)
            with serving("cpu", EMULATION):
                pair = {"host": on_host, "device": run(codec, error_feedback)}
            results[f"{codec!r}, {error_feedback}"] = pair
    return results


@scenario
def disagreement_on_a_device(rank: int) -> Any:
    with serving("cpu", EMULATION):
        model = sharded()
        state = compress(model, CODEC)
        train(model, rank, range(1))
        for exchange in state._exchanges:
            exchange.step += 3 * rank
        loss_of(model, batch(rank, 1)).backward()
        nan = [bool(g.isnan().all()) for g in gradients(model).values()]
        return {"nan": nan, "error": error_of(state.stats)}
