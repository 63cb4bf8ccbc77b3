"""What the two workers of test_ddp.py do. Each scenario runs in a process group of its own.

A scenario is a function of the rank. What it returns, or the traceback of what it raised, goes to a
file that the tests read.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import os
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817

import tersegrad as tg
from tersegrad.ddp import CompressionState, average_states, compression_hook
from tersegrad.ddp_message import own_noise

WORLD_SIZE = 2
LAYERS = 16
LEARNING_RATE = 0.1
Scenario = Callable[[int], Any]
SCENARIOS: dict[str, Scenario] = {}
CODEC = tg.TopK(density=0.05, values=tg.Quantize(bits=4))


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__] = function
    return function


def work(rank: int, folder: str, names: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("error", message=".*deprecated.*", category=FutureWarning)
    for name in names:
        rendezvous = f"file://{folder}/rendezvous-{name}"
        limit = timedelta(seconds=30)
        dist.init_process_group(
            "gloo", init_method=rendezvous, rank=rank, world_size=WORLD_SIZE, timeout=limit
        )
        try:
            result = {"value": SCENARIOS[name](rank)}
        except Exception:
            result = {"error": traceback.format_exc()}
        unfinished = Path(folder, f"{name}.{rank}.part")
        torch.save(result, unfinished)
        os.replace(unfinished, Path(folder, f"{name}.{rank}.pt"))
        dist.destroy_process_group()


# --- Models, data, training. ---


@dataclass(frozen=True)
class Halve(tg.Codec, id=211):
    """A codec that the package does not know: every entry as int8, in steps of `unit`."""

    unit: float = 0.01

    def body_size(self, n: int, dtype: str = "float32") -> int:
        return n

    def _encode(self, values: np.ndarray, body: np.ndarray, dtype: str, step: int) -> None:
        body[:] = np.clip(np.rint(values / self.unit), -127, 127).astype(np.int8).view(np.uint8)

    def _decode(self, body: np.ndarray, values: np.ndarray, dtype: str, step: int) -> None:
        values[:] = body.view(np.int8) * np.float32(self.unit)


@dataclass(frozen=True)
class Faulty(Halve, id=212):
    """Fails on rank 1."""

    def _encode(self, values: np.ndarray, body: np.ndarray, dtype: str, step: int) -> None:
        if dist.get_rank() == 1:
            raise ArithmeticError("the codec is broken")
        super()._encode(values, body, dtype, step)


def deep_model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """LAYERS equal layers; with `small_buckets` one bucket each."""
    torch.manual_seed(7)
    layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(48, 48), nn.Tanh())]
    return nn.Sequential(*layers).to(dtype)


def small_buckets(model: nn.Module, **options: Any) -> DDP:
    return DDP(model, bucket_cap_mb=48 * 48 * 4 / 2**20, **options)


def batch(rank: int, step: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(8, 48, generator=generator).to(dtype)


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (model(x).float() - 0.1).square().sum()


def descend(model: nn.Module) -> None:
    """SGD, and no gradients left behind."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(LEARNING_RATE * parameter.grad)
            parameter.grad = None


def train(model: nn.Module, rank: int, steps: range) -> None:
    for step in steps:
        loss_of(model, batch(rank, step, next(model.parameters()).dtype)).backward()
        descend(model)


def hooked(model: DDP, codec: tg.Codec = CODEC, **options: Any) -> CompressionState:
    state = CompressionState(codec, model, **options)
    model.register_comm_hook(state, compression_hook)
    return state


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def simulate(
    model: nn.Module, codec: tg.Codec, steps: range, error_feedback: bool = True
) -> list[torch.Tensor]:
    """The weights that all ranks should have, from compress and decompress in one process."""
    parameters = list(model.parameters())
    dtype = parameters[0].dtype
    shapes = [parameter.shape for parameter in parameters]
    residuals = [[torch.zeros(shape) for shape in shapes] for _ in range(WORLD_SIZE)]
    for step in steps:
        means = [torch.zeros(shape) for shape in shapes]
        for rank in range(WORLD_SIZE):
            loss_of(model, batch(rank, step, dtype)).backward()
            for parameter, residual, mean in zip(parameters, residuals[rank], means, strict=True):
                compressed = parameter.dim() >= 2 and parameter.numel() >= 1024
                payload = tg.compress(
                    parameter.grad,
                    own_noise(codec, rank) if compressed else tg.Identity(),
                    residual=residual if compressed and error_feedback else None,
                    step=step,
                )
                tg.decompress(payload, out=mean, accumulate=True, scale=1 / WORLD_SIZE)
                parameter.grad = None
        for parameter, mean in zip(parameters, means, strict=True):
            parameter.grad = mean.to(dtype)
        descend(model)
    return weights(model)


