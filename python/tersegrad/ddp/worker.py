"""One thread that does what follows a bucket's first collective, in the order of the buckets.

A second collective must not be issued from the callback of the first: callbacks race, gloo then
pairs messages of different buckets and aborts. What comes after a hook's return is done here, one
bucket after the other, beside the backward pass.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from .. import in_flight  # noqa: F401  (registered before _join, so run after it)

Jobs: TypeAlias = "queue.SimpleQueue[torch.futures.Future[None] | None]"

#: How long the end of the program waits for a thread that may be stuck in a collective.
JOIN_SECONDS = 5.0

_running: weakref.WeakKeyDictionary[threading.Thread, Jobs] = weakref.WeakKeyDictionary()


class Worker:
    """Runs jobs first in, first out, in a daemon thread that ends with this object.

    The thread holds the queue and nothing else: no state, and no process group, whose last
    reference must not be dropped by a thread while the interpreter shuts down. It is joined before
    that: Python unwinds the daemon threads it finds in C++, which ends in std::terminate.
    """

    def __init__(self) -> None:
        self._jobs: Jobs | None = None
        self._process = 0

    def run(
        self, job: Callable[[], torch.Tensor], device: torch.device, beside: bool
    ) -> torch.futures.Future[torch.Tensor]:
        """The future of a job. What the job raises, the future raises as RuntimeError.

        Without `beside` the job runs at once. On a GPU it only enqueues work then, on a stream of
        its own that has waited for the current one, as `then` arranges.
        """
        devices: Any = None if device.type == "cpu" else [device]
        start: torch.futures.Future[None] = torch.futures.Future(devices=devices)
        done: torch.futures.Future[torch.Tensor] = start.then(lambda _: job())
        if beside:
            self._queue().put(start)
        else:
            start.set_result(None)
        return done

    def _queue(self) -> Jobs:
        if self._jobs is None or self._process != os.getpid():  # a fork has no threads
            self._jobs, self._process = queue.SimpleQueue(), os.getpid()
            thread = threading.Thread(
                target=_work, args=(self._jobs,), name="tersegrad.ddp", daemon=True
            )
            thread.start()
            weakref.finalize(self, self._jobs.put, None).atexit = False
            _running[thread] = self._jobs
        return self._jobs


def _work(jobs: Jobs) -> None:
    torch.set_grad_enabled(False)
    while (start := jobs.get()) is not None:
        start.set_result(None)  # runs the job here
        del start  # it must not live until the next job comes


@atexit.register
def _join() -> None:
    for thread, jobs in list(_running.items()):
        jobs.put(None)
        thread.join(JOIN_SECONDS)
