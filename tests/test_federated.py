"""Clients and a server without a framework: what arrives is what was sent, and what was not sent comes later."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from arrays import assert_same_bits
from contract import CODECS, name_of
from federated_model import ANY, FLOATS, MODEL, TOP, Bomb, assert_same, update

import tersegrad as tg
from tersegrad.federated import Client, Layout, Server, apply, decode

# --- What travels. ---


@pytest.mark.parametrize("codec", CODECS, ids=name_of)
def test_a_message_decodes_to_what_its_payloads_decode_to(codec: tg.Codec) -> None:
    client, sent = Client(codec, min_size=0), update(1)
    for step in range(3):
        before = {
            n: client._residuals.get(n, np.zeros(sent[n].size, np.float32)).copy() for n in FLOATS
        }
        got = decode(client.encode(sent), MODEL, limits=ANY)
        for name in FLOATS:
            residual = before[name].reshape(sent[name].shape)
            payload = tg.compress(sent[name], codec, residual=residual, step=step)
            assert_same_bits(got[name], tg.decompress(payload), name)
            assert_same_bits(client._residuals[name], residual.reshape(-1), name)


def test_tiny_tensors_and_integers_travel_exactly() -> None:
    sent = update(4)
    got = decode(Client(tg.Sign(), min_size=34).encode(sent), MODEL)
    assert_same(
        {n: got[n] for n in ("bias", "batches", "mask")},
        {n: sent[n] for n in ("bias", "batches", "mask")},
    )
    assert np.unique(np.abs(got["dense"])).size < 10  # these went through the codec


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
)
def test_integers_keep_their_ends(dtype: str) -> None:
    info = np.iinfo(dtype)
    sent = {"x": np.array([info.min, info.max, 0], dtype), "w": np.ones(3, np.float32)}
    server = Server(sent)
    server.add(Client(TOP).encode(sent), 3)
    assert_same(server.mean(), sent)


def test_with_a_base_the_difference_is_sent() -> None:
    base, change = update(5), update(6)
    trained = {n: base[n] + change[n] if n in FLOATS else change[n] for n in base}
    got = decode(Client(tg.Identity()).encode(trained, base=base), MODEL)
    wanted = {n: trained[n] - base[n] if n in FLOATS else trained[n] for n in base}
    assert_same(got, wanted)
    assert_same(
        apply(base, got), {n: base[n] + wanted[n] if n in FLOATS else trained[n] for n in base}
    )


def test_torch_and_numpy_in_any_order_give_the_same_bytes() -> None:
    sent = update(7)
    tensors = {name: torch.from_numpy(np.array(sent[name])) for name in reversed(list(sent))}
    assert Client(TOP).encode(tensors) == Client(TOP).encode(sent)
    assert Layout.of(tensors).digest == Layout.of(MODEL).digest


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_model_of_another_float_fits_a_float32_server(dtype: torch.dtype) -> None:
    sent = {"w": torch.linspace(-3, 3, 100, dtype=dtype)}
    got = decode(Client(tg.Identity()).encode(sent), {"w": np.zeros(100, np.float32)})
    assert np.array_equal(got["w"], sent["w"].float().numpy())


def test_differences_of_float64_are_formed_before_they_are_rounded() -> None:
    base = {"w": np.full(3, 1e9)}
    got = decode(Client(tg.Identity()).encode({"w": base["w"] + 1e-3}, base=base), base)
    assert np.array_equal(got["w"], ((base["w"] + 1e-3) - base["w"]).astype(np.float32))
    assert apply(base, got)["w"].dtype == np.float64


def test_the_first_rule_that_matches_a_name_counts() -> None:
    rules = {"*.bias": tg.Identity(), "head.*": tg.Sign(), "*": tg.Cast()}
    client = Client(tg.Quantize(), rules=rules, min_size=2)
    names = ["head.bias", "head.weight", "body", "one"]
    layout = Layout.of({name: ((1 if name == "one" else 9,), "float32") for name in names})
    chosen = {tensor.name: type(client._codec_for(tensor)) for tensor in layout}
    assert chosen == {
        "head.bias": tg.Identity,
        "head.weight": tg.Sign,
        "body": tg.Cast,
        "one": tg.Identity,
    }


def test_a_message_of_103_tensors_takes_less_than_a_kilobyte_beyond_its_bodies() -> None:
    shapes = (
        [(384,)] * 60
        + [(384, 384)] * 24
        + [(1536, 384)] * 12
        + [(), (512, 384), (2, 384), (3052, 384), (1,), (1,), (7,)]
    )
    model = {
        f"encoder.layer.{i}.weight": np.ones(shape, np.float32) for i, shape in enumerate(shapes)
    }
    model["steps"] = np.zeros((), np.int64)
    codec, rule = tg.TopK(density=0.01, values=tg.Quantize(bits=8)), tg.Quantize(bits=4)
    client = Client(codec, rules={"*.3?.weight": rule}, min_size=100)
    bodies = 0
    for tensor in Layout.of(model):
        used = client._codec_for(tensor)
        bodies += 8 if used is None else used.body_size(tensor.size)
    assert len(shapes) == 103
    assert len(client.encode(model)) - bodies <= 1024


def test_an_update_of_other_names_is_not_applied() -> None:
    with pytest.raises(tg.InputError, match=r"\['v', 'w'\]"):
        apply({"w": np.ones(3)}, {"v": np.ones(3, np.float32)})


def test_weights_in_float16_stay_finite() -> None:
    base = {"w": np.full(2, 60000, np.float16)}
    assert apply(base, {"w": np.array([1e6, -1e6], np.float32)})["w"].tolist() == [65504, -65504]
    assert apply(base, {"w": np.zeros(2, np.float32)})["w"].dtype == np.float16


# --- Error feedback. ---


def test_all_that_was_trained_arrives_in_the_end() -> None:
    client, server = Client(tg.TopK(density=0.2), min_size=0), Server(MODEL)
    whole = {name: np.zeros(MODEL[name].shape, np.float32) for name in FLOATS}
    grid = {n: np.rint(4 * update(8)[n]) for n in FLOATS} | {
        n: update(8)[n] for n in ("batches", "mask")
    }
    zeros = {n: np.zeros_like(x) if n in FLOATS else x for n, x in grid.items()}
    for number in range(12):
        server.add(client.encode(grid if number == 0 else zeros))
    for name in whole:  # small integers: every sum is exact
        assert np.array_equal(server.mean()[name] * np.float32(12), grid[name]), name


def test_without_error_feedback_nothing_is_kept() -> None:
    client, sent = Client(TOP, error_feedback=False), update(9)
    first = client.encode(sent, step=0)
    assert client.encode(sent, step=0) == first
    assert client.state_dict()["residuals"] == {}
    with pytest.raises(tg.StateError, match="no residuals"):
        client.undo(first)


def test_a_message_that_was_undone_is_sent_again() -> None:
    kept, undone = Client(tg.TopK(density=0.1)), Client(tg.TopK(density=0.1))
    zeros = {n: np.zeros_like(x) if n in FLOATS else x for n, x in update(1).items()}
    lost = undone.encode(update(1))
    undone.undo(lost)
    assert undone.encode(zeros, step=0) == kept.encode(update(1), step=0) == lost


def test_undoing_works_in_another_process_that_has_the_state() -> None:
    client, other = Client(TOP), Client(TOP)
    lost = client.encode(update(1))
    other.load_state_dict(client.state_dict())
    other.undo(lost)
    for name in FLOATS:  # what was sent is restored to within one rounding
        wanted = update(1)[name].reshape(-1)
        assert np.all(np.abs(other._residuals[name] - wanted) <= np.spacing(np.abs(wanted)))


@pytest.mark.parametrize("message", [b"", b"TGRF" + bytes(60)])
def test_undoing_what_is_not_a_message_changes_nothing(message: bytes) -> None:
    client = Client(TOP)
    client.encode(update(1))
    before = client.state_dict()["residuals"]
    with pytest.raises(tg.PayloadError):
        client.undo(message)
    assert_same(client.state_dict()["residuals"], before)


@pytest.mark.parametrize(
    ("value", "error"),
    [(np.nan, tg.NonFiniteError), (np.inf, tg.NonFiniteError), (1.0, ZeroDivisionError)],
)
def test_an_update_that_cannot_be_sent_changes_nothing(
    value: float, error: type[Exception]
) -> None:
    rules = {"mark": Bomb()} if error is ZeroDivisionError else {}
    client, sent = Client(TOP, rules=rules, min_size=0), update(1)
    client.rules, rules = {}, client.rules
    client.encode(sent | {"mark": np.zeros(9, np.float32)})
    before, client.rules = client.state_dict(), rules
    with pytest.raises(error, match="mark" if error is tg.NonFiniteError else None):
        client.encode(sent | {"mark": np.full(9, value, np.float32)})
    after = client.state_dict()
    assert_same(after.pop("residuals"), before.pop("residuals"))
    assert after == before


def test_a_sum_beyond_float32_is_reported_with_its_name() -> None:
    client, sent = Client(tg.TopK(k=1), min_size=0), {"w": np.array([3e38, 2e38], np.float32)}
    client.encode(sent)
    with pytest.raises(tg.NonFiniteError, match="'w' and its residual"):
        client.encode(sent)
    assert client._residuals["w"].tolist() == [0.0, np.float32(2e38)]


def test_state_goes_around() -> None:
    client, other = Client(TOP), Client(TOP)
    client.encode(update(1))
    state = client.state_dict()
    other.load_state_dict(state)
    state["residuals"]["dense"][:] = 7  # a snapshot, not a view
    assert other.encode(update(2)) == client.encode(update(2))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s.pop("step"), "not a state"),
        (lambda s: s.update(version=2), "version"),
        (lambda s: s["residuals"].pop("dense"), "dense"),
        (lambda s: s["residuals"].update(extra=np.zeros(3, np.float32)), "extra"),
        (lambda s: s["residuals"].update(dense=np.zeros(3, np.float32)), "dense"),
        (lambda s: s["residuals"].update(dense=np.zeros((70, 61))), "dense"),
        (lambda s: s["residuals"]["dense"].fill(np.nan), "dense"),
        (lambda s: s.update(layout=[1]), "not a state"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change: Any, match: str) -> None:
    client = Client(TOP)
    client.encode(update(1))
    state, before = client.state_dict(), client.state_dict()["residuals"]
    change(state)
    with pytest.raises(tg.StateError, match=match):
        client.load_state_dict(state)
    assert_same(client.state_dict()["residuals"], before)


def test_residuals_of_another_layout_are_an_error_that_names_the_tensors() -> None:
    client = Client(TOP)
    client.encode(update(1))
    with pytest.raises(
        tg.StateError, match=r"'dense' float32 \(2, 2\) against 'dense' float32 \(70, 61\)"
    ):
        client.encode(update(1) | {"dense": np.zeros((2, 2), np.float32)})
    client.reset()
    client.encode({"dense": np.zeros((2, 2), np.float32)})


@pytest.mark.parametrize(
    ("sent", "base", "match"),
    [
        ({"w": np.ones(3, complex)}, None, "complex128"),
        ({"w": [1.0]}, None, "'w' must be a torch tensor"),
        ({3: np.ones(3)}, None, "names"),
        ({"w": np.ones(3, np.float32)}, {"w": np.ones(2, np.float32)}, r"\(3,\) against 'w' float32 \(2,\)"),
        ({"w": np.ones(3, np.float32)}, {}, "no 'w'"),
        ([np.ones(3)], None, "mapping"),
    ],
)  # fmt: skip
def test_what_cannot_travel_is_an_error_that_names_it(sent: Any, base: Any, match: str) -> None:
    with pytest.raises(tg.InputError, match=match):
        Client(TOP).encode(sent, base=base)