def message_of(error: Callable[[], Any], kind: type[BaseException]) -> str:
    """The message of the error that must come."""
    try:
        error()
    except kind as raised:
        return str(raised)
    raise AssertionError(f"no {kind.__name__} was raised")


@contextlib.contextmanager
def recorded_collectives() -> Iterator[list[dict[str, Any]]]:
    """Every collective of torch.distributed, with its bytes and whether a callback issued it."""
    calls: list[dict[str, Any]] = []
    gathers = [
        name for name in ("all_gather_single", "all_gather_into_tensor") if hasattr(dist, name)
    ]
    originals = {name: getattr(dist, name) for name in (*gathers, "all_reduce")}

    def recorder(name: str) -> Callable[..., Any]:
        def record(*args: Any, **options: Any) -> Any:
            sent = args[1] if name in gathers else args[0]
            on_main = threading.current_thread() is threading.main_thread()
            size = sent.numel() * sent.element_size()
            calls.append(
                {"gather": name in gathers, "bytes": size, "dtype": sent.dtype, "main": on_main}
            )
            return originals[name](*args, **options)

        return record

    for name in originals:
        setattr(dist, name, recorder(name))
    try:
        yield calls
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


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
        "scratch": [message.own.numel() for message in state._messages.values()],
    }


# --- Scenarios: one bucket, one message. ---


@scenario
def sixteen_buckets(rank: int) -> Any:
    model = small_buckets(deep_model())
    state = hooked(model)
    with recorded_collectives() as calls:
        train(model, rank, range(5))
    return {
        "weights": weights(model),
        "simulated": simulate(deep_model(), CODEC, range(5)),
        "calls": calls,
        "stats": state.stats(),
    }


@scenario
def every_codec(rank: int) -> Any:
    codecs = [
        tg.Identity(),
        tg.Cast(dtype="bfloat16"),
        tg.Quantize(bits=8),
        tg.Quantize(bits=2, rounding="stochastic", seed=5),
        tg.Sign(),
        tg.TopK(density=0.01, values=tg.Sign()),
        tg.TopK(k=3),
        tg.ChunkTopK(k=4, chunk=256, values=tg.Quantize(bits=8)),
        tg.RandomK(density=0.1, seed=3),
        tg.RandomK(density=0.1, values=tg.Quantize(bits=4, rounding="stochastic")),
        Halve(),
    ]
    results = {}
    for codec in codecs:
        for error_feedback in (True, False):
            model = DDP(deep_model())
            hooked(model, codec, error_feedback=error_feedback)
            train(model, rank, range(3))
            results[f"{codec!r}, error_feedback={error_feedback}"] = {
                "weights": weights(model),
                "simulated": simulate(deep_model(), codec, range(3), error_feedback),
            }
    return results


@scenario
def half_precision(rank: int) -> Any:
    results = {}
    for dtype in (torch.float16, torch.bfloat16):
        model = small_buckets(deep_model(dtype))
        state = hooked(model)
        train(model, rank, range(4))
        results[str(dtype)] = {
            "weights": weights(model),
            "simulated": simulate(deep_model(dtype), CODEC, range(4)),
            "residuals": state.state_dict()["residuals"],
        }
    return results


@scenario
def lossless(rank: int) -> Any:
    """Identity against plain DDP: the hook divides by the number of ranks, once."""
    plain, model = small_buckets(deep_model()), small_buckets(deep_model())
    hooked(model, tg.Identity())
    for each in (plain, model):
        train(each, rank, range(3))
    return {"weights": weights(model), "plain": weights(plain)}


@scenario
def warmup(rank: int) -> Any:
    plain, model = small_buckets(deep_model()), small_buckets(deep_model())
    state = hooked(model, warmup_steps=2)
    for each in (plain, model):
        train(each, rank, range(2))
    result = {"weights": weights(model), "plain": weights(plain), "warm": state.stats()}
    state.reset_stats()
    train(model, rank, range(2, 4))
    return {**result, "after": state.stats(), "weights after": weights(model)}


@scenario
def callback_references(rank: int) -> Any:
    """What the callback of a bucket holds on to, while the process group's thread owns it."""
    model = DDP(deep_model())
    hooked(model)
    callbacks = []
    then = torch._C.Future.then

    class Work:
        def __init__(self, work: Any) -> None:
            self.work = work

        def get_future(self) -> Work:
            return self

        def then(self, callback: Any) -> Any:
            callbacks.append(callback)
            return then(self.work.get_future(), callback)

    name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    original = getattr(dist, name)

    def gather(*args: Any, async_op: bool = False, **options: Any) -> Any:
        work = original(*args, async_op=async_op, **options)
        return Work(work) if async_op else work

    setattr(dist, name, gather)
    try:
        train(model, rank, range(2))
    finally:
        setattr(dist, name, original)
    return [
        sorted(
            type(value).__name__ for value in inspect.getclosurevars(callback).nonlocals.values()
        )
        for callback in callbacks
    ]


