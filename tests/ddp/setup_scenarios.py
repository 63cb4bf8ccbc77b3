"""Scenarios: how DDP may be set up."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
import torch.distributed as dist
from ddp_oracle import simulate
from ddp_workers import (
    CODEC,
    DDP,
    batch,
    deep_model,
    descend,
    everyone,
    hooked,
    loss_of,
    message_of,
    residuals_of,
    saved_and_loaded,
    scenario,
    small_buckets,
    train,
    weights,
)
from torch import nn

import tersegrad as tg
from tersegrad.ddp import CompressionState, compression_hook

BUCKETS: list[dict[str, Any]] = []


def watching_hook(state, bucket):  # type: ignore[no-untyped-def]
    """compression_hook, and a note of the bucket in BUCKETS."""
    BUCKETS.append(
        {
            "step": state.step,
            "index": bucket.index(),
            "last": bucket.is_last(),
            "shapes": [tuple(parameter.shape) for parameter in bucket.parameters()],
        }
    )
    future = compression_hook(state, bucket)
    assert isinstance(future, torch._C.Future)  # None would crash the process
    return future


def watched_run(rank: int, **options: Any) -> dict[str, Any]:
    """Four steps under `options` of DDP, and the simulation of them."""
    BUCKETS.clear()
    model = small_buckets(deep_model(), **options)
    state = CompressionState(CODEC, model)
    model.register_comm_hook(state, watching_hook)
    train(model, rank, range(4))
    return {
        "weights": weights(model),
        "simulated": simulate(deep_model(), CODEC, range(4)),
        "buckets": list(BUCKETS),
        "scratch": state.stats()["scratch_bytes"],
    }


class Branches(nn.Module):
    """Three layers, of which a forward pass uses those it is told."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.layers = nn.ModuleList(nn.Linear(48, 48) for _ in range(3))

    def forward(self, x: torch.Tensor, used: tuple[int, ...]) -> torch.Tensor:
        for index in used:
            x = torch.tanh(self.layers[index](x))
        return x


@scenario()
def rebuilt_buckets(rank: int) -> Any:
    return watched_run(rank)


@scenario()
def static_graph(rank: int) -> Any:
    return watched_run(rank, static_graph=True)


@scenario()
def find_unused_parameters(rank: int) -> Any:
    return watched_run(rank, find_unused_parameters=True)


@scenario()
def gradient_as_bucket_view(rank: int) -> Any:
    return watched_run(rank, gradient_as_bucket_view=True)


@scenario()
def unused_layers(rank: int) -> Any:
    """Layer 1 is used by rank 0 alone at step 1, layer 2 by nobody at step 1."""
    model = DDP(Branches(), find_unused_parameters=True)
    state = hooked(model)
    snapshots = []
    for used in ((0, 1, 2), (0, 1) if rank == 0 else (0,), (0, 1, 2)):
        model(batch(rank, 0), used).square().sum().backward()
        descend(model)
        snapshots.append(residuals_of(state))
    return {"weights": weights(model), "residuals": snapshots}


@scenario()
def accumulation(rank: int) -> Any:
    model = DDP(deep_model())
    state = hooked(model)
    with model.no_sync():
        loss_of(model, batch(rank, 0)).backward()
    calls_in_no_sync = state.stats()["steps"]
    loss_of(model, batch(rank, 1)).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]

    bare = deep_model()
    means = [torch.zeros_like(parameter) for parameter in bare.parameters()]
    for worker in range(2):
        for step in range(2):
            loss_of(bare, batch(worker, step)).backward()
        for parameter, mean in zip(bare.parameters(), means, strict=True):
            codec = CODEC if parameter.dim() >= 2 else tg.Identity()
            payload = tg.compress(parameter.grad, codec)
            tg.decompress(payload, out=mean, accumulate=True, scale=1 / 2)
            parameter.grad = None
    return {"calls": calls_in_no_sync, "gradients": gradients, "expected": means}


@scenario()
def uneven_inputs(rank: int) -> Any:
    """Rank 1 joins after 2 of 5 batches."""
    model = small_buckets(deep_model())
    state = hooked(model)
    with model.join():
        for step in range(5 if rank == 0 else 2):
            loss_of(model, batch(rank, step)).backward()
            descend(model)
        before = state.step, residuals_of(state)
    after = state.step, residuals_of(state)
    return {"before": before, "after": after, "weights": weights(model)}


