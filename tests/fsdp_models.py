"""Models, data and training of the FSDP2 scenarios, and what should come of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

import tersegrad as tg
from tersegrad.exchange import own_noise

WIDTH = 37  # odd: the last rank keeps fewer rows
CODEC = tg.TopK(density=0.05, values=tg.Quantize(bits=4))
NOISY = tg.Quantize(bits=4, rounding="stochastic", seed=3)


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
