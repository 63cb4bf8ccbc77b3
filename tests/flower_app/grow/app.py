"""One client and one server; with `compress = false` Flower's own messages."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

import tersegrad as tg
from tersegrad.flower import CompressedStrategy, compression_mod

CODEC = tg.TopK(density=0.01, values=tg.Quantize(bits=8))
ENTRIES = 300_000

client = ClientApp(mods=[compression_mod(CODEC)])
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    who = int(context.node_config["partition-id"])
    change = np.random.default_rng(who).standard_normal(ENTRIES).astype(np.float32)
    weights = message.content["arrays"]["weights"].numpy() + change
    content = {
        "arrays": ArrayRecord({"weights": Array(weights)}),
        "metrics": MetricRecord({"num-examples": 1}),
    }
    return Message(RecordDict(content), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    strategy = FedAvg(fraction_evaluate=0.0)
    if context.run_config["compress"]:
        strategy = CompressedStrategy(strategy, CODEC)
    initial = ArrayRecord({"weights": Array(np.zeros(ENTRIES, np.float32))})
    result = strategy.start(grid, initial, num_rounds=int(context.run_config["rounds"]))
    for number, metrics in result.train_metrics_clientapp.items():
        print(f"round {number}: {dict(metrics)}")
    print(f"norm {np.linalg.norm(result.arrays['weights'].numpy()):.3f}, finished")
