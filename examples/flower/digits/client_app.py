"""A client as Flower's own examples write it. Only the line with `mods` is new."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import tersegrad as tg
from digits import task
from tersegrad.flower import compression_mod

app = ClientApp(mods=[compression_mod(tg.TopK(density=0.05, values=tg.Quantize(bits=4)))])


@app.train()
def train(message: Message, context: Context) -> Message:
    network = task.make_network()
    network.load_state_dict(message.content["arrays"].to_torch_state_dict())
    images, labels = task.load_data(
        context.node_config["partition-id"], context.node_config["num-partitions"]
    )
    config = context.run_config
    loss = task.train(network, images, labels, config["local-epochs"], config["learning-rate"])
    content = {
        "arrays": ArrayRecord(network.state_dict()),
        "metrics": MetricRecord({"loss": loss, "num-examples": len(labels)}),
    }
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    network = task.make_network()
    network.load_state_dict(message.content["arrays"].to_torch_state_dict())
    images, labels = task.load_data(
        context.node_config["partition-id"], context.node_config["num-partitions"]
    )
    metrics = MetricRecord(
        {"accuracy": task.accuracy(network, images, labels), "num-examples": len(labels)}
    )
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
