"""A client as Flower's own examples write it. Only the line with `mods` is new."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import tersegrad as tg
<<<<<<< HEAD
from digits import task
=======
from digits.task import accuracy, load_data, make_network
from digits.task import train as train_network
>>>>>>> 981f7cd9bf61e209ed553309d3fa7122a10308fa
from tersegrad.flower import compression_mod

app = ClientApp(mods=[compression_mod(tg.TopK(density=0.05, values=tg.Quantize(bits=4)))])


@app.train()
def train(message: Message, context: Context) -> Message:
    network = task.make_network()
    network.load_state_dict(message.content["arrays"].to_torch_state_dict())
<<<<<<< HEAD
    images, labels = task.load_data(
=======
    images, labels = load_data(
>>>>>>> 981f7cd9bf61e209ed553309d3fa7122a10308fa
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
<<<<<<< HEAD
    images, labels = task.load_data(
        context.node_config["partition-id"], context.node_config["num-partitions"]
    )
    metrics = MetricRecord(
        {"accuracy": task.accuracy(network, images, labels), "num-examples": len(labels)}
=======
    images, labels = load_data(
        context.node_config["partition-id"], context.node_config["num-partitions"]
    )
    metrics = MetricRecord(
        {"accuracy": accuracy(network, images, labels), "num-examples": len(labels)}
>>>>>>> 981f7cd9bf61e209ed553309d3fa7122a10308fa
    )
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
