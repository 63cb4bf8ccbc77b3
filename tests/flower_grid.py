"""Flower without its engine: nodes in this process, one after the other. Strategies and apps cannot tell the difference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

App = Callable[[Message, Context], Message]


class LocalGrid(Grid):
    """Nodes 1 to `count`, each with its own context; keeps every message and reply that passed."""

    def __init__(self, app: App, count: int, *, run: int = 1) -> None:
        # What the engine sets before it starts a ServerApp; messages are stamped with it.
        TaskIdentity.task_id = TaskIdentity.run_id = run
        TaskIdentity.node_id = 0
        self.app = app
        self.contexts = {
            node: Context(run, node, {"partition-id": node - 1}, RecordDict(), {})
            for node in range(1, count + 1)
        }
        self.sent: list[Message] = []
        self.replies: list[Message] = []
        #: Called with each reply before the server sees it; None loses it.
        self.on_reply: Callable[[Message], Message | None] = lambda reply: reply

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        answers = []
        for message in sorted(messages, key=lambda message: message.metadata.dst_node_id):
            self.sent.append(copy(message))
            reply = self.on_reply(self.answer(message))
            if reply is not None:
                self.replies.append(copy(reply))
                answers.append(reply)
        return answers

    def answer(self, message: Message) -> Message:
        """What a node replies; its own failure is an error message, as in Flower."""
        node = message.metadata.dst_node_id
        received = copy(message)
        try:
            reply = self.app(received, self.contexts[node])
        except Exception as error:
            reply = Message(Error(code=0, reason=str(error)), reply_to=received)
        reply.metadata.__dict__["_src_node_id"] = node
        return reply

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    run = property(set_run)
    create_message = push_messages = pull_messages = set_run  # type: ignore[assignment]


def copy(message: Message) -> Message:
    """A message of its own, as one that travelled is."""
    if message.has_error():
        return Message(message.error, metadata=message.metadata)
    content = RecordDict({name: type(r)(dict(r)) for name, r in message.content.items()})
    return Message(content, metadata=message.metadata)


def model(shapes: Mapping[str, tuple[int, ...]]) -> ArrayRecord:
    """Small integers as float32, always the same."""
    generator = np.random.default_rng(7)
    return ArrayRecord(
        {name: Array(whole_numbers(generator, shape)) for name, shape in shapes.items()}
    )


def whole_numbers(generator: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return np.asarray(generator.integers(-50, 50, shape)).astype(np.float32)


def values(record: ArrayRecord) -> dict[str, bytes]:
    """The arrays' bytes, as float32, which some strategies leave."""
    return {name: array.numpy().astype(np.float32).tobytes() for name, array in record.items()}


def app(*mods: Any, constant: bool = False, pull: float = 0.5) -> ClientApp:
    """Clients that pull the model towards targets of their own; or each add the same whole numbers every time.

    From a model of whole numbers both are exact in float32, and so are differences and sums.
    """
    client = ClientApp(mods=list(mods))

    @client.train()
    def train(message: Message, context: Context) -> Message:
        who = int(context.node_config["partition-id"])
        trained = {}
        for name, array in message.content["arrays"].items():
            x = array.numpy()
            target = whole_numbers(np.random.default_rng([who, len(name)]), x.shape)
            change = target if constant else pull * (target - x)
            trained[name] = Array(np.asarray(x + change).astype(x.dtype))
        metrics = {"num-examples": 10 if constant else 10 * (who + 1), "loss": float(who)}
        content = {"arrays": ArrayRecord(trained), "metrics": MetricRecord(metrics)}
        return Message(RecordDict(content), reply_to=message)

    @client.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        total = sum(float(a.numpy().sum()) for a in message.content["arrays"].values())
        metrics = MetricRecord({"num-examples": 1, "sum": total})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return client