# --- Scenarios: how DDP may be set up. ---


@scenario
def rebuilt_buckets(rank: int) -> Any:
    return watched_run(rank)


@scenario
def static_graph(rank: int) -> Any:
    return watched_run(rank, static_graph=True)


@scenario
def find_unused_parameters(rank: int) -> Any:
    return watched_run(rank, find_unused_parameters=True)


@scenario
def gradient_as_bucket_view(rank: int) -> Any:
    return watched_run(rank, gradient_as_bucket_view=True)


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


@scenario
def unused_layers(rank: int) -> Any:
    """Layer 1 is used by rank 0 alone at step 1, layer 2 by nobody at step 1."""
    model = DDP(Branches(), find_unused_parameters=True)
    state = hooked(model)
    snapshots = []
    for used in ((0, 1, 2), (0, 1) if rank == 0 else (0,), (0, 1, 2)):
        model(batch(rank, 0), used).square().sum().backward()
        descend(model)
        snapshots.append(state.state_dict()["residuals"])
    return {"weights": weights(model), "residuals": snapshots}


@scenario
def accumulation(rank: int) -> Any:
    model = DDP(deep_model())
    state = hooked(model)
    with model.no_sync():
        loss_of(model, batch(rank, 0)).backward()
    calls_in_no_sync = state.stats()["buckets"]
    loss_of(model, batch(rank, 1)).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]

    bare = deep_model()
    means = [torch.zeros_like(parameter) for parameter in bare.parameters()]
    for worker in range(WORLD_SIZE):
        for step in range(2):
            loss_of(bare, batch(worker, step)).backward()
        for parameter, mean in zip(bare.parameters(), means, strict=True):
            codec = CODEC if parameter.dim() >= 2 else tg.Identity()
            payload = tg.compress(parameter.grad, codec)
            tg.decompress(payload, out=mean, accumulate=True, scale=1 / WORLD_SIZE)
            parameter.grad = None
    return {"calls": calls_in_no_sync, "gradients": gradients, "expected": means}


@scenario
def uneven_inputs(rank: int) -> Any:
    """Rank 1 joins after 2 of 5 batches."""
    model = small_buckets(deep_model())
    state = hooked(model)
    before = None
    with model.join():
        for step in range(5 if rank == 0 else 2):
            loss_of(model, batch(rank, step)).backward()
            descend(model)
        before = state.state_dict()
    after = state.state_dict()
    return {"before": before, "after": after, "weights": weights(model)}


