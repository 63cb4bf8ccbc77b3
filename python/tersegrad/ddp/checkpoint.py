"""Checkpoints of a CompressionState: of one rank, of all, and for another number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from .. import LowRank
from ..errors import StateError
from .memory import Entry, Kept, Part, Second

if TYPE_CHECKING:
    from .state import CompressionState

VERSION = 2
COMMON = ("version", "step", "skipped", "scale", "world_size", "node_size", "shapes", "ranks")


def place_of(state: CompressionState) -> tuple[int, int, int]:
    """Rank, number of ranks, and ranks of a node."""
    if not dist.is_initialized():
        if state.step:
            raise StateError(
                "which rank this state is of is unknown: call torch.distributed.init_process_group "
                "first, and save before destroy_process_group"
            )
        return 0, 1, 1
    groups = state._groups()
    if not groups.nodes:
        return (*groups.place(), 1)
    whole = whole_group(state)
    return dist.get_rank(whole), dist.get_world_size(whole), groups.node_size


def whole_group(state: CompressionState) -> Any:
    """The group of all ranks that train this model."""
    if not dist.is_initialized():
        return None
    groups = state._groups()
    return (state._whole_group or dist.group.WORLD) if groups.nodes else groups.hook


def save(state: CompressionState) -> dict[str, Any]:
    rank, world_size, node_size = place_of(state)
    residuals = state._memory.named(state._keeps_residual)
    velocities = state._memory.named(state._keeps_velocity)
    shapes = {
        name: list(entry.parameter.shape)
        for name, entry in state._memory.named(lambda entry: entry.parameter.requires_grad).items()
    }
    own: dict[str, Any] = {
        "exchange_rank": state._groups().place()[0] if dist.is_initialized() else 0,
        "residuals": {
            name: _copy(entry, entry.residual, entry.shaped) for name, entry in residuals.items()
        },
        "velocities": {
            name: _copy(entry, entry.velocity, entry.shaped) for name, entry in velocities.items()
        },
        "seconds": {name: _second(entry, part) for name, (entry, part, _) in _owned(state).items()},
        "factors": {
            name: entry.factor.now.clone()
            for name, entry in state._memory.named(lambda e: e.parameter.requires_grad).items()
            if entry.factor is not None
        },
    }
    return {
        "version": VERSION,
        "step": state.step,
        "skipped": state.skipped,
        "scale": state._coder.scale,
        "world_size": world_size,
        "node_size": node_size,
        "shapes": shapes,
        "ranks": {str(rank): own},
    }


def _copy(
    entry: Entry, kept: Kept | None, shaped: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    return shaped(entry.new() if kept is None else kept.now).clone()


def _second(entry: Entry, part: Part) -> torch.Tensor:
    n = part.stop - part.start
    return entry.new(n) if entry.second is None else entry.second.now.clone()


def _owned(state: CompressionState) -> dict[str, tuple[Entry, Part, int]]:
    """What this rank owns in the two-step exchange."""
    if not state._has_seconds():
        return {}
    rank, world_size = state._groups().place()
    owned = {}
    for name, entry in state._memory.named(state._keeps_residual).items():
        for part in state._memory.parts(entry, world_size):
            if part.owner == rank:
                owned[name] = (entry, part, world_size)
    return owned


def load(state: CompressionState, saved: Mapping[str, Any]) -> None:
    lacking = sorted(key for key in COMMON if key not in saved)
    if lacking or saved["version"] != VERSION:
        raise StateError(f"not a CompressionState of version {VERSION}: lacks {lacking}")
    # A distributed checkpoint drops empty dicts.
    nothing: dict[str, Any] = {"residuals": {}, "velocities": {}, "seconds": {}, "factors": {}}
    saved = {**saved, "ranks": {rank: {**nothing, **own} for rank, own in saved["ranks"].items()}}
    rank, world_size, node_size = place_of(state)
    here, there = (world_size, node_size), (int(saved["world_size"]), int(saved["node_size"]))
    _compare_shapes(state, saved["shapes"])
    if here == there or not dist.is_initialized():
        own = saved["ranks"].get(str(rank))
        if own is None:
            raise StateError(
                f"the state is of ranks {sorted(saved['ranks'])}, and this is rank {rank}: every "
                "rank loads the state it saved, or merge_states of all"
            )
    else:
        own = redistributed(state, saved, world_size)
    _take(state, own)
    state.step, state.skipped = int(saved["step"]), int(saved["skipped"])
    state._coder.scale = float(saved["scale"])


def _take(state: CompressionState, own: Mapping[str, Any]) -> None:
    """Take over tensors; `StateError` before anything has changed."""
    residuals = _fitting("residual", own["residuals"], state._memory.named(state._keeps_residual))
    velocities = _fitting("velocity", own["velocities"], state._memory.named(state._keeps_velocity))
    owned = _owned(state)
    seconds = dict(own["seconds"])
    if seconds and set(seconds) != set(owned):
        raise StateError(
            f"the second residuals are of {sorted(set(seconds) ^ set(owned))}: the exchange and the "
            "codecs must be those of the run that saved them"
        )
    for name, values in seconds.items():
        part = owned[name][1]
        if values.shape != (part.stop - part.start,):
            raise StateError(f"the second residual of {name} has shape {tuple(values.shape)}")
    factors = _factors(state, own["factors"])
    state._memory.reset()
    for entry, values in factors:
        entry.factor_of(values.numel()).now.copy_(values)
    for entry, values in residuals:
        entry.shaped(entry.residual_of().now).copy_(values)
    for entry, values in velocities:
        entry.shaped(entry.velocity_of().now).copy_(values)
    for name, values in seconds.items():
        entry, part, world_size = owned[name]
        now = values.to(entry.parameter.device, torch.float32, copy=True)
        entry.second = Second(now, None, part.start, world_size)


def _factors(
    state: CompressionState, saved: Mapping[str, torch.Tensor]
) -> list[tuple[Entry, torch.Tensor]]:
    """Where LowRank's next step begins. Those of a codec of another rank do not fit."""
    entries = state._memory.named(lambda entry: entry.parameter.requires_grad)
    fitting = []
    for name, values in saved.items():
        codec = state._reducer.codec_of(entries[name])
        size = codec.rank * (codec.columns or 0) if isinstance(codec, LowRank) else 0
        if tuple(values.shape) != (size,):
            raise StateError(
                f"the factor of {name} has shape {tuple(values.shape)}, and its codec is {codec}: use the codec, rules and "
                "options that it was saved with"
            )
        fitting.append((entries[name], values))
    return fitting


