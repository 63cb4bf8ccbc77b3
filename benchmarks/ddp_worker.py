"""One host of ddp.py. Reads commands as JSON, one a line, and answers each with one line.

{"do": "build", "model": ..., "method": ...}         a model with its hook, and its gradients' bytes
{"do": "steps", "count": ..., "curve": false}        train on; the seconds of each step
{"do": "check"}                                      a checksum of the weights
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import zlib
from datetime import timedelta
from queue import SimpleQueue
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from ddp_methods import METHODS
from ddp_models import TASKS, Data
from torch.nn.parallel import DistributedDataParallel

import tersegrad as tg

COUNTED = ("received_bytes", "compress_seconds", "wait_seconds", "decode_seconds")


class Training:
    """One model with one method on one host."""

    def __init__(self, model: str, method: str, learning_rate: float | None, data: Data) -> None:
        self.task, chosen = TASKS[model], METHODS[method]
        self.data, self.step = data, 0
        self.evaluate_every = chosen.whole(self.task.evaluate_every)
        self.learning_rate = learning_rate or self.task.learning_rate
        torch.manual_seed(0)
        self.bare = self.model = self.task.model()
        self.together = None
        if chosen.together is not None:
            self.together = chosen.together(self.bare)
            self.stats = self.together.stats
        else:
            cap = chosen.bucket_cap_mb
            options = {} if cap is None else {"bucket_cap_mb": cap}
            self.model = DistributedDataParallel(self.bare, init_sync=False, **options)
            self.stats = chosen.install(self.model)
        self.optimizer = self.task.optimizer(self.model)
        if chosen.momentum:
            self.optimizer.param_groups[0]["momentum"] = 0.0

    def steps(self, count: int, curve: bool) -> dict[str, Any]:
        """Train; with `curve` the losses after every few steps, by rank 0."""
        before = self._counted()
        seconds, losses = [], []
        for _ in range(count):
            begin = time.perf_counter()
            self._one()
            seconds.append(time.perf_counter() - begin)
            self.step += 1
            if curve and dist.get_rank() == 0 and self.step % self.evaluate_every == 0:
                losses.append([self.step, self._loss("validation"), self._loss("test")])
        after = self._counted()
        counted = {name: after[name] - before[name] for name in after}
        return {"seconds": seconds, "losses": losses, "counted": counted}

    def _one(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * self.task.rate(self.step)
        rank, hosts = dist.get_rank(), dist.get_world_size()
        inputs, targets = self.data.batch(self.task.batch_size, self.step, rank, hosts)
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(inputs), targets.flatten()).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.together is not None:
            self.together.step()

    def _loss(self, part: str) -> float:
        self.model.eval()
        with torch.no_grad():
            inputs, targets = self.data.inputs[part], self.data.targets[part]
            total = 0.0
            for some, wanted in zip(inputs.split(64), targets.split(64), strict=True):
                loss = F.cross_entropy(self.bare(some), wanted.flatten())
                total += float(loss) * len(some)
        self.model.train()
        return total / len(inputs)

    def _counted(self) -> dict[str, float]:
        """What the hook says of itself, if it does."""
        stats = {} if self.stats is None else self.stats()
        return {name: stats[name] for name in COUNTED if name in stats}

    def checksum(self) -> int:
        flat = torch.cat([p.detach().flatten() for p in self.model.parameters()])
        return zlib.crc32(flat.numpy().tobytes())


def commands() -> SimpleQueue[dict[str, Any]]:
    """What the parent asks for. When it is gone so are we, even out of a collective that waits."""
    queue: SimpleQueue[dict[str, Any]] = SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            queue.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    return queue


def main(rank: int, hosts: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    tg.kernels.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr
    queue = commands()
    limit = timedelta(minutes=5)
    dist.init_process_group(
        "gloo", init_method=rendezvous, rank=rank, world_size=hosts, timeout=limit
    )
    data: dict[str, Data] = {}
    training: Training | None = None
    while True:
        command = queue.get()
        do = command.pop("do")
        if do == "build":
            name = command["model"]
            data[name] = data.get(name) or TASKS[name].data()
            training = None  # its memory first
            training = Training(**command, data=data[name])
            size = sum(p.numel() * p.element_size() for p in training.model.parameters())
            answer: Any = {"gradient_bytes": size}
        elif do == "steps" and training is not None:
            answer = training.steps(**command)
        elif do == "check" and training is not None:
            answer = training.checksum()
        else:
            raise ValueError(f"no command: {do}")
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