@scenario
def wrapped_hook(rank: int) -> Any:
    """fp16_compress_wrapper replaces the bucket's buffer by a half-precision one, at each step."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_wrapper

    model = small_buckets(deep_model())
    state = CompressionState(tg.Identity(), model)
    model.register_comm_hook(state, fp16_compress_wrapper(compression_hook))
    train(model, rank, range(3))
    return {"weights": weights(model), "stats": state.stats(), "start": weights(deep_model())}


@scenario
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
        "names": list(state.state_dict()["residuals"]),
    }


@scenario
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
        "names": list(state.state_dict()["residuals"]),
    }


@scenario
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


@scenario
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


# --- Scenarios: numbers that are not finite, and ranks that differ. ---


@scenario
def not_finite(rank: int) -> Any:
    """At step 1 one weight gradient of rank 1 has an infinity, at step 2 a bias gradient a NaN."""
    model = small_buckets(deep_model())
    state = hooked(model)
    parameters = dict(model.module.named_parameters())
    notes = []
    for step in range(4):
        bad = {1: ("4.weight", float("inf")), 2: ("6.bias", float("nan"))}.get(step)
        handle = None
        if bad is not None and rank == 1:
            name, value = bad

            def spoil(gradient: torch.Tensor, value: float = value) -> torch.Tensor:
                gradient = gradient.clone()
                gradient.view(-1)[3] = value
                return gradient

            handle = parameters[name].register_hook(spoil)
        before = state.state_dict()["residuals"]
        loss_of(model, batch(rank, step)).backward()
        after = state.state_dict()["residuals"]
        notes.append(
            {
                "nan": [n for n, p in parameters.items() if bool(p.grad.isnan().all())],
                "finite": [n for n, p in parameters.items() if bool(p.grad.isfinite().all())],
                "kept": [n for n in before if torch.equal(before[n], after[n])],
                "stats": state.stats(),
            }
        )
        if handle is not None:
            handle.remove()
        if bad is None:
            descend(model)
        model.zero_grad()
    return {"notes": notes, "weights": weights(model), "names": list(parameters)}


@scenario
def loss_scaling(rank: int) -> Any:
    """GradScaler on both ranks sees the overflow of one rank, and both skip the step."""
    model = DDP(deep_model())
    state = hooked(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    notes = []
    for step in range(3):
        x = batch(rank, step)
        if step == 1 and rank == 1:
            x[0, 0] = float("inf")
        before = weights(model)
        optimizer.zero_grad()
        scaler.scale(loss_of(model, x)).backward()
        scaler.step(optimizer)
        old_scale = scaler.get_scale()
        scaler.update()
        if scaler.get_scale() != old_scale:
            norm = state.norm()
            state.rescale(scaler.get_scale() / old_scale)
            notes.append(("rescaled", state.norm() / norm))
        moved = any(not torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
        notes.append(("moved", moved))
    return {"notes": notes, "weights": weights(model), "scale": scaler.get_scale()}


@scenario
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

    model = DDP(deep_model())  # agreed at first, and then one rank goes elsewhere
    state = hooked(model)
    train(model, rank, range(2))
    state.step += rank
    messages["later"] = message_of(loss_of(model, batch(rank, 2)).backward, RuntimeError)
    return messages


@scenario
def failing_codec(rank: int) -> Any:
    model = small_buckets(deep_model())
    hooked(model, Faulty())
    return message_of(loss_of(model, batch(rank, 0)).backward, RuntimeError)


@scenario
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


# --- Scenarios: checkpoints and copies. ---


def saved_and_loaded(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@scenario
def resume(rank: int) -> Any:
    """Six steps, against three, a checkpoint, new objects, and three more."""
    results = {}
    codecs = {"top-k": CODEC, "stochastic": tg.Quantize(bits=2, rounding="stochastic")}
    for name, codec in codecs.items():
        straight = small_buckets(deep_model())
        hooked(straight, codec)
        train(straight, rank, range(6))

        first = small_buckets(deep_model())
        state = hooked(first, codec)
        train(first, rank, range(3))
        checkpoint = saved_and_loaded(
            {"model": first.module.state_dict(), "hook": state.state_dict()}
        )

        fresh = deep_model()
        fresh.load_state_dict(checkpoint["model"])
        second = small_buckets(fresh)
        hooked(second, codec).load_state_dict(checkpoint["hook"])
        train(second, rank, range(3, 6))
        results[name] = {
            "straight": weights(straight),
            "resumed": weights(second),
            "hook": checkpoint["hook"],
        }
    return results


@scenario
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
    shape = tuple(state.state_dict()["residuals"]["0.weight"].shape)
    strides = [tuple(p.stride()) for p in straight.parameters() if p.dim() == 4]
    return {
        "straight": weights(straight),
        "resumed": weights(second),
        "shape": shape,
        "strides": strides,
    }


@scenario
def checkpoint_errors(rank: int) -> Any:
    model = DDP(deep_model())
    state = CompressionState(CODEC)
    model.register_comm_hook(state, compression_hook)
    train(model, rank, range(1))
    messages = {"unbound": message_of(state.state_dict, tg.StateError)}
    state.bind(model)
    good = state.state_dict()

    residuals = dict(good["residuals"])
    renamed = {**residuals, "head.weight": residuals["0.weight"]}
    del renamed["0.weight"]
    reshaped = {**residuals, "0.weight": torch.zeros(2, 2)}
    bad_states = {
        "names": {**good, "residuals": renamed},
        "shape": {**good, "residuals": reshaped},
        "rank": {**good, "rank": 1 - rank},
        "version": {**good, "version": 99},
        "not a state": {"anything": 1},
    }
    for name, bad in bad_states.items():
        messages[name] = message_of(lambda bad=bad: state.load_state_dict(bad), tg.StateError)
    messages["another model"] = message_of(
        lambda: CompressionState(CODEC, nn.Linear(48, 48)).load_state_dict(good), tg.StateError
    )
    unchanged = state.state_dict()
    same = all(torch.equal(unchanged["residuals"][n], residuals[n]) for n in residuals)

    everyone: list[Any] = [None] * WORLD_SIZE
    dist.all_gather_object(everyone, good)
    average = average_states(everyone)
    state.load_state_dict(average)
    return {
        "messages": messages,
        "unchanged": same,
        "mine": residuals,
        "average": state.state_dict()["residuals"],
    }


@scenario
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
    return result
