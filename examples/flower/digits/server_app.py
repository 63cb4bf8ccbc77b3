"""A server as Flower's own examples write it. New are `CompressedStrategy`, and the codec that it tells the clients each run."""

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

import tersegrad as tg
from digits import task
from tersegrad.flower import CompressedStrategy, codec_config

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    up = tg.TopK(density=config["density-up"], values=tg.Quantize(bits=4))
    down = config["density-down"]
    strategy = CompressedStrategy(
        FedAvg(min_available_nodes=2),
        codec_down=tg.TopK(density=down, values=tg.Quantize(bits=4)) if down else None,
    )
    images, labels = task.load_data(-1, 1)

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        network = task.make_network()
        network.load_state_dict(arrays.to_torch_state_dict())
        return MetricRecord({"accuracy": task.accuracy(network, images, labels)})

    result = strategy.start(
        grid,
        ArrayRecord(task.make_network().state_dict()),
        num_rounds=config["num-server-rounds"],
        train_config=ConfigRecord(codec_config(up)),
        evaluate_fn=evaluate,
    )
    for number, metrics in result.train_metrics_clientapp.items():
        reached = result.evaluate_metrics_serverapp[number]["accuracy"]
        sent = metrics["tersegrad-bytes-up"]
        # Clients get the new model when they evaluate it, and then have it for the next round's training.
        received = (
            metrics["tersegrad-bytes-down"]
            + result.evaluate_metrics_clientapp[number]["tersegrad-bytes-down"]
        )
        print(f"round {number}: accuracy {reached:.3f}, {sent:,} bytes up, {received:,} down")
