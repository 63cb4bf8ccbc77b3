"""Compressed gradients for PyTorch FSDP2 (`fully_shard`).

    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    compression = tersegrad.fsdp.compress(model, Quantize(bits=4))

Each module's reduce-scatter becomes one all-to-all of compressed shards. The all-gather of the
parameters stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel

from .codec import Codec
from .device.exchange import read
from .errors import BackendError, InputError, StateError
from .exchange import Rules, Selection
from .fsdp_exchange import COUNTED, CompressedReduceScatter, CompressedReplicas, Exchange

__all__ = ["ShardedCompression", "compress"]

STATE_VERSION = 1
STATE_KEYS = ("rank", "world_size", "steps", "residuals")
WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


def compress(
    model: torch.nn.Module,
    codec: Codec,
    *,
    rules: Rules | None = None,
    min_size: int = 1024,
    error_feedback: bool = True,
    replicate_group: dist.ProcessGroup | None = None,
) -> ShardedCompression:
    """Compress the gradients of every FSDP2 module in `model`, from the next backward pass on.

    Call it alike on every rank, after the last `fully_shard`.

    Parameters
    ----------
    model : Module
        Its gradients are reduced as float32, bfloat16 or float16 (`reduce_dtype`).
    codec : Codec
        For parameters of two or more dimensions and at least `min_size` entries before sharding.
        The others travel dense in the same message. A codec meets the entries of one parameter
        that one rank keeps: ``TopK(k=10)`` sends ten of them to each rank.
    rules : mapping of str to Codec, optional
        Codecs by shell patterns of parameter names: ``{"*.bias": Identity()}``. The first that
        matches decides.
    min_size : int
    error_feedback : bool
        Keep what a message leaves out and add it to the next gradient. Without it a codec that is
        not unbiased, such as TopK, never sends some entries at all, so it is on unless you say
        otherwise. It takes a float32 residual **of the size of the unsharded gradient** on every
        rank, which sharding was meant to save. To do without, take an unbiased codec, such as
        ``Quantize(4, rounding="stochastic")``, or `replicate_group`.
    replicate_group : ProcessGroup, optional
        The ranks that hold the same shard in other copies of the model, where `model` is sharded
        over a one-dimensional mesh within each copy. Then the reduce-scatter stays as it is, and
        the mean over this group is compressed instead: dense within a node, compressed between
        nodes. The residual has the size of the shard.

    Returns
    -------
    ShardedCompression
        Its `state_dict` belongs in the checkpoint.

    Raises
    ------
    StateError
        The model is not sharded, sharded by FSDP1, compressed already, or has meshes that leave
        open which exchange is meant. Nothing was installed.
    InputError, CodecError
        An argument is not what it should be.

    Notes
    -----
    A gradient with a NaN or an infinity on one rank of the group makes that parameter's gradient
    NaN on all of them; no rank's residual of it changes. The reduce operation that torch asks for
    (AVG, SUM, PREMUL_SUM) is kept; sums are made in float32, in rank order.

    When some parameter of a module has no gradient, torch does not say which, and the module's
    gradients go uncompressed (`stats` counts that as "uncompressed").
    `model.set_reduce_scatter_unused_params(True)` avoids it.
    """
    selection = Selection(codec, {} if rules is None else rules, min_size)
    if replicate_group is not None and not isinstance(replicate_group, dist.ProcessGroup):
        raise InputError(f"replicate_group must be a ProcessGroup, not {replicate_group!r}")
    modules = _sharded_modules(model, replicate_group is not None)
    names = _parameter_names(model, [group for _, _, group in modules])
    exchanges: list[Exchange] = []
    for label, module, group in modules:
        arguments = (label, group, names, selection, bool(error_feedback))
        if replicate_group is None:
            reduce_scatter = CompressedReduceScatter(*arguments)
            module.set_custom_reduce_scatter(reduce_scatter)
            exchanges.append(reduce_scatter)
        else:
            replicas = CompressedReplicas(*arguments, group=replicate_group)
            module.set_all_reduce_hook(replicas)
            exchanges.append(replicas)
    return ShardedCompression(exchanges)


class ShardedCompression:
    """What `compress` has installed: its residuals and its counters."""

    def __init__(self, exchanges: list[Exchange]) -> None:
        self._exchanges = exchanges

    def state_dict(self) -> dict[str, Any]:
        """The residuals of this rank by parameter name. Every rank saves its own.

        Returns
        -------
        dict
            Ints, and in "residuals" flat float32 tensors in the order in which FSDP2 sends the
            entries. It loads with ``torch.load(weights_only=True)``.
        """
        self.check()
        residuals = {}
        for exchange in self._exchanges:
            for name, n in exchange.kept().items():
                residual = exchange.residuals.get(name)
                residuals[name] = torch.zeros(n) if residual is None else residual.clone()
        return {
            "version": STATE_VERSION,
            "rank": dist.get_rank(),
            "world_size": dist.get_world_size(),
            "steps": {exchange.label: exchange.step for exchange in self._exchanges},
            "residuals": residuals,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue, to the bit, from the `state_dict()` of the same rank.

        Raises
        ------
        StateError
            The state is of another rank, number of ranks or model. Nothing has changed then.
        """
        lacking = [key for key in STATE_KEYS if key not in state_dict]
        if lacking or state_dict.get("version") != STATE_VERSION:
            raise StateError(f"not a state of version {STATE_VERSION}: it lacks {lacking}")
        place, own = (state_dict["rank"], state_dict["world_size"]), _place()
        if place != own:
            raise StateError(
                f"the state of rank {place[0]} of {place[1]}, loaded by rank {own[0]} of {own[1]}: "
                "every rank loads the state it saved, on the same number of ranks"
            )
        steps, residuals = dict(state_dict["steps"]), dict(state_dict["residuals"])
        _check_names("modules", steps, {exchange.label for exchange in self._exchanges})
        kept = {name: n for exchange in self._exchanges for name, n in exchange.kept().items()}
        _check_names("residuals of parameters", residuals, set(kept))
        for name, n in kept.items():
            if tuple(residuals[name].shape) != (n,):
                shape = tuple(residuals[name].shape)
                raise StateError(f"the residual of {name} has shape {shape}, not ({n},)")
        for exchange in self._exchanges:
            exchange.step = int(steps[exchange.label])
            exchange.residuals = {
                name: residuals[name].to(torch.float32, copy=True) for name in exchange.kept()
            }

    def rescale(self, factor: float) -> None:
        """Multiply every residual; with new / old scale when a loss scale changes."""
        if not (isinstance(factor, (int, float)) and math.isfinite(factor)):
            raise InputError(f"factor must be a finite number, not {factor!r}")
        for residual in self._residuals():
            residual.mul_(factor)

    def reset(self) -> None:
        """Forget every residual."""
        for exchange in self._exchanges:
            exchange.residuals.clear()

    def norm(self) -> float:
        """The Euclidean norm of all residuals of this rank."""
        return math.sqrt(sum(float(r.double().square().sum()) for r in self._residuals()))

    def check(self) -> int:
        """How many gradients became NaN that only a device knows of; waits for it.

        Raises
        ------
        StateError
            Ranks on a device sent messages that did not fit. On the host that is raised in the step.
        """
        return sum(read(exchange.ledger) for exchange in self._exchanges)

    def stats(self) -> dict[str, float]:
        """What this rank has handed to collectives since `reset_stats`, and what that took.

        Returns
        -------
        dict
            `reductions`; `uncompressed`, those of a module where a gradient was missing;
            `sent_bytes`, `dense_bytes` and their `ratio`; `nonfinite` (parameters whose gradient
            became NaN); `compress_seconds`, `decompress_seconds` of host time.
        """
        sums = {key: sum(e.counters[key] for e in self._exchanges) for key in COUNTED}
        sums["nonfinite"] += self.check()
        sent = sums["sent_bytes"]
        return {**sums, "ratio": sums["dense_bytes"] / sent if sent else 1.0}

    def reset_stats(self) -> None:
        """Start the counters again."""
        for exchange in self._exchanges:
            exchange.counters = dict.fromkeys(COUNTED, 0)

    def _residuals(self) -> list[torch.Tensor]:
        return [residual for e in self._exchanges for residual in e.residuals.values()]


