"""A TCP proxy on loopback that counts what passes in each direction."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Counter:
    """Connections to `port` go on to another port of this machine; `up` and `down` are bytes so far."""

    def __init__(self, target: int) -> None:
        self.target, self.up, self.down = target, 0, 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                near.close()  # the server is not there yet; the client tries again
                continue
            for source, sink, up in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._pass, args=(source, sink, up), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                with self._lock:
                    self.up += len(data) * up
                    self.down += len(data) * (not up)
                sink.sendall(data)
        except OSError:
            pass  # one side hung up
        finally:
            for end in (source, sink):
                end.close()

    def close(self) -> None:
        self._listener.close()


@contextmanager
def counting(target: int) -> Iterator[Counter]:
    counter = Counter(target)
    try:
        yield counter
    finally:
        counter.close()


def wait_for(port: int, seconds: float = 60) -> None:
    """Until somebody listens on a port of this machine; `TimeoutError` if nobody does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError(f"nobody listens on port {port} after {seconds:g} seconds")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
