"""One worker of `tersegrad demo`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from . import kernels
from .ddp import CompressionState, compression_hook
from .demo_settings import METHODS, DemoError, Method, Settings

STEPS_PER_EVENT = 5
SPLIT_SEED = 0


class Network(nn.Module):
    """Two strided convolutions and two linear layers: 215,370 parameters for images of 28 x 28."""

    def __init__(self, side: int, classes: int = 10) -> None:
        super().__init__()
        second_stride = 2 if side > 16 else 1
        self.first = nn.Conv2d(1, 16, 5, stride=2, padding=2)
        self.second = nn.Conv2d(16, 32, 5, stride=second_stride, padding=2)
        small = -(-side // 2 // second_stride)
        self.hidden = nn.Linear(32 * small * small, 128)
        self.scores = nn.Linear(128, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.second(F.relu(self.first(images))))
        scores: torch.Tensor = self.scores(F.relu(self.hidden(x.flatten(1))))
        return scores


def work(
    rank: int, settings: Settings, images: Any, labels: Any, rendezvous: str, queue: Any
) -> None:
    """Train with every method and seed; rank 0 tells the parent process."""
    # That compression loses time over loopback is no news to anybody.
    logging.getLogger("tersegrad.ddp").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    kernels.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=rendezvous,
        rank=rank,
        world_size=settings.workers,
        timeout=timedelta(seconds=120),
    )
    try:
        data = Data(torch.from_numpy(images), torch.from_numpy(labels))
        for seed in range(settings.seeds):
            for name in settings.methods:
                Run(settings, METHODS[name], seed, data, queue if rank == 0 else None).train()
    finally:
        dist.destroy_process_group()


class Data:
    """A fixed fifth of the images is for testing; the seeds differ in all else."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
        images, labels = images[order], labels[order]
        held_out = len(images) // 5
        self.test_images, self.test_labels = images[:held_out], labels[:held_out]
        self.images, self.labels = images[held_out:], labels[held_out:]
        self.side = images.shape[-1]


class Run:
    """One training with one method and one seed."""

    def __init__(
        self, settings: Settings, method: Method, seed: int, data: Data, queue: Any | None
    ) -> None:
        self.settings, self.method, self.seed, self.data = settings, method, seed, data
        self.queue = queue
        torch.manual_seed(seed)
        self.model = DistributedDataParallel(Network(data.side))
        self.state: CompressionState | None = None
        if method.codec is not None:
            self.state = CompressionState(
                method.codec, self.model, error_feedback=method.error_feedback
            )
            self.model.register_comm_hook(self.state, compression_hook)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=settings.learning_rate, momentum=settings.momentum
        )
        together = settings.batch_size * settings.workers
        self.steps_per_epoch = len(data.images) // together
        if self.steps_per_epoch == 0:
            raise DemoError(f"{len(data.images)} images do not fill a step of {together}")

    def train(self) -> None:
        total = self.steps_per_epoch * self.settings.epochs
        curve, seconds, step = [], 0.0, 0
        self._tell("plan", steps=total)
        for epoch in range(self.settings.epochs):
            begin = time.perf_counter()
            for number, batch in enumerate(self._batches(epoch), start=1):
                for group in self.optimizer.param_groups:
                    group["lr"] = self.settings.learning_rate * self._rate(step / total)
                self.optimizer.zero_grad()
                scores = self.model(self.data.images[batch])
                F.cross_entropy(scores, self.data.labels[batch]).backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                step += 1
                if number % STEPS_PER_EVENT == 0:
                    self._tell("steps", count=STEPS_PER_EVENT)
            seconds += time.perf_counter() - begin
            self._tell("steps", count=self.steps_per_epoch % STEPS_PER_EVENT)
            curve.append({"step": step, "bytes": self._sent(step), "accuracy": self._accuracy()})
            self._tell("epoch", accuracy=curve[-1]["accuracy"])
        self._check_replicas()
        stats = self.state.stats() if self.state is not None else {}
        dense = self._dense_bytes()
        self._tell(
            "run",
            seed=self.seed,
            accuracy=curve[-1]["accuracy"],
            curve=curve,
            steps=step,
            seconds_per_step=seconds / step,
            bytes_per_step=self._sent(step) / step,
            ratio=dense * step / self._sent(step),
            compress_ms=1000 * stats.get("compress_seconds", 0.0) / step,
            decompress_ms=1000 * stats.get("decode_seconds", 0.0) / step,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
        )

    def _batches(self, epoch: int) -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(1000 * self.seed + epoch)
        order = torch.randperm(len(self.data.images), generator=generator)
        own = order[dist.get_rank() :: self.settings.workers]
        for step in range(self.steps_per_epoch):
            yield own[step * self.settings.batch_size : (step + 1) * self.settings.batch_size]

    def _rate(self, done: float) -> float:
        """The share of the learning rate: up in a line while warming up, down along a cosine."""
        warmup = self.settings.warmup
        return min(1.0, (done + 1e-3) / warmup) * 0.5 * (1 + math.cos(math.pi * done))

    def _accuracy(self) -> float:
        """Percent of the test images."""
        if self.queue is None:
            return 0.0
        with torch.no_grad():
            found = self.model.module(self.data.test_images).argmax(dim=1)
        return float((found == self.data.test_labels).double().mean()) * 100

    def _dense_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    def _sent(self, steps: int) -> int:
        """Every byte this worker has handed to a gradient collective."""
        return int(self.state.stats()["sent_bytes"]) if self.state else steps * self._dense_bytes()

    def _check_replicas(self) -> None:
        """All workers must hold the same weights, to the bit."""
        flat = torch.cat([p.detach().flatten() for p in self.model.parameters()]).view(torch.int32)
        ours = torch.stack([flat.sum(), (flat * torch.arange(len(flat)).int()).sum()])
        first = ours.clone()
        dist.broadcast(first, 0)
        if not torch.equal(ours, first):
            raise DemoError(f"{self.method.label}: the workers' weights differ")

    def _tell(self, kind: str, **facts: Any) -> None:
        if self.queue is not None:
            self.queue.put({"kind": kind, "method": self.method.name, **facts})
