"""The client's side: a mod that unpacks the model for the app and packs what the app returns."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict

from ..codec import Codec
from ..errors import StateError
from ..federated import Client, Layout, apply, decode
from . import records
from .records import CODEC_KEY, RECORD, Arrays

App = Callable[[Message, Context], Message]


def compression_mod(
    codec: Codec,
    *,
    rules: Mapping[str, Codec] | None = None,
    min_size: int = 64,
    error_feedback: bool = True,
) -> Callable[[Message, Context, App], Message]:
    """A Flower mod that sends only the compressed change of the model, with error feedback. The server needs `CompressedStrategy`.

    Parameters
    ----------
    codec, rules, min_size, error_feedback
        As in `tersegrad.federated.Client`. A codec in the node's config (``tersegrad-codec``, see `codec_config`) replaces `codec` on that
        node; else one in the message's ConfigRecord does for that round. Random streams differ from node to node.

    Notes
    -----
    Put it before mods that look at arrays, such as those of differential privacy, and after those that log sizes. Residuals, and with
    compressed broadcasts the model, are kept in ``context.state`` by run and layout; those of earlier runs are removed.
    A server without `CompressedStrategy` gets what the app returns, uncompressed.

    Examples
    --------
    >>> from flwr.clientapp import ClientApp
    >>> import tersegrad as tg
    >>> from tersegrad.flower import compression_mod
    >>> app = ClientApp(mods=[compression_mod(tg.TopK(density=0.01, values=tg.Quantize(4)))])
    """
    options = {"rules": rules, "min_size": min_size, "error_feedback": error_feedback}
    Client(codec, **options)  # type: ignore[arg-type]  # checks them before the first message
    return _Mod(codec, options)


@dataclasses.dataclass(frozen=True)
class _Mod:
    codec: Codec
    options: dict[str, Any]

    def __call__(self, message: Message, context: Context, call_next: App) -> Message:
        control = records.control(message.content)
        if control is None:
            return call_next(message, context)
        slot = _Slot(context, control)
        name, record = records.only_arrays(message.content, "a message")
        model = slot.receive(record)
        message.content = RecordDict(
            {key: value for key, value in message.content.items() if key != RECORD}
            | {name: records.to_record(model)}
        )
        asked = context.node_config.get(CODEC_KEY) or records.codec_in(message.content)
        reply = call_next(message, context)
        if reply.has_error() or message.metadata.message_type.split(".")[0] != MessageType.TRAIN:
            return reply
        codec = self.codec if asked is None else records.read_codec(asked)
        client = Client(_of_node(codec, context.node_id), **self.options)
        slot.load(client)
        name, record = records.only_arrays(reply.content, "the app's reply")
        packed = client.encode(records.to_numpy(record), base=model)
        slot.save(client, packed)
        reply.content[name] = ArrayRecord({RECORD: records.to_array(packed)})
        return reply


class _Slot:
    """What one client keeps of one model in one run, in the `context.state` that Flower keeps for it."""

    def __init__(self, context: Context, control: ConfigRecord) -> None:
        self.state, self.control = context.state, control
        run = f"{RECORD}.{context.run_id:x}."
        for key in [key for key in self.state if key.startswith(RECORD) and key[: len(run)] != run]:
            del self.state[key]
        self.key = f"{run}{control['layout']}"

    def receive(self, record: ArrayRecord) -> Arrays:
        """The model that a message brings, whole or as changes of the one before."""
        version = int(self.control["version"])
        if not self.control["changes"]:
            model = records.to_numpy(record)
        else:
            held = self.state.array_records.get(f"{self.key}.model")
            if held is None:
                raise StateError(
                    "changes of a model came that this client does not hold; the server sends it whole next time"
                )
            model = records.to_numpy(held)
            have, layout = int(self.notes["version"]), Layout.of(model)
            for number, array in record.items():
                if int(number) > have:
                    change = decode(records.to_message(array), layout)
                    model = apply(model, change)
        if version:
            self.state[f"{self.key}.model"] = records.to_record(model)
            self.notes["version"] = version
        return model

    @property
    def notes(self) -> ConfigRecord:
        """Plain values; made at the first use."""
        return self.state.config_records.get(self.key) or self._new_notes()

    def _new_notes(self) -> ConfigRecord:
        self.state[self.key] = ConfigRecord({"version": 0, "sent": b"", "client": ""})
        return self.state[self.key]

    def load(self, client: Client) -> None:
        """Give `client` its residuals; what it sent last goes back into them if the server did not take it."""
        text = str(self.notes["client"])
        if not (text and client.error_feedback):
            return
        residuals = records.to_numpy(self.state.array_records[f"{self.key}.residual"])
        client.load_state_dict({**json.loads(text), "residuals": residuals})
        sent = self.notes["sent"]
        if residuals and records.fingerprint(sent) != self.control["accepted"]:
            client.undo(sent)

    def save(self, client: Client, sent: bytes) -> None:
        if not client.error_feedback:
            return
        state = client.state_dict()
        self.state[f"{self.key}.residual"] = records.to_record(state.pop("residuals"))
        self.notes["client"], self.notes["sent"] = json.dumps(state), sent


def _of_node(codec: Codec, node: int) -> Codec:
    """`codec` with random streams of its own: rounding errors of clients that round alike would not average out."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(codec):  # type: ignore[arg-type]
        value = getattr(codec, field.name)
        if isinstance(value, Codec):
            changes[field.name] = _of_node(value, node)
        elif field.name == "seed" and isinstance(value, int):
            changes["seed"] = (value + node) % 2**64
    return dataclasses.replace(codec, **changes)  # type: ignore[type-var]
