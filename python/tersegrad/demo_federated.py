"""`tersegrad demo --federated`: ten clients with different images train one network, each time sending less.

The clients' work is in `demo_clients.py`, Flower's part in `demo_flower.py`, table and plot in `demo_federated_report.py`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import Codec, Quantize, Sign, TopK
from .demo import load_data, with_data
from .demo_settings import DemoError
from .demo_settings import Settings as DemoSettings

#: Called with a method's name, the round, its accuracy, and the bytes of all clients in that round, up and down.
Event = Callable[[str, int, float, int, int], None]


@dataclass(frozen=True)
class Method:
    """How updates travel up and the model down; without a codec as float32."""

    name: str
    label: str
    up: Codec | None = None
    down: Codec | None = None


_FIVE, _ONE = (TopK(density=d, values=Sign(block_size=65536)) for d in (0.05, 0.01))
METHODS = (
    Method("float32", "float32"),
    Method("up5", "up TopK(5 %) + sign", _FIVE),
    Method("up1", "up TopK(1 %) + sign", _ONE),
    Method("both", "both ways TopK(5 %) + 4 bit", *2 * [TopK(density=0.05, values=Quantize(4))]),
)


@dataclass(frozen=True)
class Settings:
    """One demo. Everything but the method is the same for every method."""

    data: str = "auto"
    rounds: int = 20
    clients: int = 10
    seed: int = 0
    engine: str = "auto"
    out: Path = Path("tersegrad-demo")

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("clients", 2)):
            if getattr(self, name) < least:
                raise DemoError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.engine not in ("auto", "flower", "plain"):
            raise DemoError(f"engine must be auto, flower or plain, not {self.engine!r}")


def run(settings: Settings) -> dict[str, Any]:
    """Train with every method, print the table, write the plot and the results. Returns what the JSON file holds.

    Raises
    ------
    DemoError
        A package is missing, or the settings do not fit.
    """
    checked = with_data(DemoSettings(data=settings.data))
    settings = replace(settings, data=checked.data, engine=choose_engine(settings.engine))
    from .demo_federated_report import Display, report

    if settings.engine == "flower":
        from .demo_flower import train
    else:
        train = train_plainly
    with Display(settings) as display:
        train(settings, display.event)
    return report(settings, display.points)


def choose_engine(asked: str) -> str:
    """Flower's simulation where it is installed, else a loop; `DemoError` if it is asked for and is not there."""
    missing = [name for name in ("flwr", "ray") if importlib.util.find_spec(name) is None]
    if asked == "flower" and missing:
        raise DemoError(
            f"the engine flower needs {' and '.join(missing)}: pip install 'flwr[simulation]'"
        )
    return asked if asked != "auto" else "plain" if missing else "flower"


def train_plainly(settings: Settings, event: Event) -> None:
    """Every method, one client after the other, with the messages that Flower would carry."""
    for method in METHODS:
        _train_plainly(settings, method, event)


def _train_plainly(settings: Settings, method: Method, event: Event) -> None:
    import torch

    from . import demo_clients as work
    from .codecs.cast import Identity
    from .federated import Client, Server, apply, decode

    torch.set_num_threads(1)
    task = work.split(*load_data(settings.data), settings.clients, settings.seed)
    network = work.make_network(task.side, settings.seed)
    weights = work.weights_of(network)
    whole = sum(array.nbytes for array in weights.values())
    feedback = method.up is not None
    clients = [
        Client(method.up or Identity(), min_size=1, error_feedback=feedback) for _ in task.clients
    ]
    down = Client(method.down, min_size=1, error_feedback=False) if method.down else None
    held, broadcast = weights, whole
    for number in range(1, settings.rounds + 1):
        if down is None:
            held = weights
        elif number > 1:
            change = down.encode(weights, base=held)
            held, broadcast = apply(held, decode(change, weights)), len(change)
        server, up = Server(weights), 0
        for i, (client, (images, labels)) in enumerate(zip(clients, task.clients, strict=True)):
            work.load_weights(network, held)
            work.train(network, images, labels, seed=1000 * number + i)
            message = client.encode(work.weights_of(network), base=held)
            server.add(message, weight=len(labels))
            up += len(message) if feedback else whole
        weights = apply(weights, server.mean())
        work.load_weights(network, weights)
        event(method.name, number, work.accuracy(network, *task.test), up, broadcast * len(clients))
