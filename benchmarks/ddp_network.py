"""A slow network on one machine: hosts are network namespaces, their links are shaped by `tc tbf`.

Every host has a cable (veth) to a switch (a bridge in a namespace of its own), shaped in both
directions. A namespace lives as long as the processes in it: the first is a `cat` that reads from
us and ends when we do, however we end. So nothing can be left behind, and nothing is named
outside of the namespaces.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

#: The interface of every host, inside its namespace.
INTERFACE = "eth0"
CONGESTION_CONTROL = "reno"

_SERVER = """
import socket
with socket.create_server(("", 5000)) as server:
    print("ready", flush=True)
    link, _ = server.accept()
    while link.recv(1 << 20):
        pass
    link.sendall(b"x")
"""

_CLIENT = """
import socket, sys, time
with socket.create_connection((sys.argv[1], 5000)) as link:
    begin = time.perf_counter()
    link.sendall(bytes(int(sys.argv[2])))
    link.shutdown(socket.SHUT_WR)
    link.recv(1)
    print(time.perf_counter() - begin)
"""


class NetworkError(RuntimeError):
    """No network can be made here; the message says what to do."""


def address(host: int) -> str:
    return f"10.0.0.{host + 1}"


class Network:
    """`hosts` network namespaces around a switch; a context manager.

    Raises
    ------
    NetworkError
        A tool or the right to make namespaces is missing.
    """

    def __init__(self, hosts: int, mtu: int = 1500) -> None:
        self.hosts = range(hosts)
        self._mtu = str(mtu)
        self._stack = ExitStack()

    def __enter__(self) -> Network:
        check_tools()
        with self._stack:
            self._switch = self._namespace()
            self._names = [self._namespace() for _ in self.hosts]
            ip = [*self.inside(self._switch), "ip", "link"]
            _run([*ip, "add", "switch", "type", "bridge"])
            _run([*ip, "set", "switch", "up"])
            for host, namespace in enumerate(self._names):
                peer = ["peer", "name", INTERFACE, "netns", str(namespace)]
                _run([*ip, "add", f"port{host}", "type", "veth", *peer])
                _run([*ip, "set", f"port{host}", "master", "switch", "mtu", self._mtu, "up"])
                own = [*self.inside(namespace), "ip"]
                _run([*own, "link", "set", "lo", "up"])
                _run(
                    [*own, "link", "set", INTERFACE, "mtu", self._mtu, "addrgenmode", "none", "up"]
                )
                _run([*own, "address", "add", f"{address(host)}/24", "dev", INTERFACE])
                # Allowed everywhere; what this machine prefers shall not decide.
                control = f"echo {CONGESTION_CONTROL} > /proc/sys/net/ipv4/tcp_congestion_control"
                _run([*self.inside(namespace), "sh", "-c", control])
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _namespace(self) -> int:
        """The process that keeps a new namespace."""
        holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo ready; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # ctrl-C is for us, who then close the pipe
        )
        self._stack.callback(holder.communicate)
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != "ready\n":
            raise NetworkError(f"no network namespace: {holder.stderr.read().strip()}. {HOW}")
        return holder.pid

    def inside(self, namespace: int) -> list[str]:
        return ["nsenter", f"--net=/proc/{namespace}/ns/net", "--"]

    def on(self, host: int) -> list[str]:
        """What to put in front of a command that shall run on a host."""
        return self.inside(self._names[host])

    def shape(self, mbit: float | None) -> None:
        """Limit every cable to `mbit` Mbit/s each way; None takes the limit off."""
        for host, namespace in enumerate(self._names):
            for place, device in ((namespace, INTERFACE), (self._switch, f"port{host}")):
                tc = [*self.inside(place), "tc", "qdisc"]
                subprocess.run([*tc, "delete", "dev", device, "root"], capture_output=True)
                if mbit is not None:
                    _run([*tc, "add", "dev", device, "root", "tbf", *self._bucket(mbit)])

    def _bucket(self, mbit: float) -> list[str]:
        """The options of tbf.

        What may go at once is half a millisecond's worth, at least two packets: a deep bucket
        would let a whole compressed message through at the speed of memory.
        """
        burst = max(2 * (int(self._mtu) + 14), int(mbit * 1e6 / 8 * 0.0005))
        return ["rate", f"{mbit}mbit", "burst", str(burst), "latency", "50ms"]

    def sent_bytes(self) -> list[int]:
        """Bytes each host has sent over its shaped cable, Ethernet headers of every packet included.

        The shaper counts them. The interface's own counter takes a burst of up to 64 KB that TCP
        hands over in one piece for a single packet, and misses the headers.
        """
        return [self._shaper(host)["bytes"] for host in self.hosts]

    def settle(self) -> None:
        """Wait until what was sent has left."""
        while any(self._shaper(host)["backlog"] for host in self.hosts):
            time.sleep(0.01)

    def _shaper(self, host: int) -> dict[str, int]:
        ask = [*self.on(host), "tc", "-s", "-j", "qdisc", "show", "dev", INTERFACE]
        shapers: list[dict[str, int]] = json.loads(_run(ask))
        return shapers[0]

    def achieved(self, mbit: float) -> float:
        """Mbit/s of a plain TCP transfer of about a second, payload alone."""
        server = subprocess.Popen(
            [*self.on(0), sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            server.stdout.readline()
            size = int(mbit * 1e6 / 8)
            client = [sys.executable, "-c", _CLIENT, address(0), str(size)]
            seconds = float(_run([*self.on(1), *client]))
        finally:
            server.kill()
            server.communicate()
        return size * 8 / seconds / 1e6


HOW = (
    "Run as root (sudo make bench-ddp), or as root of a namespace of your own: "
    "unshare --map-root-user --net make bench-ddp"
)


def check_tools() -> None:
    """Raise NetworkError if hosts cannot be made here."""
    if sys.platform != "linux":
        raise NetworkError("network namespaces are Linux's; this is " + sys.platform)
    packages = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux"}
    packages["nsenter"] = "util-linux"
    missing = sorted({name for tool, name in packages.items() if shutil.which(tool) is None})
    if missing:
        raise NetworkError(f"install {' and '.join(missing)}: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        raise NetworkError(f"only root may make network namespaces. {HOW}")


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NetworkError(f"{' '.join(command)}: {done.stderr.strip()}. {HOW}")
    return done.stdout