def _fitting(
    what: str, saved: Mapping[str, torch.Tensor], named: Mapping[str, Entry]
) -> list[tuple[Entry, torch.Tensor]]:
    unknown, absent = sorted(set(saved) - set(named)), sorted(set(named) - set(saved))
    if unknown or absent:
        raise StateError(
            f"each {what} is of a parameter, but this state keeps none for {unknown}, and the "
            f"saved one has none for {absent}: use the codec, rules and options that it was saved with"
        )
    for name, entry in named.items():
        shape, saved_shape = tuple(entry.parameter.shape), tuple(saved[name].shape)
        if shape != saved_shape:
            raise StateError(f"{name} has shape {shape}, its {what} has shape {saved_shape}")
    return [(entry, saved[name]) for name, entry in named.items()]


def _compare_shapes(state: CompressionState, saved: Mapping[str, Sequence[int]]) -> None:
    """`StateError` if the model has other parameters than the one that was saved."""
    own = {
        name: list(entry.parameter.shape)
        for name, entry in state._memory.named(lambda entry: entry.parameter.requires_grad).items()
    }
    differences = [
        f"{what}: {', '.join(names)}"
        for what, names in (
            ("missing in the model", sorted(set(saved) - set(own))),
            ("unknown to the checkpoint", sorted(set(own) - set(saved))),
            (
                "of another shape",
                sorted(
                    f"{name} is {tuple(own[name])}, was {tuple(saved[name])}"
                    for name in set(own) & set(saved)
                    if own[name] != list(saved[name])
                ),
            ),
        )
        if names
    ]
    if differences:
        raise StateError(f"the checkpoint is of another model; {'; '.join(differences)}")


