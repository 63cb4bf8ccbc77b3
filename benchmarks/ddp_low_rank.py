"""LowRank's hook against PyTorch's powerSGD_hook over loopback, where that runs: one bucket on gloo.

    python benchmarks/ddp_low_rank.py [--rank 4] [--steps 30]

Two processes train the perceptron of ddp_models.py on made-up inputs. Both hooks take turns in blocks
of five steps on models of their own; a row has the median step. Prints, and writes nothing.
"""

# No `from __future__ import annotations`: DDP compares a hook's annotations with the objects.

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from ddp_methods import METHODS, ONE_BUCKET, Method, ours, power_sgd
from ddp_models import Perceptron
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

import tersegrad as tg

BLOCK = 5


def rows(rank: int) -> list[Method]:
    return [
        METHODS["noop"],
        power_sgd(rank),
        ours(f"LowRank({rank})", tg.LowRank(rank)),
        ours(f"LowRank({rank}, 'bfloat16')", tg.LowRank(rank, "bfloat16")),
    ]


def step_of(model: DistributedDataParallel, inputs: torch.Tensor) -> float:
    begin = time.perf_counter()
    model(inputs).square().mean().backward()
    seconds = time.perf_counter() - begin
    model.zero_grad()
    return seconds


def work(process: int, folder: str, rank: int, steps: int) -> None:
    torch.set_num_threads(1)
    tg.kernels.set_num_threads(1)
    meeting = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=meeting, rank=process, world_size=2)
    inputs = torch.randn(8, 784, generator=torch.Generator().manual_seed(process))
    models: list[DistributedDataParallel] = []
    seconds: list[list[float]] = []
    for method in rows(rank):
        torch.manual_seed(0)
        model = DistributedDataParallel(Perceptron(), bucket_cap_mb=ONE_BUCKET)
        method.install(model)
        for _ in range(4):  # PyTorch's hook begins to compress at its third step
            step_of(model, inputs)
        models.append(model)
        seconds.append([])
    for _ in range(0, steps, BLOCK):
        for model, taken in zip(models, seconds, strict=True):
            dist.barrier()
            taken += [step_of(model, inputs) for _ in range(BLOCK)]
    if process == 0:
        free = statistics.median(seconds[0])
        for method, taken in zip(rows(rank), seconds, strict=True):
            median = statistics.median(taken)
            print(
                f"{method.label.strip('`'):26} {1e3 * median:8.1f} ms a step, of which the hook "
                f"{1e3 * (median - free):8.1f} ms"
            )
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        arguments = (str(Path(folder)), options.rank, options.steps)
        multiprocessing.spawn(work, arguments, nprocs=2)


if __name__ == "__main__":
    main()
