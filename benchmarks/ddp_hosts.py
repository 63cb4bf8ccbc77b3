"""The hosts of ddp.py as one thing to command: a network, and a worker on each of its hosts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ddp_network import INTERFACE, Network, address

PORT = 29500
WORKER = Path(__file__).with_name("ddp_worker.py")


class WorkerError(RuntimeError):
    """A worker ended; the message is the end of what it said."""


class Hosts:
    """Workers on the hosts of a network. After a `WorkerError` they start anew when next asked."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._workers: list[subprocess.Popen[str]] = []
        self._answers: SimpleQueue[tuple[int, str]] = SimpleQueue()
        self._port = PORT

    def ask(self, do: str, **details: Any) -> list[Any]:
        """Give every worker a command; the answers in the order of ranks."""
        if not self._workers:
            self._start()
        command = json.dumps({"do": do, **details})
        for worker in self._workers:
            assert worker.stdin is not None
            with suppress(BrokenPipeError):  # its end of file comes next
                print(command, file=worker.stdin, flush=True)
        answers: dict[int, Any] = {}
        while len(answers) < len(self._workers):
            rank, line = self._answers.get()
            if not line:
                raise WorkerError(self._stop(rank))
            answers[rank] = json.loads(line)
        return [answers[rank] for rank in sorted(answers)]

    def _start(self) -> None:
        self._answers = SimpleQueue()
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 it outlives this call
        self._port += 1  # the last one may still linger
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": INTERFACE}
        for rank in self.network.hosts:
            meeting = f"tcp://{address(0)}:{self._port}"
            words = [str(rank), str(len(self.network.hosts)), meeting]
            worker = subprocess.Popen(
                [*self.network.on(rank), sys.executable, str(WORKER), *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment,
                text=True,
                start_new_session=True,
            )
            self._workers.append(worker)
            arguments = (rank, worker, self._answers)
            threading.Thread(target=_listen, args=arguments, daemon=True).start()

    def _stop(self, rank: int) -> str:
        """End all workers; the last words of the one that failed, which says most."""
        self.close()
        self._errors.seek(0)
        words = self._errors.read().strip().splitlines()
        return f"rank {rank}: " + " / ".join(words[-3:])

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
            worker.wait()
        self._workers = []


def _listen(
    rank: int, worker: subprocess.Popen[str], answers: SimpleQueue[tuple[int, str]]
) -> None:
    assert worker.stdout is not None
    for line in worker.stdout:
        answers.put((rank, line))
    answers.put((rank, ""))