def merge_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the `state_dict()` of every rank into one that any rank of any number of ranks loads.

    Where the number of ranks is the same, each takes its own part, and training goes on to the bit.
    Where it is another, residuals are redistributed so that **their sum over the ranks stays**: a
    residual is a gradient of its rank that was not sent yet, so the sum is all that is still to be
    sent. Each new rank gets an equal share: sum / W, rounded once to float32, so the new sum differs
    from the old one by at most 2^-24 of itself in each entry. A second residual of the two-step
    exchange, which is of the mean, counts W times. The mean then weighs what was pending as it
    weighs a gradient of the new ranks. Velocities are of the size of one rank's gradient: each new
    rank gets their mean.

    Raises
    ------
    StateError
        A rank is missing, or the states are of different steps.
    """
    ranks: dict[str, Any] = {}
    for state in states:
        ranks.update(state["ranks"])
    if not states or sorted(ranks) != sorted(map(str, range(int(states[0]["world_size"])))):
        raise StateError(f"the state of every rank is needed, not of ranks {sorted(ranks)}")
    first = states[0]
    for key in ("version", "step", "skipped", "scale", "world_size", "node_size", "shapes"):
        if any(state[key] != first[key] for state in states):
            raise StateError(f"the states differ in {key}: {[state[key] for state in states]}")
    return {**first, "ranks": ranks}


def redistributed(
    state: CompressionState, saved: Mapping[str, Any], world_size: int
) -> dict[str, Any]:
    """What each rank of `world_size` gets from the state of all ranks of another number."""
    ranks = saved["ranks"]
    old, node_size = int(saved["world_size"]), int(saved["node_size"])
    if len(ranks) != old:
        raise StateError(
            f"the state is of ranks {sorted(ranks)} of {old}, and there are {world_size} now: load "
            "merge_states([...]) of all, or use load_distributed(...)"
        )
    entries = state._memory.named(lambda entry: entry.parameter.requires_grad)
    sums: dict[str, torch.Tensor] = {}
    means: dict[str, torch.Tensor] = {}
    for own in (ranks[str(rank)] for rank in range(old)):
        for name, residual in own["residuals"].items():
            _add(sums, name, residual.double() * (node_size / world_size))
        for name, velocity in own["velocities"].items():
            _add(means, name, velocity.double() * (node_size / old))
        for name, second in own["seconds"].items():
            entry = entries[name]
            flat = entry.new().double()
            for part in state._memory.parts(entry, old // node_size):
                if part.owner == own["exchange_rank"]:
                    flat[part.start : part.stop] = second.double() * (old / world_size)
            _add(sums, name, entry.shaped(flat))
    if not state._remembers():
        sums, means = {}, {}
    return {
        "residuals": {name: total.float() for name, total in sums.items()},
        "velocities": {name: mean.float() for name, mean in means.items()},
        "seconds": {},
        "factors": ranks["0"]["factors"] if state._remembers() else {},  # as on every rank
    }


def _add(totals: dict[str, torch.Tensor], name: str, values: torch.Tensor) -> None:
    totals[name] = totals[name] + values if name in totals else values


def load_distributed(state: CompressionState, checkpoint_id: Any, key: str = "compression") -> None:
    """Load what ``torch.distributed.checkpoint.save({key: state, ...})`` saved, for any number of ranks.

    ``torch.distributed.checkpoint.load({key: state})`` is enough where the number of ranks has not
    changed; where it has, a rank needs the parts of all others, as `merge_states` explains, and
    this reads them. All ranks of the state's group call it.

    Parameters
    ----------
    state : CompressionState
    checkpoint_id : str or path
        As given to save.
    key : str
        The state's key there.

    Raises
    ------
    StateError
        No such state is there, or it does not fit.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load as load_checkpoint

    reader = FileSystemReader(checkpoint_id)
    try:
        metadata = reader.read_metadata()
    except Exception as error:
        raise StateError(f"{checkpoint_id} is no distributed checkpoint: {error!r}") from error
    whole: dict[str, Any] = {}
    for flat, path in (metadata.planner_data or {}).items():
        if path[0] == key:
            kind = metadata.state_dict_metadata[flat]
            size = getattr(kind, "size", None)
            inner = whole
            for step in path[:-1]:
                inner = inner.setdefault(step, {})
            inner[path[-1]] = None if size is None else torch.zeros(size)
    if not whole:
        raise StateError(f"{checkpoint_id} has no {key!r}")
    load_checkpoint(whole, storage_reader=reader, process_group=whole_group(state))
    state.load_state_dict(whole[key])