@scenario()
def wrapped_hook(rank: int) -> Any:
    """fp16_compress_wrapper replaces the bucket's buffer by a half-precision one, at each step."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_wrapper

    model = small_buckets(deep_model())
    state = CompressionState(tg.Identity(), model)
    model.register_comm_hook(state, fp16_compress_wrapper(compression_hook))
    train(model, rank, range(3))
    return {"weights": weights(model), "stats": state.stats(), "start": weights(deep_model())}


@scenario()
def replicated(rank: int) -> Any:
    """The composable API, which wraps the parameters in a DDP of its own."""
    from torch.distributed._composable.replicate import replicate

    model = deep_model()
    state = CompressionState(CODEC, model)
    replicate(model)
    model.register_comm_hook(state, compression_hook)
    train(model, rank, range(3))
    return {
        "weights": weights(model),
        "simulated": simulate(deep_model(), CODEC, range(3)),
        "names": list(residuals_of(state)),
    }


@scenario()
def compiled_model(rank: int) -> Any:
    """torch.compile with the default reducer: names lose the compiler's prefix, too."""
    model = DDP(deep_model())
    compiled = torch.compile(model, backend="eager")
    state = CompressionState(CODEC, compiled)
    model.register_comm_hook(state, compression_hook)
    train(compiled, rank, range(2))
    return {
        "weights": weights(model),
        "simulated": simulate(deep_model(), CODEC, range(2)),
        "names": list(residuals_of(state)),
    }


@scenario()
def another_group(rank: int) -> Any:
    """A group of its own, then another one put in its place, as elastic training does."""
    first, second = dist.new_group(), dist.new_group()
    model = small_buckets(deep_model(), process_group=first)
    state = hooked(model)
    groups = [state.process_group is first]
    train(model, rank, range(2))
    model._update_process_group(second)
    state.process_group = second
    dist.destroy_process_group(first)
    train(model, rank, range(2, 5))
    return {
        "groups": groups,
        "weights": weights(model),
        "simulated": simulate(deep_model(), CODEC, range(5)),
    }


@scenario()
def one_hook_only(rank: int) -> Any:
    model = DDP(deep_model())
    hooked(model)
    second = message_of(lambda: hooked(model), RuntimeError)
    train(model, rank, range(2))

    from torch.nn.parallel.distributed import _MixedPrecision

    mixed = DDP(deep_model(), mixed_precision=_MixedPrecision(param_dtype=torch.bfloat16))
    return {
        "second": second,
        "mixed precision": message_of(lambda: hooked(mixed), RuntimeError),
        "weights": weights(model),
        "simulated": simulate(deep_model(), CODEC, range(2)),
    }


@scenario()
def channels_last(rank: int) -> Any:
    """A bucket holds such a weight in the order of its memory; a checkpoint in its shape."""

    def model() -> DDP:
        torch.manual_seed(7)
        convolution = nn.Conv2d(16, 16, 3).to(memory_format=torch.channels_last)
        return DDP(nn.Sequential(convolution), gradient_as_bucket_view=True)

    def steps(ddp: DDP, numbers: range) -> None:
        for number in numbers:
            x = batch(rank, number).repeat(1, 48).view(8, 16, 12, 12)
            ddp(x.contiguous(memory_format=torch.channels_last)).square().mean().backward()
            descend(ddp)

    straight, first, second = model(), model(), model()
    hooked(straight)
    steps(straight, range(4))
    state = hooked(first)
    steps(first, range(2))
    second.load_state_dict(first.state_dict())
    other = hooked(second)
    other.load_state_dict(saved_and_loaded(state.state_dict()))
    steps(second, range(2, 4))
    shape = tuple(residuals_of(state)["0.weight"].shape)
    strides = [tuple(p.stride()) for p in straight.parameters() if p.dim() == 4]
    return {
        "straight": weights(straight),
        "resumed": weights(second),
        "shape": shape,
        "strides": strides,
    }


@scenario()
def another_default_group(rank: int) -> Any:
    """The default group is destroyed and made again, as after a failure."""
    rendezvous = everyone(tempfile.mktemp(prefix="tersegrad-"))[0]
    model = small_buckets(deep_model())
    state = hooked(model, exchange="two_step")
    train(model, rank, range(2))
    kept = state.state_dict()
    dist.destroy_process_group()
    lost = message_of(state.state_dict, tg.StateError)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    again = small_buckets(deep_model())
    again.module.load_state_dict(model.module.state_dict())
    hooked(again, exchange="two_step").load_state_dict(kept)
    train(again, rank, range(2, 5))
    return {
        "lost": lost,
        "weights": weights(again),
        "simulated": simulate(deep_model(), CODEC, range(5), exchange="two_step"),
    }
