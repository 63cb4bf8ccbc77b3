"""Flower's strategies and apps, compressed: in one process here, on Flower's engines in `test_flower_engines.py`."""

from __future__ import annotations

import doctest
import importlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="make test-federated runs these where Flower is installed")

from flower_grid import LocalGrid, app, model, values
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp.mod import fixedclipping_mod, message_size_mod
from flwr.serverapp import strategy as strategies
from flwr.serverapp.strategy import FedAvg, Strategy
from forgery import FORGERIES, MODEL, RULES, SPARSE

import tersegrad as tg
from tersegrad.flower import CODEC_KEY, CompressedStrategy, codec_config, compression_mod

TOP_K = tg.TopK(density=0.05, values=tg.Quantize(bits=8))
SHAPES = {"weight": (60, 20), "bias": (20,)}


def start(
    strategy: Strategy, *mods: Any, rounds: int = 1, nodes: int = 4, **options: Any
) -> tuple[Any, LocalGrid]:
    """The result of a run, and the grid it ran on."""
    random.seed(1)
    np.random.seed(1)  # noise of differential privacy
    grid = options.pop("grid", None) or LocalGrid(app(*mods), nodes)
    initial = options.pop("initial", None) or model(SHAPES)
    return strategy.start(grid, initial, num_rounds=rounds, **options), grid


def private(inner: Strategy) -> Strategy:
    return strategies.DifferentialPrivacyServerSideFixedClipping(inner, 0.1, 5.0, 4)


def private_on_clients(inner: Strategy) -> Strategy:
    return strategies.DifferentialPrivacyClientSideFixedClipping(inner, 0.1, 5.0, 4)


STRATEGIES: dict[str, tuple[Callable[[], Strategy], tuple[Any, ...]]] = {
    "FedAvg": (FedAvg, ()),
    "FedAvg of half the clients": (lambda: FedAvg(fraction_train=0.5), ()),
    "FedAdam": (strategies.FedAdam, ()),
    "FedMedian": (strategies.FedMedian, ()),
    "Krum": (lambda: strategies.Krum(num_malicious_nodes=1), ()),
    "privacy on the server": (lambda: private(FedAvg()), ()),
    "privacy on the clients": (lambda: private_on_clients(FedAvg()), (fixedclipping_mod,)),
}


# Clipping on the clients leaves weights whose difference to the model is rounded.
@pytest.mark.parametrize("name", [name for name in STRATEGIES if "on the clients" not in name])
def test_every_strategy_sees_the_replies_it_would_see_without_compression(name: str) -> None:
    make, _ = STRATEGIES[name]
    plain, _ = start(make())
    compressed, grid = start(CompressedStrategy(make()), compression_mod(tg.Identity()))
    assert values(compressed.arrays) == values(plain.arrays)
    assert all("tersegrad" in reply.content["arrays"] for reply in grid.replies if trained(reply))


def trained(reply: Message) -> bool:
    return bool(reply.metadata.message_type == "train" and not reply.has_error())


