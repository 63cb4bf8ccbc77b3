"""The training that all ranks should do, in one process and with compress and decompress alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ddp_workers import batch, descend, loss_of, weights
from torch import nn

import tersegrad as tg
from tersegrad.ddp.layout import own_noise
from tersegrad.ddp.memory import split

DENSE = tg.Identity()


def usual_codec(codec: tg.Codec) -> Callable[[str, torch.Tensor], tg.Codec]:
    return lambda name, p: codec if p.dim() >= 2 and p.numel() >= 1024 else DENSE


class Simulation:
    """A model trained by `world_size` ranks under the options of CompressionState.

    Of nodes, `world_size` counts the nodes. `codec_of` gives the codec of a name and parameter; `codec_at` what
    becomes of it at a step, None for a dense all-reduce.
    """

    def __init__(
        self,
        model: nn.Module,
        codec: tg.Codec,
        *,
        world_size: int = 2,
        exchange: str = "all_gather",
        error_feedback: bool = True,
        codec_of: Callable[[str, torch.Tensor], tg.Codec] | None = None,
        codec_at: Callable[[tg.Codec, int], tg.Codec | None] = lambda codec, step: codec,
        momentum: Any = None,
        node_size: int = 1,
    ) -> None:
        self.node_size = node_size
        self.model, self.world_size, self.exchange = model, world_size, exchange
        self.error_feedback, self.momentum = error_feedback, momentum
        self.codec_of, self.codec_at = codec_of or usual_codec(codec), codec_at
        self.parameters = list(model.named_parameters())
        loads = [0] * world_size
        self.parts = [split(p.numel(), loads) for _, p in self.parameters]
        self.residuals = [self._zeros() for _ in range(world_size)]
        self.velocities = [self._zeros() for _ in range(world_size)]
        self.seconds, self.common_velocity = self._zeros(), self._zeros()

    def _zeros(self) -> list[torch.Tensor]:
        return [torch.zeros(p.numel()) for _, p in self.parameters]

    def run(self, steps: range) -> list[torch.Tensor]:
        dtype = self.parameters[0][1].dtype
        for step in steps:
            gradients = []
            for node in range(self.world_size):
                sums = self._zeros() if self.node_size > 1 else None
                for rank in range(node * self.node_size, (node + 1) * self.node_size):
                    loss_of(self.model, batch(rank, step, dtype)).backward()
                    own = [p.grad.flatten() for _, p in self.parameters]
                    if sums is not None:
                        own = [s + g / self.node_size for s, g in zip(sums, own, strict=True)]
                        sums = own
                    self.model.zero_grad()
                gradients.append(own)
            for index, (_, parameter) in enumerate(self.parameters):
                mean = self.mean(index, [each[index] for each in gradients], step)
                parameter.grad = mean.to(dtype).view_as(parameter)
            descend(self.model)
        return weights(self.model)

    def mean(self, index: int, gradients: list[torch.Tensor], step: int) -> torch.Tensor:
        codec = self.codec_at(self.codec_of(*self.parameters[index]), step)
        if codec is None:  # a plain all-reduce
            total = torch.zeros_like(gradients[0])
            for gradient in gradients:
                total += gradient / self.world_size
            return self.with_momentum(self.common_velocity[index], total)
        feedback = self.error_feedback and codec != DENSE
        sources = gradients
        if feedback and self.momentum is not None:
            pairs = zip(self.velocities, gradients, strict=True)
            sources = [self.with_momentum(velocity[index], g) for velocity, g in pairs]
        mean = torch.zeros(gradients[0].numel())
        whole = [slice(0, mean.numel())]
        two_step = self.exchange == "two_step"
        parts = self.parts[index] if two_step else whole
        for part in parts:
            inside = slice(part.start, part.stop)
            total = mean[inside]
            for rank, source in enumerate(sources):
                residual = self.residuals[rank][index][inside] if feedback else None
                payload = tg.compress(
                    source[inside], own_noise(codec, rank), residual=residual, step=step
                )
                tg.decompress(payload, out=total, accumulate=True, scale=1 / self.world_size)
                if self.momentum is not None and self.momentum.masking and codec.is_sparse:
                    self.velocities[rank][index][inside][tg.decompress(payload) != 0] = 0
            if two_step:
                residual = self.seconds[index][inside] if feedback else None
                again = own_noise(codec, self.world_size + part.owner)
                sent_on = tg.compress(total, again, residual=residual, step=step)
                mean[inside] = tg.decompress(sent_on)
        return mean if feedback else self.with_momentum(self.common_velocity[index], mean)

    def with_momentum(self, velocity: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        if self.momentum is None:
            return gradient
        velocity.mul_(self.momentum.momentum).add_(gradient)
        if self.momentum.nesterov:
            return (velocity * self.momentum.momentum).add_(gradient)
        return velocity.clone()


def simulate(
    model: nn.Module, codec: tg.Codec, steps: range, error_feedback: bool = True, **options: Any
) -> list[torch.Tensor]:
    """The weights that all ranks should have."""
    return Simulation(model, codec, error_feedback=error_feedback, **options).run(steps)
