"""What all scenarios of the DDP hook share: the workers, models, data and training.

A scenario is a function of the rank. What it returns, or the traceback of what it raised, goes to a
file that the tests read.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817

import tersegrad as tg
from tersegrad.ddp import CompressionState, compression_hook

LAYERS = 16
LEARNING_RATE = 0.1
CODEC = tg.TopK(density=0.05, values=tg.Quantize(bits=4))
MODULES = (
    *("exchange_scenarios", "setup_scenarios", "failure_scenarios", "option_scenarios"),
    *("checkpoint_scenarios", "group_scenarios", "device_scenarios", "sums_scenarios"),
)
Scenario = Callable[[int], Any]
#: From a scenario's name to its result on each rank.
Results = Callable[[str], list[Any]]
#: By name: the function and its number of ranks.
SCENARIOS: dict[str, tuple[Scenario, int]] = {}


def scenario(world_size: int = 2) -> Callable[[Scenario], Scenario]:
    def register(function: Scenario) -> Scenario:
        SCENARIOS[function.__name__] = (function, world_size)
        return function

    return register


def load_scenarios() -> dict[str, tuple[Scenario, int]]:
    for name in MODULES:
        importlib.import_module(name)
    return SCENARIOS


def work(rank: int, folder: str, names: tuple[str, ...]) -> None:
    """Run scenarios, each in a process group of its own."""
    torch.set_num_threads(1)
    tg.kernels.set_num_threads(1)
    warnings.filterwarnings("error", message=".*deprecated.*", category=FutureWarning)
    scenarios = load_scenarios()
    for name in names:
        function, world_size = scenarios[name]
        if rank >= world_size:
            continue
        rendezvous = f"file://{folder}/rendezvous-{name}"
        limit = timedelta(seconds=60)
        dist.init_process_group(
            "gloo", init_method=rendezvous, rank=rank, world_size=world_size, timeout=limit
        )
        try:
            result = {"value": function(rank)}
        except Exception:
            result = {"error": traceback.format_exc()}
        unfinished = Path(folder, f"{name}.{rank}.part")
        torch.save(result, unfinished)
        os.replace(unfinished, Path(folder, f"{name}.{rank}.pt"))
        dist.destroy_process_group()


# --- Models, data, training. ---


def deep_model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """LAYERS equal layers; with `small_buckets` one bucket each."""
    torch.manual_seed(7)
    layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(48, 48), nn.Tanh())]
    return nn.Sequential(*layers).to(dtype)


def wide_model() -> nn.Sequential:
    """Its middle weight is cut in two or more parts by the two-step exchange."""
    torch.manual_seed(7)
    wide = nn.Linear(48, 300), nn.Tanh(), nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 48)
    return nn.Sequential(*wide)


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


def memory_of(state: CompressionState) -> dict[str, torch.Tensor]:
    """All that this rank remembers, by kind and name."""
    (own,) = state.state_dict()["ranks"].values()
    kinds = ("residuals", "velocities", "seconds")
    return {f"{kind}/{name}": t for kind in kinds for name, t in own[kind].items()}


def residuals_of(state: CompressionState) -> dict[str, torch.Tensor]:
    (own,) = state.state_dict()["ranks"].values()
    return dict(own["residuals"])


def same_tensors(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Equal to the bit."""
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def saved_and_loaded(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def everyone(value: Any) -> list[Any]:
    """The value of every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def message_of(error: Callable[[], Any], kind: type[BaseException]) -> str:
    """The message of the error that must come."""
    try:
        error()
    except kind as raised:
        return str(raised)
    raise AssertionError(f"no {kind.__name__} was raised")


# --- For the tests. ---


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    """Equal to the bit."""
    return len(left) == len(right) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(left, right, strict=True)
    )


def assert_replicas_follow_the_simulation(results: list[Any]) -> None:
    for result in results:
        assert same(result["weights"], results[0]["weights"])
    assert same(results[0]["weights"], results[0]["simulated"])


@contextlib.contextmanager
def recorded_collectives() -> Iterator[list[dict[str, Any]]]:
    """Every collective of torch.distributed: its name, its bytes, and whether the hook issued it."""
    calls: list[dict[str, Any]] = []
    inputs = {"all_gather_single": 1, "all_gather_into_tensor": 1, "all_to_all_single": 1}
    inputs |= {"all_reduce": 0, "broadcast": 0}
    originals = {name: getattr(dist, name) for name in inputs if hasattr(dist, name)}

    def recorder(name: str) -> Callable[..., Any]:
        def record(*args: Any, **options: Any) -> Any:
            sent = args[inputs[name]]
            on_main = threading.current_thread() is threading.main_thread()
            size = sent.numel() * sent.element_size()
            calls.append({"name": name, "bytes": size, "dtype": sent.dtype, "main": on_main})
            return originals[name](*args, **options)

        return record

    for name in originals:
        setattr(dist, name, recorder(name))
    try:
        yield calls
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
