"""The server's side: a strategy around a strategy, which decodes what clients send and drops what it cannot trust."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from ..codec import Codec
from ..errors import InputError, PayloadError
from ..federated import Layout, Limits, apply, decode
from . import records
from .broadcast import Broadcast, same
from .records import RECORD, Arrays

_log = logging.getLogger("flwr")


class CompressedStrategy(Strategy):  # type: ignore[misc,unused-ignore]
    """Any Flower strategy, with compressed messages in both directions. Clients need `compression_mod`.

    The inner strategy sees ordinary replies with the model's arrays, in the order of the nodes' ids. A reply that is damaged, forged, not
    finite, of another layout or beyond the limits is left out of the round, as if its client had not taken part; so are replies
    with metrics that do not fit to those of the others. This strategy must be the outermost.

    Parameters
    ----------
    inner : flwr.serverapp.strategy.Strategy
        It must send all clients the same arrays, and one ArrayRecord to each.
    codec_down : Codec, optional
        For the model on its way to the clients: they get the compressed change of what they hold, and the whole model at first, after a
        failure, and after missing too many rounds. Without it the model travels whole.
    rules_down, min_size
        As in `tersegrad.federated.Client`, for the way down.
    limits : Limits, optional
        What is accepted of one client; also bounds the number of examples that it may claim.

    Attributes
    ----------
    rejected : dict of int to str
        Nodes whose last reply was left out, and why.

    Notes
    -----
    Every round's aggregated metrics also hold ``tersegrad-bytes-up`` and ``tersegrad-bytes-down`` (of arrays, in all messages of the
    phase), ``tersegrad-ratio`` (against uncompressed arrays in the same messages) and ``tersegrad-rejected`` (clients).

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAvg
    >>> import tersegrad as tg
    >>> from tersegrad.flower import CompressedStrategy
    >>> strategy = CompressedStrategy(FedAvg(), codec_down=tg.TopK(density=0.05, values=tg.Quantize(8)))
    """

    def __init__(
        self,
        inner: Strategy,
        codec_down: Codec | None = None,
        *,
        rules_down: Mapping[str, Codec] | None = None,
        min_size: int = 64,
        limits: Limits | None = None,
    ) -> None:
        if not isinstance(inner, Strategy):
            raise InputError(f"inner must be a Flower strategy, not {type(inner).__name__}")
        self.inner = inner
        self.limits = Limits() if limits is None else limits
        self.rejected: dict[int, str] = {}
        self._weight_key = _weight_key(inner)
        self._broadcast = Broadcast(codec_down, rules_down, min_size)
        self._model: Arrays = {}
        self._layout = Layout.of({})
        self._name = ""
        self._waiting: set[int] = set()
        #: Fingerprints of the last message of every node that a round took, and of those that this round may take.
        self._accepted: dict[int, bytes] = {}
        self._unpacked: dict[int, bytes] = {}
        self._shapes: dict[str, Any] = {}
        self._bytes_down = self._whole_bytes = 0

    def summary(self) -> None:
        """Log what is configured, for the inner strategy too."""
        _log.info(
            "\t├──> Compressed by tersegrad %s; inside it:",
            "in both directions" if self._broadcast.encoder else "on the way up",
        )
        self.inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The inner strategy's messages, with the model as `codec_down` sends it."""
        messages = self.inner.configure_train(server_round, arrays, config, grid)
        return self._pack(messages, arrays)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The same; clients that got this model for training already get nothing but that news."""
        messages = self.inner.configure_evaluate(server_round, arrays, config, grid)
        return self._pack(messages, arrays)

    def _pack(self, messages: Iterable[Message], arrays: ArrayRecord) -> list[Message]:
        messages = list(messages)
        if messages:
            self._broadcast.publish(arrays)
        self._model = records.to_numpy(arrays)
        self._layout = Layout.of(self._model)
        self._whole_bytes = sum(len(array.data) for array in arrays.values())
        self._waiting, self._bytes_down = set(), 0
        for message in messages:
            self._name, record = records.only_arrays(
                message.content, "a message of the inner strategy"
            )
            if not same(record, arrays):
                raise InputError(
                    "the inner strategy sends clients other arrays than it was given; CompressedStrategy cannot follow"
                )
            node = message.metadata.dst_node_id
            packed, changes = self._broadcast.record_for(node)
            control = {
                "layout": self._layout.digest.hex(),
                "version": self._broadcast.version,
                "changes": changes,
                "accepted": self._accepted.get(node, bytes(8)),
            }
            # Strategies put one RecordDict into all messages: it must not change.
            message.content = RecordDict(
                dict(message.content) | {self._name: packed, RECORD: ConfigRecord(control)}
            )
            self._waiting.add(node)
            self._bytes_down += records.nbytes(message.content)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The inner strategy's result for the replies that can be trusted."""
        self._unpacked = {}
        good, metrics = self._sift("train", list(replies), self._unpack)
        nodes = [reply.metadata.src_node_id for reply in good]
        self._accepted |= {node: self._unpacked[node] for node in nodes}
        arrays, inner_metrics = self.inner.aggregate_train(server_round, good)
        if arrays is not None:
            arrays = _as_before(arrays, self._model)
        return arrays, MetricRecord(dict(inner_metrics or {}) | metrics)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """The inner strategy's metrics of the replies that can be trusted."""
        good, metrics = self._sift("evaluate", list(replies), lambda reply: None)
        inner_metrics = self.inner.aggregate_evaluate(server_round, good)
        if inner_metrics is None and not self._waiting:
            return None  # nobody was asked
        return MetricRecord(dict(inner_metrics or {}) | metrics)

    def _sift(
        self, phase: str, replies: list[Message], unpack: Callable[[Message], None]
    ) -> tuple[list[Message], dict[str, int | float]]:
        """Replies to be aggregated, in the order of nodes, and what the phase cost."""
        for node in self._waiting - {reply.metadata.src_node_id for reply in replies}:
            self._broadcast.lost(node)
        answers = [reply for reply in replies if not reply.has_error()]
        up = sum(records.nbytes(reply.content) for reply in answers)
        good: list[Message] = []
        for reply in sorted(replies, key=lambda reply: reply.metadata.src_node_id):
            try:
                if reply.has_error():
                    raise PayloadError(f"its app failed: {reply.error.reason}")
                self._check_metrics(reply.content)
                unpack(reply)
                good.append(reply)
                self._broadcast.arrived(reply.metadata.src_node_id)
            except PayloadError as error:
                self._reject(reply, str(error))
        good = self._alike(phase, good)
        for reply in good:
            self.rejected.pop(reply.metadata.src_node_id, None)
        rejected = len(replies) - len(good)
        if self._weight_key and not any(_metrics(r.content)[self._weight_key] for r in good):
            good = []  # there is no mean of weights 0
        dense = self._whole_bytes * (len(self._waiting) + (len(answers) if phase == "train" else 0))
        return good, {
            "tersegrad-bytes-up": up,
            "tersegrad-bytes-down": self._bytes_down,
            "tersegrad-ratio": dense / max(up + self._bytes_down, 1),
            "tersegrad-rejected": rejected,
        }

    def _check_metrics(self, content: RecordDict) -> None:
        """`PayloadError` unless the inner strategy can average these metrics."""
        if len(content.metric_records) != 1:
            raise PayloadError(f"it sent {len(content.metric_records)} MetricRecords, not one")
        metrics = _metrics(content)
        for name, value in metrics.items():
            if not all(math.isfinite(x) for x in (value if isinstance(value, list) else [value])):
                raise PayloadError(f"metric {name!r} is not finite")
        if self._weight_key:
            self.limits.check_weight(metrics.get(self._weight_key))

    def _unpack(self, reply: Message) -> None:
        """Put the client's weights in place of its message."""
        found = list(reply.content.array_records.items())
        if len(found) != 1 or list(found[0][1]) != [RECORD]:
            raise PayloadError(
                f"it sent {len(found)} ArrayRecords with the arrays {[sorted(r)[:3] for _, r in found]}, "
                "not one compressed update: does the ClientApp have compression_mod?"
            )
        name, record = found[0]
        message = records.to_message(record[RECORD])
        update = decode(message, self._layout, limits=self.limits)
        with np.errstate(over="ignore"):
            weights = apply(self._model, update)
        if any(x.dtype == np.float16 and not np.isfinite(x).all() for x in weights.values()):
            raise PayloadError("its update is beyond float16, the model's dtype")
        content = dict(reply.content)
        del content[name]
        if self._name in content:
            raise PayloadError(f"its record {self._name!r} is no ArrayRecord")
        # In the order of the model's names, which strategies compare and zip.
        arrays = records.to_record({key: weights[key] for key in self._model})
        reply.content = RecordDict(content | {self._name: arrays})
        self._unpacked[reply.metadata.src_node_id] = records.fingerprint(message)

    def _alike(self, phase: str, replies: list[Message]) -> list[Message]:
        """Those replies whose metrics have the names and lengths that most have: strategies refuse to average others."""
        shapes = [_shape(reply.content) for reply in replies]
        if not shapes:
            return []
        counts, before = Counter(shapes), self._shapes.get(phase)
        usual = max(counts, key=lambda shape: (counts[shape], shape == before))
        self._shapes[phase] = usual
        for reply, shape in zip(replies, shapes, strict=True):
            if shape != usual:
                self._reject(reply, f"it sent the metrics {shape}, most sent {usual}")
        return [reply for reply, shape in zip(replies, shapes, strict=True) if shape == usual]

    def _reject(self, reply: Message, reason: str) -> None:
        node = reply.metadata.src_node_id
        self.rejected[node] = reason
        self._broadcast.lost(node)
        _log.warning("Node %d is left out of this round: %s", node, reason)


def _metrics(content: RecordDict) -> MetricRecord:
    return next(iter(content.metric_records.values()))


def _shape(content: RecordDict) -> tuple[object, ...]:
    """What replies must have in common to be averaged."""
    (record_name,) = content.metric_records
    lengths = {
        name: len(value) if isinstance(value, list) else "number"
        for name, value in _metrics(content).items()
    }
    return record_name, *sorted(lengths.items())


def _weight_key(strategy: Any) -> str | None:
    """The metric by which a strategy weights clients; wrappers, such as those of differential privacy, are looked through."""
    while strategy is not None:
        key = getattr(strategy, "weighted_by_key", None)
        if isinstance(key, str):
            return key
        strategy = getattr(strategy, "strategy", None)
    return None


def _as_before(arrays: ArrayRecord, model: Arrays) -> ArrayRecord:
    """Aggregated arrays in the dtypes of the model: means of float32 may be float64, and a counter's mean no integer."""
    result = records.to_numpy(arrays)
    for name, array in result.items():
        dtype = model[name].dtype if name in model else array.dtype
        result[name] = (np.rint(array) if dtype.kind in "iub" else array).astype(dtype)
    return records.to_record(result)
