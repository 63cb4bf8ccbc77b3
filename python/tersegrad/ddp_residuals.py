"""The residuals of the DDP hook, by parameter.

Buckets are rebuilt between steps, so a bucket index means nothing: residuals belong to parameters,
and in a checkpoint to their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from .errors import StateError


@dataclass(eq=False)
class Entry:
    """What is known of a parameter. Holding it keeps its id from being used again."""

    parameter: torch.Tensor
    name: str | None = None
    residual: torch.Tensor | None = None  # flat, in the order of the parameter's memory

    def flat(self) -> torch.Tensor:
        if self.residual is None:
            n, device = self.parameter.numel(), self.parameter.device
            self.residual = torch.zeros(n, dtype=torch.float32, device=device)
        return self.residual

    def shaped(self) -> torch.Tensor:
        """A view in the parameter's shape. Buckets keep its memory order, such as channels_last."""
        shape, strides = self.parameter.shape, self.parameter.stride()
        if torch.empty_like(self.parameter, device="meta").stride() == strides:
            return self.flat().as_strided(shape, strides)  # dense, in whatever order
        return self.flat().view(shape)


class Residuals:
    """One float32 residual for each parameter, made when it is first asked for."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._bound = False

    def of(self, parameter: torch.Tensor) -> torch.Tensor:
        return self._entry(parameter).flat()

    def bind(self, model: torch.nn.Module) -> None:
        """Take the names of `model`; forget the parameters that it does not have."""
        bound = {}
        for name, parameter in bare(model).named_parameters():
            entry = self._entry(parameter)
            entry.name = name.replace("_orig_mod.", "")
            bound[id(parameter)] = entry
        self._entries = bound
        self._bound = True

    def rescale(self, factor: float) -> None:
        for residual in self._existing():
            residual.mul_(factor)

    def reset(self) -> None:
        for entry in self._entries.values():
            entry.residual = None

    def norm(self) -> float:
        squares = [float(residual.double().square().sum()) for residual in self._existing()]
        return float(sum(squares) ** 0.5)

    def save(self, keeps: Callable[[torch.Tensor], bool]) -> dict[str, torch.Tensor]:
        """Copies by name, of the parameters that `keeps` is true of."""
        return {name: entry.shaped().clone() for name, entry in self._named(keeps).items()}

    def load(
        self, saved: Mapping[str, torch.Tensor], keeps: Callable[[torch.Tensor], bool]
    ) -> None:
        """Take over what `save` gave. Changes nothing when a name or a shape differs."""
        named = self._named(keeps)
        unknown, absent = sorted(set(saved) - set(named)), sorted(set(named) - set(saved))
        if unknown or absent:
            raise StateError(
                f"the residuals are of other parameters: the model has no {unknown}, "
                f"the state has no {absent}"
            )
        for name, entry in named.items():
            shape, saved_shape = tuple(entry.parameter.shape), tuple(saved[name].shape)
            if shape != saved_shape:
                raise StateError(f"{name} has shape {shape}, its residual has shape {saved_shape}")
        for name, entry in named.items():
            entry.shaped().copy_(saved[name])

    def _entry(self, parameter: torch.Tensor) -> Entry:
        entry = self._entries.get(id(parameter))
        if entry is None:
            entry = self._entries[id(parameter)] = Entry(parameter)
        return entry

    def _existing(self) -> list[torch.Tensor]:
        return [e.residual for e in self._entries.values() if e.residual is not None]

    def _named(self, keeps: Callable[[torch.Tensor], bool]) -> dict[str, Entry]:
        if not self._bound:
            raise StateError(
                "parameter names are unknown: CompressionState(codec, model) or state.bind(model)"
            )
        entries = [entry for entry in self._entries.values() if keeps(entry.parameter)]
        named = {entry.name: entry for entry in entries if entry.name is not None}
        if len(named) < len(entries):
            shapes = [tuple(entry.parameter.shape) for entry in entries if entry.name is None]
            raise StateError(
                f"parameters of shapes {shapes} are not in the bound model: "
                "state.bind(model) with the whole model"
            )
        return named

    def __getstate__(self) -> dict[str, Any]:
        return {"entries": list(self._entries.values()), "bound": self._bound}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        """Ids are those of the copied parameters: a copied DDP model keeps its residuals."""
        self._entries = {id(entry.parameter): entry for entry in kept["entries"]}
        self._bound = kept["bound"]


def bare(model: torch.nn.Module) -> torch.nn.Module:
    """The module inside DDP and torch.compile."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), torch.nn.Module):
            model = inner
        else:
            return model
