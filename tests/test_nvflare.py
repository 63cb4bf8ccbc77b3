"""The NVFlare filters in real chains, with NVFlare's own serialization between client and server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nvflare", reason="make test-federated runs these where NVFlare is installed")

from forgery import FORGERIES, MODEL, RULES, SPARSE
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_bytes, from_shareable
from nvflare.apis.fl_constant import FilterKey
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.utils.decomposers import flare_decomposers
from nvflare.apis.utils.task_utils import apply_filters
from nvflare.app_common.decomposers import common_decomposers

import tersegrad as tg
from tersegrad.nvflare import CompressDXO, DecompressDXO

flare_decomposers.register()
common_decomposers.register()
TOP_K = tg.TopK(density=0.05, values=tg.Quantize(bits=8))
WEIGHTS = {"weight": np.ones((60, 20), np.float32), "steps": np.array(3, np.int64)}


class Server:
    """The server's side of a job: one context manager, whose sticky properties outlive a request."""

    def __init__(self, **limits: float) -> None:
        self.contexts = FLContextManager(engine=None, identity_name="server", job_id="job")
        # NVFlare builds a filter for each chain.
        self.data, self.results = DecompressDXO(**limits), DecompressDXO(**limits)

    def send(self, weights: dict[str, Any]) -> dict[str, Any]:
        task = DXO(DataKind.WEIGHTS, dict(weights)).to_shareable()
        return dict(
            from_shareable(passed(self.data, task, self.contexts.new_context(), FilterKey.OUT)).data
        )

    def receive(self, sent: bytes) -> DXO:
        result = from_bytes(sent).to_shareable()
        return from_shareable(
            passed(self.results, result, self.contexts.new_context(), FilterKey.IN)
        )


def passed(one: Any, shareable: Any, context: FLContext, direction: str) -> Any:
    filters = {f"train{FilterKey.DELIMITER}{direction}": [one]}
    return apply_filters("filters", shareable, context, filters, "train", direction)


def sent(one: CompressDXO, update: dict[str, Any], steps: Any = 10) -> bytes:
    """What a client puts on the wire."""
    dxo = DXO(DataKind.WEIGHT_DIFF, dict(update), {MetaKey.NUM_STEPS_CURRENT_ROUND: steps})
    context = FLContextManager(engine=None, identity_name="site", job_id="job").new_context()
    return from_shareable(passed(one, dxo.to_shareable(), context, FilterKey.OUT)).to_bytes()


def update(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    change = generator.standard_normal((60, 20)).astype(np.float32)
    return {"weight": change, "steps": np.array(seed, np.int64)}


def test_the_pair_does_what_client_and_server_do() -> None:
    server, pair = Server(), CompressDXO(TOP_K)
    client = tg.federated.Client(TOP_K)
    assert server.send(WEIGHTS) is not None
    for step in range(4):  # residuals are kept from step to step
        received = server.receive(sent(pair, update(step)))
        wanted = tg.federated.decode(client.encode(update(step)), WEIGHTS)
        assert received.data_kind == DataKind.WEIGHT_DIFF
        assert {n: x.tobytes() for n, x in received.data.items()} == {
            n: x.tobytes() for n, x in wanted.items()
        }
        assert received.meta[MetaKey.NUM_STEPS_CURRENT_ROUND] == 10
        assert MetaKey.PROCESSED_ALGORITHM not in received.meta


def test_the_model_goes_out_as_it_is() -> None:
    received = Server().send(WEIGHTS)
    assert all(received[name] is array for name, array in WEIGHTS.items())


def test_few_bytes_are_sent() -> None:
    dense = DXO(DataKind.WEIGHT_DIFF, update(0)).to_bytes()
    assert len(dense) > 4 * 1200
    assert len(sent(CompressDXO(TOP_K), update(0))) < len(dense) / 5


def test_a_codec_may_be_given_as_a_job_configuration_gives_it() -> None:
    assert sent(CompressDXO(TOP_K.to_dict()), update(0)) == sent(CompressDXO(TOP_K), update(0))


def test_options_are_checked_when_the_job_starts() -> None:
    with pytest.raises(tg.CodecError, match="no codec is called 'Zip'"):
        CompressDXO({"codec": "Zip"})
    with pytest.raises(tg.InputError, match="min_size"):
        CompressDXO(TOP_K, min_size=-1)
    with pytest.raises(tg.InputError, match="max_norm"):
        DecompressDXO(max_norm=-1)


@pytest.mark.parametrize("name", FORGERIES)
def test_every_forgery_is_refused(name: str) -> None:
    server = Server(max_norm=1e4, max_abs=1e4, max_weight=1e4)
    server.send(MODEL)
    honest = tg.federated.Client(SPARSE, rules=RULES, min_size=8).encode(
        {n: np.ones_like(x) for n, x in MODEL.items()}
    )
    message, weight = FORGERIES[name](honest)
    data = message if isinstance(message, bytes) else str(message).encode()
    forged = DXO(
        DataKind.WEIGHT_DIFF,
        {"tersegrad": data},
        {MetaKey.NUM_STEPS_CURRENT_ROUND: weight},
    )
    with pytest.raises(tg.PayloadError):
        server.receive(forged.to_bytes())


HOSTILE: dict[str, Callable[[], DXO]] = {
    "dense arrays": lambda: DXO(DataKind.WEIGHT_DIFF, update(0)),
    "weights": lambda: DXO(DataKind.WEIGHTS, {"tersegrad": np.zeros(9, np.uint8)}),
    "two arrays": lambda: DXO(DataKind.WEIGHT_DIFF, {"tersegrad": b"", "more": b""}),
    "text": lambda: DXO(DataKind.WEIGHT_DIFF, {"tersegrad": "text"}),
    "floats": lambda: DXO(DataKind.WEIGHT_DIFF, {"tersegrad": np.ones(9)}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_a_compressed_difference_is_refused(name: str) -> None:
    server = Server()
    server.send(WEIGHTS)
    with pytest.raises((tg.PayloadError, tg.InputError)):
        server.receive(HOSTILE[name]().to_bytes())


def test_a_server_without_the_filter_on_its_tasks_says_so() -> None:
    with pytest.raises(tg.StateError, match="task_data_filters"):
        Server().receive(sent(CompressDXO(TOP_K), update(0)))
