"""A federated server: how many clients' messages a second it checks, measures and adds, and in how
much memory.

Messages of several clients take turns, so that neither they nor the places they add to are warm.
The peers add without a look at what they add.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import Row, measure, parser, start
from report import Record, markdown, save, show

import tersegrad as tg
from tersegrad.federated import Client, Limits, Server

ENTRIES = 10_000_000
CLIENTS = 24  # that take turns
TOP = tg.TopK(0.01)
CODECS = {
    "TopK(0.01)": TOP,
    "TopK(0.01, Quantize(8))": tg.TopK(0.01, values=tg.Quantize(bits=8)),
    "TopK(0.01, Quantize(4))": tg.TopK(0.01, values=tg.Quantize(bits=4)),
    "Quantize(8)": tg.Quantize(bits=8),
}
COLUMNS = {
    "name": "message",
    "model": "model",
    "bytes": "bytes per client",
    "per_second": "clients/s",
    "quarter": "quartiles",
    "peak_share": "peak memory / (accumulator + message)",
}

_MEMORY = """
import json, re, sys, numpy as np, tersegrad as tg
from pathlib import Path
tg.kernels.set_num_threads(1)
folder, layout = Path(sys.argv[1]), json.loads(sys.argv[2])
field = lambda name: 1024 * int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
warm = np.ones(100_000, np.float32)
tg.federated.Server({"w": warm}).add(tg.federated.Client(tg.TopK(0.01)).encode({"w": warm}))
del warm
open("/proc/self/clear_refs", "w").write("5")
before = field("VmRSS")
server = tg.federated.Server({name: (tuple(shape), "float32") for name, shape in layout.items()})
for sums in server._sums.values():
    sums.fill(0)
for path in sorted(folder.iterdir()):
    server.add(path.read_bytes())
print(json.dumps(field("VmHWM") - before))
"""


def models(n: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """One tensor, and 103 that are spread as in a small transformer: a table, matrices, biases."""
    width = max(8, int((n / 2 / (24 * 12)) ** 0.5))
    many: dict[str, tuple[int, ...]] = {}
    for layer in range(17):
        many |= {f"layer.{layer}.{part}.weight": (width, width * 4) for part in "qkvo"}
        many |= {f"layer.{layer}.{part}.bias": (width,) for part in "qk"}
    rest = n - sum(int(np.prod(shape)) for shape in many.values())
    many["table"] = (rest // width, width)
    return {"1 tensor": {"w": (n,)}, f"{len(many)} tensors": many}


def updates(model: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {name: draw.standard_normal(shape, dtype=np.float32) for name, shape in model.items()}


def peak_share(model: dict[str, tuple[int, ...]], messages: list[bytes]) -> float:
    """What the process grows by at most, over accumulator and one message."""
    with tempfile.TemporaryDirectory() as folder:
        for i, message in enumerate(messages):
            (Path(folder) / f"{i:03}").write_bytes(message)
        done = subprocess.run(
            [sys.executable, "-c", _MEMORY, folder, json.dumps(model)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the memory probe failed:\n{done.stderr}")
    accumulator = sum(4 * int(np.prod(shape)) for shape in model.values())
    return float(json.loads(done.stdout)) / (accumulator + max(map(len, messages)))


def check(server: Server, messages: list[bytes]) -> None:
    """The mean is the mean of what the messages decode to, to the bit."""
    server.reset()
    sums = {
        name: np.zeros(server.layout[i].shape, np.float32) for i, name in enumerate(server._sums)
    }
    for message in messages[:3]:
        server.add(message, 2.0)
        for name, values in server.decode(message).items():
            sums[name] += np.float32(2.0) * values
    for name, mean in server.mean().items():
        if not np.array_equal(mean, sums[name] / np.float32(6.0)):
            raise AssertionError(f"{name}: the mean is not that of the messages")


def adder(server: Server, messages: list[bytes]) -> Callable[[], object]:
    turn = itertools.cycle(messages)
    return lambda: server.add(next(turn), 3.0)


def peers(n: int) -> list[tuple[Row, Record]]:
    """NumPy, of what would be sent: the whole update, or indices and values as they are."""
    sums, k = np.zeros(n, np.float32), n // 100
    dense = np.random.default_rng(0).standard_normal(n, dtype=np.float32)
    sparse = []
    for seed in range(CLIENTS):
        draw = np.random.default_rng(seed)
        index = np.sort(draw.choice(n, k, replace=False)).astype(np.uint32)
        sparse.append((index, draw.standard_normal(k, dtype=np.float32)))
    turn = itertools.cycle(sparse)

    def add_sparse() -> None:
        index, value = next(turn)
        sums[index] += np.float32(3) * value

    def add_dense() -> None:
        np.add(sums, np.float32(3) * dense, out=sums)

    about = {"model": "1 tensor"}
    return [
        (Row("NumPy, u32 indices, unchecked", add_sparse, 8 * k, calls=10), about | {"bytes": 8 * k}),
        (Row("NumPy, dense float32, unchecked", add_dense, 4 * n, calls=2), about | {"bytes": 4 * n}),
    ]  # fmt: skip


def main() -> None:
    parse = parser(__doc__, seconds=40)
    parse.set_defaults(entries=ENTRIES)
    options = parse.parse_args()
    start(options)
    rows: list[Row] = []
    about: dict[str, Record] = {}
    for label, model in models(options.entries).items():
        layout = {name: (shape, "float32") for name, shape in model.items()}
        for name, codec in CODECS.items():
            made = 4 if name == "Quantize(8)" else CLIENTS
            messages = [
                Client(codec, error_feedback=False).encode(updates(model, s)) for s in range(made)
            ]
            server = Server(layout, limits=Limits(max_norm=1e6))
            check(server, messages)
            row = f"{name}, {label}"
            rows.append(Row(row, adder(server, messages), len(messages[0]), calls=made))
            share = peak_share(model, messages[:6])
            about[row] = {
                "name": name,
                "model": label,
                "bytes": len(messages[0]),
                "peak_share": share,
            }
    for row_, record in peers(options.entries):
        rows.append(row_)
        about[row_.name] = {"name": row_.name} | record
    samples = measure(rows, seconds=options.seconds, quiet=options.quiet)
    table: list[dict[str, Any]] = []
    for row_ in rows:
        times = samples[row_.name]
        fast, slow = times.quartiles
        table.append(
            about[row_.name]
            | {"per_second": 1 / times.median, "quarter": f"{1 / slow:.0f} to {1 / fast:.0f}"}
        )
    show("Federated server", COLUMNS, table)
    heading = "# Federated server: check, measure and add the messages of many clients"
    note = f"{CLIENTS} clients' messages take turns; the norm limit is on."
    save("federated", options, table, [heading, note, "", *markdown(COLUMNS, table)])


if __name__ == "__main__":
    main()
