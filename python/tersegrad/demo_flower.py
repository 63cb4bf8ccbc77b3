"""The federated demo on Flower's simulation engine: an app like any other, with one line more on each side."""

from __future__ import annotations

import logging
import os
import warnings
from functools import cache
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault(
    "RAY_worker_niceness", "0"
)  # at Ray's 15 a busy machine lets the clients starve

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from . import demo_clients as work
from .codecs.cast import Identity
from .demo import load_data
from .demo_federated import METHODS, Event, Method, Settings
from .flower import CompressedStrategy, codec_config, compression_mod


def forget(message: Message, context: Context, call_next: Any) -> Message:
    """A mod: all methods train in one run of Flower's, and none inherits another's residuals."""
    if message.content["config"]["server-round"] == 1:
        context.state = RecordDict()
    reply: Message = call_next(message, context)
    return reply


client_app = ClientApp(mods=[forget, compression_mod(Identity(), min_size=1)])


@client_app.train()  # type: ignore[untyped-decorator,unused-ignore]
def train_client(message: Message, context: Context) -> Message:
    """One pass over the client's images."""
    torch.set_num_threads(1)
    config = message.content["config"]
    task = _task(config["data"], config["clients"], config["seed"])
    client = int(context.node_config["partition-id"])
    network = work.make_network(task.side, 0)
    network.load_state_dict(message.content["arrays"].to_torch_state_dict())
    images, labels = task.clients[client]
    work.train(network, images, labels, seed=1000 * config["server-round"] + client)
    content = {
        "arrays": ArrayRecord(network.state_dict()),
        "metrics": MetricRecord({"num-examples": len(labels)}),
    }
    return Message(RecordDict(content), reply_to=message)


def train(settings: Settings, event: Event) -> None:
    """Run the app, with one method's codecs after the other's."""
    server_app = ServerApp()

    @server_app.main()  # type: ignore[untyped-decorator,unused-ignore]
    def main(grid: Grid, context: Context) -> None:
        for method in METHODS:
            _train(grid, settings, method, event)

    logging.getLogger("flwr").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_simulation(
            server_app,
            client_app,
            settings.clients,
            backend_config={
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                "init_args": {"log_to_driver": False, "logging_level": "ERROR"},
            },
        )


def _train(grid: Grid, settings: Settings, method: Method, event: Event) -> None:
    task = _task(settings.data, settings.clients, settings.seed)
    network = work.make_network(task.side, settings.seed)
    initial = ArrayRecord(network.state_dict())
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=settings.clients)
    config = {"data": settings.data, "clients": settings.clients, "seed": settings.seed}
    if method.up is not None:
        strategy = CompressedStrategy(strategy, method.down, min_size=1)
        config |= codec_config(method.up)
    accuracies: dict[int, float] = {}

    def evaluate(number: int, arrays: ArrayRecord) -> None:
        network.load_state_dict(arrays.to_torch_state_dict())
        if number:
            accuracies[number] = work.accuracy(network, *task.test)
            event(method.name, number, accuracies[number], 0, 0)

    options = {"train_config": ConfigRecord(config), "evaluate_fn": evaluate}
    result = strategy.start(grid, initial, num_rounds=settings.rounds, **options)
    whole = settings.clients * sum(array.numpy().nbytes for array in initial.values())
    for number, accuracy in accuracies.items():  # the bytes are known at the end
        metrics = result.train_metrics_clientapp[number]
        up, down = (metrics.get(f"tersegrad-bytes-{way}", whole) for way in ("up", "down"))
        event(method.name, number, accuracy, int(up), int(down))


@cache
def _task(data: Any, clients: Any, seed: Any) -> work.Task:
    return work.split(*load_data(data), clients, seed)
