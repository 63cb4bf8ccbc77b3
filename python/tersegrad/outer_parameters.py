"""What OuterSync reads from a model and checks in a saved state."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from .errors import InputError, StateError
from .exchange import DTYPES
from .in_flight import lend

STATE_VERSION = 1
NUMBERS = ("inner_step", "syncs", "skipped", "rank", "world_size", "parameters_checksum")
TENSORS = ("anchor", "momentum", "residuals")


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters to synchronise, by the names that the bare model gives them."""
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    model = model.module if isinstance(model, DistributedDataParallel) else model
    parameters = {
        name.replace("_orig_mod.", ""): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    for name, parameter in parameters.items():
        if parameter.dtype not in DTYPES or type(parameter.data) is not torch.Tensor:
            kind = f"{type(parameter.data).__name__} of {parameter.dtype}"
            raise InputError(
                f"OuterSync takes float32, float16 and bfloat16 parameters, not {name}, a {kind}: "
                "convert it, or set requires_grad=False"
            )
    if not parameters:
        raise InputError("the model has no parameter with requires_grad")
    return parameters


def running_statistics(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, module in model.named_modules():
        if isinstance(module, _NormBase):
            for key in ("running_mean", "running_var"):
                if isinstance(statistic := getattr(module, key), torch.Tensor):
                    yield f"{name}.{key}", statistic


def broadcast_all(
    tensors: Iterable[torch.Tensor], group: dist.ProcessGroup, device: torch.device
) -> int:
    """Give every rank of the group the tensors of its rank 0. Returns their bytes."""
    sent = 0
    for tensor in tensors:
        shared = tensor.detach().to(device, copy=True).contiguous()
        if shared.numel():
            flat = shared.view(-1).view(torch.uint8)  # every dtype travels as bytes
            dist.broadcast(lend(flat), dist.get_global_rank(group, 0), group)
            tensor.data.copy_(shared)
            sent += flat.numel()
    return sent


def message_device(group: dist.ProcessGroup, parameter: torch.Tensor) -> torch.device:
    """NCCL moves device memory; everything else here is in host memory."""
    return parameter.device if dist.get_backend(group) == "nccl" else torch.device("cpu")


def floats(tensor: torch.Tensor) -> torch.Tensor:
    """In host memory, contiguous; the tensor's own memory where it is so already."""
    return tensor.detach().to("cpu", torch.float32).contiguous()


def zeros(tensors: Mapping[str, torch.Tensor] | tuple[()]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in dict(tensors).items()}


def descend(
    anchor: torch.Tensor,
    gradient: torch.Tensor,
    velocity: torch.Tensor | None,
    rate: float,
    momentum: float,
    nesterov: bool,
) -> None:
    """A step of SGD, by separate operations: fused ones round differently from one processor to another."""
    if velocity is not None:
        velocity.mul_(momentum).add_(gradient)
        gradient = gradient + velocity * momentum if nesterov else velocity
    anchor.sub_(gradient * rate)


def checksum(tensors: Iterable[torch.Tensor]) -> int:
    """Of the bits of all tensors in order."""
    total = 0
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().view(-1)
        total = zlib.crc32(flat.view(torch.uint8).numpy(), total)
    return total


def check_state(
    state: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]], rank: int, world_size: int
) -> None:
    """`StateError` unless it is a state of this rank, with tensors like those of `own`."""
    lacking = [key for key in (*NUMBERS, *TENSORS) if key not in state]
    if lacking or state.get("version") != STATE_VERSION:
        raise StateError(f"not an OuterSync state of version {STATE_VERSION}: it lacks {lacking}")
    if (state["rank"], state["world_size"]) != (rank, world_size):
        raise StateError(
            f"the state of rank {state['rank']} of {state['world_size']}, loaded by rank {rank} of "
            f"{world_size}: every rank loads the state it saved, among as many ranks"
        )
    for kind, tensors in own.items():
        saved = dict(state[kind])
        unknown, absent = sorted(set(saved) - set(tensors)), sorted(set(tensors) - set(saved))
        if unknown or absent:
            raise StateError(
                f"the state's {kind} is of other parameters: the model has no {unknown}, "
                f"the state has no {absent}"
            )
        for name, tensor in tensors.items():
            shape, saved_shape = tuple(tensor.shape), tuple(saved[name].shape)
            if shape != saved_shape:
                raise StateError(f"{name} has shape {shape}, its {kind} has {saved_shape}")


def check_number(name: str, number: object, words: str, good: Callable[[float], bool]) -> float:
    """`number`, if it is finite and `good`."""
    plain = isinstance(number, (int, float)) and not isinstance(number, bool)
    if not (plain and math.isfinite(number) and good(number)):  # type: ignore[arg-type]
        raise InputError(f"{name} must be a number {words}, not {number!r}")
    return float(number)  # type: ignore[arg-type]