@pytest.mark.parametrize("codec_down", [None, TOP_K], ids=["up", "both"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_trains_with_small_messages(name: str, codec_down: Any) -> None:
    make, mods = STRATEGIES[name]
    result, _ = start(
        CompressedStrategy(make(), codec_down), compression_mod(TOP_K), *mods, rounds=6
    )
    assert len(result.train_metrics_clientapp) == len(result.evaluate_metrics_clientapp) == 6
    for metrics in result.train_metrics_clientapp.values():
        assert metrics["tersegrad-rejected"] == 0
        count = 2 if "half" in name else 4
        assert metrics["tersegrad-bytes-up"] == count * message_size(TOP_K)
    assert all(np.isfinite(array.numpy()).all() for array in result.arrays.values())


def message_size(codec: tg.Codec) -> int:
    client = tg.federated.Client(codec)
    return len(client.encode({name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}))


def test_error_feedback_brings_the_model_where_dense_training_brings_it() -> None:
    def run(strategy: Strategy, *mods: Any) -> Any:
        # Slow enough for what is sent late: a pull of 1/2 would overshoot before its own effect arrives.
        return start(strategy, grid=LocalGrid(app(*mods, pull=1 / 16), 4), rounds=100)[0]

    wanted = run(FedAvg()).arrays["weight"].numpy()
    errors = {}
    for feedback in (True, False):
        mod = compression_mod(tg.TopK(density=0.25), error_feedback=feedback)
        result = run(CompressedStrategy(FedAvg(), tg.TopK(density=0.25)), mod)
        errors[feedback] = np.linalg.norm(result.arrays["weight"].numpy() - wanted)
    print(errors, np.linalg.norm(wanted))
    assert errors[True] < 0.5 * errors[False]


def test_clients_hold_to_the_bit_what_the_server_thinks_they_hold() -> None:
    strategy = CompressedStrategy(FedAvg(fraction_train=0.5), TOP_K)
    _, grid = start(strategy, compression_mod(TOP_K), rounds=9)
    held = strategy._broadcast._held
    for context in grid.contexts.values():  # all evaluated in the last round
        (name,) = [key for key in context.state if key.endswith(".model")]
        assert values(context.state[name]) == {key: x.tobytes() for key, x in held.items()}


def test_only_the_first_model_travels_whole_and_a_model_that_did_not_change_costs_nothing() -> None:
    strategy = CompressedStrategy(FedAvg(), TOP_K)
    result, _ = start(strategy, compression_mod(TOP_K), rounds=3)
    whole = 4 * sum(len(array.data) for array in model(SHAPES).values())
    down = [result.train_metrics_clientapp[i]["tersegrad-bytes-down"] for i in (1, 2, 3)]
    assert down == [whole, 0, 0]  # evaluation brought the news
    for i in (1, 2, 3):
        news = result.evaluate_metrics_clientapp[i]["tersegrad-bytes-down"]
        assert news == 4 * message_size(TOP_K)


def test_a_client_that_sat_out_gets_the_changes_it_missed() -> None:
    strategy = CompressedStrategy(FedAvg(fraction_train=0.5, fraction_evaluate=0.0), TOP_K)
    _, grid = start(strategy, compression_mod(TOP_K), rounds=20)
    counts = [len(message.content["arrays"]) for message in grid.sent if packed(message)]
    assert max(counts) > 1
    wholes = [message.metadata.dst_node_id for message in grid.sent if not packed(message)]
    assert sorted(wholes) == [1, 2, 3, 4]


def packed(message: Message) -> bool:
    return bool(message.content["tersegrad"]["changes"])


def test_changes_are_kept_only_while_they_are_smaller_than_the_model() -> None:
    strategy = CompressedStrategy(FedAvg(fraction_evaluate=0.0), TOP_K)
    start(strategy, compression_mod(TOP_K), rounds=30)
    kept = sum(len(array.data) for array in strategy._broadcast._changes.values())
    whole = sum(array.numpy().nbytes for array in model(SHAPES).values())
    assert whole - message_size(TOP_K) < kept <= whole


def test_a_client_that_lost_its_state_costs_one_reply_and_then_gets_the_whole_model() -> None:
    strategy = CompressedStrategy(FedAvg(fraction_evaluate=0.0), TOP_K)
    grid = LocalGrid(app(compression_mod(TOP_K)), 4)

    def restart(reply: Message) -> Message:
        if len(grid.sent) == 2 and reply.metadata.src_node_id == 2:
            grid.contexts[2].state = RecordDict()
        return reply

    grid.on_reply = restart
    result, _ = start(strategy, grid=grid, rounds=4)
    rejected = [
        metrics["tersegrad-rejected"] for metrics in result.train_metrics_clientapp.values()
    ]
    assert rejected == [0, 1, 0, 0]
    of_two = [packed(message) for message in grid.sent if message.metadata.dst_node_id == 2]
    assert of_two == [False, True, False, True]


def test_what_a_lost_reply_carried_is_in_the_next_one() -> None:
    def run(lost: int | None) -> tuple[np.ndarray, np.ndarray]:
        """What node 2 sent that arrived, in all, and what it still keeps."""
        grid = LocalGrid(app(compression_mod(tg.TopK(density=0.1)), constant=True), 2)
        rounds = []

        def on_reply(reply: Message) -> Message | None:
            if reply.metadata.src_node_id == 2:
                rounds.append(reply)
                return None if len(rounds) == lost else reply
            return reply

        grid.on_reply = on_reply
        start(CompressedStrategy(FedAvg(fraction_evaluate=0.0)), grid=grid, rounds=5)
        shape = np.zeros(SHAPES["weight"], np.float32)
        total = shape.copy()
        for reply in grid.replies:
            if reply.metadata.src_node_id == 2:
                blob = reply.content["arrays"]["tersegrad"].data
                total += tg.federated.decode(blob, {n: (s, "float32") for n, s in SHAPES.items()})[
                    "weight"
                ]
        state = grid.contexts[2].state
        (name,) = [key for key in state if key.endswith(".residual")]
        return total, state[name]["weight"].numpy()

    whole, kept = run(None)
    less, kept_after = run(3)
    # Small integers: sums are exact, in any order.
    assert np.array_equal(whole + kept, less + kept_after)
    assert np.count_nonzero(less) > 0


def test_a_hostile_client_in_every_round_changes_nothing() -> None:
    def run(forge: bool) -> tuple[Any, list[int]]:
        """With node 3's replies forged, each round in another way; or lost."""
        forgeries = iter(FORGERIES.values())
        grid = LocalGrid(app(compression_mod(SPARSE, rules=RULES, min_size=8), pull=1 / 64), 4)

        def on_reply(reply: Message) -> Message | None:
            if reply.metadata.src_node_id != 3:
                return reply
            if not forge:
                return None
            message, weight = next(forgeries)(reply.content["arrays"]["tersegrad"].data)
            return hostile(reply, message, weight)

        grid.on_reply = on_reply
        limits = tg.federated.Limits(max_norm=1e4, max_abs=1e4, max_weight=1e4)
        strategy = CompressedStrategy(FedAvg(fraction_evaluate=0.0), TOP_K, limits=limits)
        rounds = len(FORGERIES)
        initial = ArrayRecord({name: Array(np.asarray(x)) for name, x in MODEL.items()})
        result, _ = start(strategy, grid=grid, rounds=rounds, initial=initial)
        metrics = result.train_metrics_clientapp.values()
        return result.arrays, [int(m["tersegrad-rejected"]) for m in metrics]

    attacked, rejected = run(forge=True)
    assert rejected == [1] * len(FORGERIES)
    alone, _ = run(forge=False)
    assert {n: a.data for n, a in attacked.items()} == {n: a.data for n, a in alone.items()}


def hostile(reply: Message, message: Any, weight: Any) -> Message:
    """The forged message and weight, as far as Flower's records carry them."""
    data = message if isinstance(message, bytes) else str(message).encode()
    number = weight if isinstance(weight, (int, float)) else float("nan")
    blob = Array(dtype="uint8", shape=(len(data),), stype="tersegrad.v1", data=data)
    reply.content["arrays"] = ArrayRecord({"tersegrad": blob})
    reply.content["metrics"]["num-examples"] = number
    return reply


def _arrays(reply: Message, **arrays: Array) -> None:
    reply.content["arrays"] = ArrayRecord(arrays)


def _metrics(reply: Message, **metrics: Any) -> None:
    reply.content["metrics"] = MetricRecord({"num-examples": 30, "loss": 2.0} | metrics)


HOSTILE_RECORDS: dict[str, Callable[[Message], Any]] = {
    "plain arrays": lambda r: _arrays(r, **model(SHAPES)),
    "an array that numpy would load": lambda r: _arrays(r, tersegrad=Array(np.ones(3))),
    "no array": lambda r: _arrays(r),
    "no ArrayRecord": lambda r: r.content.pop("arrays"),
    "two ArrayRecords": lambda r: r.content.update({"more": ArrayRecord()}),
    "metrics in the place of the arrays": lambda r: _swap(r),
    "no MetricRecord": lambda r: r.content.pop("metrics"),
    "two MetricRecords": lambda r: r.content.update({"more": MetricRecord()}),
    "no number of examples": lambda r: r.content["metrics"].pop("num-examples"),
    "many numbers of examples": lambda r: _metrics(r, **{"num-examples": [1, 2]}),
    "a metric that is not a number": lambda r: _metrics(r, loss=float("nan")),
    "an infinite metric among others": lambda r: _metrics(r, loss=[1.0, float("inf")]),
    "a metric too many": lambda r: _metrics(r, more=1),
    "a metric too few": lambda r: r.content["metrics"].pop("loss"),
    "a metric that is a list": lambda r: _metrics(r, loss=[1.0]),
    "metrics under another name": lambda r: r.content.update({"other": r.content.pop("metrics")}),
}


def _swap(reply: Message) -> None:
    reply.content = RecordDict(
        {"other": reply.content["arrays"], "arrays": reply.content["metrics"]}
    )


@pytest.mark.parametrize("name", HOSTILE_RECORDS)
def test_hostile_records_cost_only_their_sender(name: str) -> None:
    def run(forge: bool) -> Any:
        grid = LocalGrid(app(compression_mod(TOP_K)), 4)

        def on_reply(reply: Message) -> Message | None:
            if reply.metadata.src_node_id != 3:
                return reply
            if forge and reply.metadata.message_type == "train":
                HOSTILE_RECORDS[name](reply)
                return reply
            return None

        grid.on_reply = on_reply
        strategy = CompressedStrategy(FedAvg())
        result, _ = start(strategy, grid=grid, rounds=2)
        return result

    attacked = run(forge=True)
    assert [m["tersegrad-rejected"] for m in attacked.train_metrics_clientapp.values()] == [1, 1]
    assert values(attacked.arrays) == values(run(forge=False).arrays)


def test_hostile_evaluations_cost_only_their_sender() -> None:
    grid = LocalGrid(app(compression_mod(TOP_K)), 4)

    def on_reply(reply: Message) -> Message:
        if reply.metadata.src_node_id == 3 and reply.metadata.message_type == "evaluate":
            reply.content["metrics"]["num-examples"] = float("nan")
        return reply

    grid.on_reply = on_reply
    result, _ = start(CompressedStrategy(FedAvg(), TOP_K), grid=grid, rounds=3)
    for metrics in result.evaluate_metrics_clientapp.values():
        assert metrics["tersegrad-rejected"] == 1
        assert np.isfinite(metrics["sum"])
    # Nothing that training accepted is sent again because an evaluation failed.
    assert all(m["tersegrad-rejected"] == 0 for m in result.train_metrics_clientapp.values())


def test_a_round_without_a_reply_to_trust_leaves_the_model_as_it_was() -> None:
    grid = LocalGrid(app(), 4)  # no compression_mod
    result, _ = start(CompressedStrategy(FedAvg()), grid=grid, rounds=2)
    assert [m["tersegrad-rejected"] for m in result.train_metrics_clientapp.values()] == [4, 4]
    assert len(result.arrays) == 0  # as Flower leaves it


def test_a_node_without_the_mod_is_told_from_a_damaged_message() -> None:
    grid = LocalGrid(app(), 2)
    strategy = CompressedStrategy(FedAvg(fraction_evaluate=0.0))
    start(strategy, grid=grid)
    assert all(
        "does the ClientApp have compression_mod?" in why for why in strategy.rejected.values()
    )


def test_a_server_that_does_not_compress_gets_plain_arrays() -> None:
    plain, _ = start(FedAvg(), rounds=3)
    with_mod, _ = start(FedAvg(), compression_mod(TOP_K), rounds=3)
    assert values(with_mod.arrays) == values(plain.arrays)


def test_a_node_config_names_the_codec_of_one_client_and_a_train_config_that_of_a_round() -> None:
    grid = LocalGrid(app(compression_mod(TOP_K)), 3)
    grid.contexts[2].node_config |= codec_config(tg.Sign())
    train_config = ConfigRecord({"lr": 0.1} | codec_config(tg.Quantize(bits=4)))
    start(CompressedStrategy(FedAvg(fraction_evaluate=0.0)), grid=grid, train_config=train_config)
    sizes = [len(reply.content["arrays"]["tersegrad"].data) for reply in grid.replies]
    assert sizes == [message_size(c) for c in (tg.Quantize(bits=4), tg.Sign(), tg.Quantize(bits=4))]


def test_a_codec_that_is_none_fails_on_its_client_and_says_which_key() -> None:
    grid = LocalGrid(app(compression_mod(TOP_K)), 3)
    grid.contexts[2].node_config[CODEC_KEY] = "zip"
    strategy = CompressedStrategy(FedAvg(fraction_evaluate=0.0))
    start(strategy, grid=grid)
    assert list(strategy.rejected) == [2]
    assert CODEC_KEY in strategy.rejected[2]


def test_residuals_are_kept_by_run_and_layout_and_those_of_earlier_runs_go() -> None:
    grid = LocalGrid(app(compression_mod(TOP_K)), 2)
    state = grid.contexts[1].state
    state["mine"] = ConfigRecord({"x": 1})
    start(CompressedStrategy(FedAvg()), grid=grid, initial=model(SHAPES))
    start(CompressedStrategy(FedAvg()), grid=grid, initial=model({"weight": (9, 9)}))
    layouts = {key.split(".")[2] for key in state if key.startswith("tersegrad.1.")}
    assert len(layouts) == 2
    grid.contexts[1].run_id = 0x2B
    start(CompressedStrategy(FedAvg()), grid=grid, initial=model(SHAPES))
    ours = {key for key in state if key.startswith("tersegrad")}
    assert {key.split(".")[1] for key in ours} == {"2b"}
    assert {key.split(".")[2] for key in ours} <= layouts
    assert state["mine"]["x"] == 1


def test_integers_and_scalars_come_back_as_what_they_were() -> None:
    initial = ArrayRecord(
        {
            "count": Array(np.array(3, np.int64)),
            "half": Array(np.ones((70, 2), np.float16)),
            "weight": Array(np.ones((70, 3), np.float32)),
        }
    )
    result, _ = start(
        CompressedStrategy(FedAvg(), TOP_K), compression_mod(TOP_K), rounds=3, initial=initial
    )
    for name, array in initial.items():
        assert (result.arrays[name].dtype, result.arrays[name].shape) == (array.dtype, array.shape)


def test_mods_that_look_at_messages_fit_around_it_and_mods_that_look_at_arrays_inside() -> None:
    seen = []

    def outer(message: Message, context: Any, call_next: Any) -> Message:
        reply = call_next(message, context)
        seen.append(list(reply.content["arrays"]))
        return reply

    mods = (message_size_mod, outer, compression_mod(TOP_K), fixedclipping_mod)
    strategy = CompressedStrategy(private_on_clients(FedAvg(fraction_evaluate=0.0)))
    start(strategy, *mods)
    assert seen == [["tersegrad"]] * 4
    assert strategy.rejected == {}


def test_rounding_at_random_differs_from_node_to_node() -> None:
    codec = tg.Quantize(bits=4, rounding="stochastic")
    grid = LocalGrid(app(compression_mod(codec)), 2)
    for context in grid.contexts.values():
        context.node_config["partition-id"] = 0  # the same data
    start(CompressedStrategy(FedAvg(fraction_evaluate=0.0)), grid=grid)
    first, second = (reply.content["arrays"]["tersegrad"].data for reply in grid.replies)
    assert first != second


def test_messages_that_share_one_record_are_not_packed_twice() -> None:
    shared = RecordDict({"arrays": model(SHAPES), "config": ConfigRecord({"lr": 1.0})})

    class Sharing(FedAvg):
        def configure_train(self, server_round: int, arrays: Any, *_: Any) -> Any:
            shared["arrays"] = arrays
            return [Message(shared, message_type="train", dst_node_id=node) for node in (1, 2)]

    start(
        CompressedStrategy(Sharing(fraction_evaluate=0.0), TOP_K), compression_mod(TOP_K), rounds=3
    )
    assert set(shared) == {"arrays", "config"}
    assert set(shared["arrays"]) == set(SHAPES)


def test_a_strategy_that_sends_each_client_its_own_model_is_refused() -> None:
    class Personal(FedAvg):
        def configure_train(self, server_round: int, arrays: Any, *rest: Any) -> Any:
            return super().configure_train(server_round, model({"weight": (1,)}), *rest)

    with pytest.raises(tg.InputError, match="other arrays than it was given"):
        start(CompressedStrategy(Personal()), compression_mod(TOP_K))


@pytest.mark.parametrize("module", ["", ".records", ".client", ".server", ".broadcast"])
def test_examples_in_docstrings_run(module: str) -> None:
    imported = importlib.import_module(f"tersegrad.flower{module}")
    assert doctest.testmod(imported).failed == 0