def _sharded_modules(model: torch.nn.Module, replicas: bool) -> list[tuple[str, Any, Any]]:
    """Name, module and parameter group of every FSDP2 module that has parameters of its own."""
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    found = []
    for name, module in model.named_modules():
        if isinstance(module, FullyShardedDataParallel):
            raise StateError(
                f"module {name!r} is sharded by FullyShardedDataParallel (FSDP1), whose reduce-"
                "scatter cannot be replaced: shard with torch.distributed.fsdp.fully_shard"
            )
        if not hasattr(module, "set_custom_reduce_scatter"):
            continue
        groups = getattr(module._get_fsdp_state(), "_fsdp_param_groups", None)
        if groups is None:
            raise BackendError(f"FSDP2 of torch {torch.__version__} is not supported: use 2.13")
        if len(groups) > 1:
            raise StateError(
                f"module {name!r} shards its parameters over {len(groups)} meshes, for which torch "
                "takes no reduce-scatter: shard the parameters of each mesh as a module of its own"
            )
        if groups:
            found.append((name.replace("_orig_mod.", ""), module, groups[0]))
    if not found:
        raise StateError("the model is not sharded: call fully_shard on it first, then compress")
    for name, _, group in found:
        _check_group(name, group, replicas)
    return found


def _check_group(name: str, group: Any, replicas: bool) -> None:
    mesh_info = group.mesh_info
    if not hasattr(mesh_info, "shard_mesh_size"):
        raise StateError(
            f"module {name!r} is replicated, not sharded: use tersegrad.ddp with DDP instead"
        )
    if replicas and hasattr(mesh_info, "replicate_mesh_size"):
        raise StateError(
            f"module {name!r} has a mesh of two dimensions, over which torch itself averages "
            "replicas: for replicate_group, shard over a mesh of one dimension"
        )
    for other in (group._reduce_scatter_comm, group._all_reduce_hook):
        if isinstance(other, Exchange):
            raise StateError(f"module {name!r} is compressed already: call compress once")
    custom = type(group._reduce_scatter_comm).__name__ != "DefaultReduceScatter"
    if group._all_reduce_hook is not None if replicas else custom:
        raise StateError(
            f"module {name!r} has a reduce-scatter or all-reduce hook of its own, "
            "which compress would replace"
        )


def _parameter_names(model: torch.nn.Module, groups: list[Any]) -> dict[int, str]:
    """By id of torch's FSDPParam; the parameters themselves change when FSDP2 shards them."""
    prefixes = {id(m): f"{name}." if name else "" for name, m in model.named_modules()}
    names = {}
    for group in groups:
        for parameter in group.fsdp_params:
            info = parameter._module_info
            name = prefixes[id(info.module)] + info.param_name
            for wrapper in WRAPPERS:
                name = name.replace(wrapper, "")
            names[id(parameter)] = name
    return names


def _place() -> tuple[int, int]:
    return dist.get_rank(), dist.get_world_size()


def _check_names(kind: str, saved: Mapping[str, Any], own: set[str]) -> None:
    unknown, absent = sorted(set(saved) - own), sorted(own - set(saved))
    if unknown or absent:
        raise StateError(
            f"the state holds other {kind}: the model has no {unknown}, the state has no {absent}"
        )
