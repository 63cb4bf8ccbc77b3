"""A server that trusts nobody: what strangers send never ends a round, changes the model or costs memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from forgery import CHECKSUM_AT, FORGERIES, LAYOUT, MODEL, Offsets, client, sealed, update
from hypothesis import given, settings
from hypothesis import strategies as st

import tersegrad as tg
from tersegrad.federated.message import HEADER_BYTES
from tersegrad.message import CODEC_ENTRY

LIMITS = tg.federated.Limits(max_norm=1000.0, max_abs=100.0, max_weight=1e6)
HONEST = client().encode(update(1))


def bits(arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: x.tobytes() for name, x in arrays.items()}


def test_the_parts_of_a_message_lie_where_the_forgers_think() -> None:
    assert Offsets(HONEST).end == len(HONEST)
    assert sealed(HONEST) == HONEST
    tg.federated.decode(HONEST, LAYOUT, limits=LIMITS)


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_refused_and_changes_nothing(name: str) -> None:
    server = tg.federated.Server(LAYOUT, limits=LIMITS)
    server.add(HONEST, 3)
    before = bits(server.mean())
    message, weight = FORGERIES[name](HONEST)
    assert (message, weight) != (HONEST, 1.0)
    with pytest.raises(tg.PayloadError):
        server.add(message, weight)
    assert bits(server.mean()) == before
    assert (server.count, server.total_weight) == (1, 3.0)


def train(hostile: bool) -> tuple[dict[str, bytes], int]:
    """A round for each forgery, three clients in each; a fourth, where `hostile`, arrives between them."""
    model, refused = dict(MODEL), 0
    clients = [client() for _ in range(3)]
    server = tg.federated.Server(LAYOUT, limits=LIMITS)
    for number, name in enumerate(FORGERIES):
        server.reset()
        for who, sender in enumerate(clients):
            seed = 10 * number + who
            trained = {k: v + update(seed)[k] if v.dtype != bool else v for k, v in model.items()}
            message = sender.encode(trained, base=model)
            if hostile and who == number % 3:
                try:
                    server.add(*FORGERIES[name](message))
                except tg.PayloadError:
                    refused += 1
            server.add(message, 1 + who)
        model = tg.federated.apply(model, server.mean())
    return bits(model), refused


def test_a_hostile_client_in_every_round_leaves_the_model_as_if_it_were_not_there() -> None:
    assert len(FORGERIES) >= 20
    with_hostile, refused = train(hostile=True)
    without, none = train(hostile=False)
    assert (refused, none) == (len(FORGERIES), 0)
    assert with_hostile == without


VALUES = [0, 1, 7, 63, 255, 256, 65535, 2**16, 2**31, 2**32 - 1, 0x7F800000, 0x7FC00000, 0xFF800000]
VALUES += [0x7F7FFFFF, 0x80000000, 0x00000001]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """An honest message, up to four times changed at a place that means something, and sealed again."""
    honest = [HONEST, client().encode(update(2), step=5)]
    raw = bytearray(draw(st.sampled_from(honest)))
    at = Offsets(bytes(raw))
    places = [4, 5, 8, 12, 32, at.numbers, *at.bodies.values(), at.end - 8]
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.sampled_from(places)) + draw(st.integers(0, 48))
        start = min(start, max(0, len(raw) - 4))
        kind = draw(st.sampled_from(["flip", "set", "swap", "cut", "grow", "splice"]))
        if kind == "flip" and raw:
            raw[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            raw[start : start + 4] = draw(st.sampled_from(VALUES)).to_bytes(4, "little")
        elif kind == "swap":
            raw[start : start + 4], raw[-4:] = raw[-4:], raw[start : start + 4]
        elif kind == "cut":
            del raw[start : start + draw(st.integers(1, 64))]
        elif kind == "grow":
            raw[start:start] = draw(st.binary(min_size=1, max_size=64))
        else:
            raw[start : start + 40] = honest[1][start : start + 40]
    return sealed(raw)


@settings(max_examples=20 * settings().max_examples)
@given(mutated())
def test_a_message_is_added_whole_or_refused_whole(message: bytes) -> None:
    server = tg.federated.Server(LAYOUT)
    server.add(HONEST)
    before = bits(server.mean())
    try:
        accepted = server.add(message)
    except tg.PayloadError:
        assert bits(server.mean()) == before
        with pytest.raises(tg.PayloadError):
            server.decode(message)
        return
    assert accepted.nbytes == len(message)
    honest, decoded = server.decode(HONEST), server.decode(message)
    for tensor in LAYOUT:
        if not tensor.is_exact:
            half = (honest[tensor.name] + decoded[tensor.name]) / np.float32(2)
            assert np.array_equal(server.mean()[tensor.name], half)
            assert np.isfinite(half).all()


@given(st.binary(max_size=400))
def test_any_bytes_are_refused(noise: bytes) -> None:
    for message in (noise, sealed(HONEST[:CHECKSUM_AT] + noise)):
        with pytest.raises(tg.PayloadError):
            tg.federated.decode(message, LAYOUT)


def test_a_refusal_takes_no_more_steps_than_an_honest_message() -> None:
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    def calls_of(message: object) -> int:
        nonlocal calls
        server, calls = tg.federated.Server(LAYOUT, limits=LIMITS), 0
        sys.setprofile(count)
        try:
            server.add(message)
        except tg.PayloadError:
            pass
        finally:
            sys.setprofile(None)
        return calls

    honest = calls_of(HONEST)
    for name, forge in FORGERIES.items():
        message, _ = forge(HONEST)
        assert calls_of(message) <= honest + 60, name  # printing an error


def test_memory_is_bounded_by_the_layout_whatever_a_message_says() -> None:
    """A kilobyte against 40 million entries: in a process of its own, since a peak of memory never falls."""
    code = Path(__file__).with_name("hostile_memory.py")
    done = subprocess.run([sys.executable, str(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("codec", [tg.TopK(k=9), tg.Quantize(), tg.RandomK(k=3)], ids=str)
def test_a_codec_that_is_not_listed_is_refused(codec: tg.Codec) -> None:
    message = tg.federated.Client(codec, min_size=0).encode({"w": np.ones(99, np.float32)})
    layout = {"w": ((99,), "float32")}
    listed = tg.federated.Limits(codecs=(type(codec),))
    assert tg.federated.decode(message, layout, limits=listed)["w"].shape == (99,)
    with pytest.raises(tg.PayloadError, match=type(codec).__name__):
        tg.federated.decode(message, layout, limits=tg.federated.Limits(codecs=(tg.Sign,)))


def test_a_value_codec_that_is_not_listed_is_refused() -> None:
    codec = tg.TopK(k=9, values=tg.Sign())
    message = tg.federated.Client(codec, min_size=0).encode({"w": np.ones(99, np.float32)})
    limits = tg.federated.Limits(codecs=(tg.TopK,))
    with pytest.raises(tg.PayloadError, match="Sign"):
        tg.federated.decode(message, {"w": ((99,), "float32")}, limits=limits)


def test_zstd_and_what_is_in_it_must_be_listed() -> None:
    pytest.importorskip("zstandard")
    codec = tg.Zstd(tg.TopK(k=20, values=tg.Quantize(bits=4), indices="rice"))
    message = tg.federated.Client(codec).encode({"w": np.ones(99, np.float32)})
    layout = {"w": ((99,), "float32")}
    listed = (tg.Zstd, tg.TopK, tg.Quantize)
    for missing, codecs in [("Zstd", None), *((c.__name__, {*listed} - {c}) for c in listed)]:
        limits = tg.federated.Limits(codecs=None if codecs is None else tuple(codecs))
        with pytest.raises(tg.PayloadError, match=missing):
            tg.federated.decode(message, layout, limits=limits)
    got = tg.federated.decode(message, layout, limits=tg.federated.Limits(codecs=listed))
    assert got["w"].tolist() == [1.0] * 20 + [0.0] * 79


def test_a_zstd_frame_that_holds_more_than_the_tensor_is_refused() -> None:
    zstandard = pytest.importorskip("zstandard")
    server = tg.federated.Server(
        {"w": ((5000,), "float32")}, limits=tg.federated.Limits(codecs=(tg.Zstd, tg.Quantize))
    )
    message = tg.federated.Client(tg.Zstd(tg.Quantize(bits=4))).encode(
        {"w": np.ones(5000, np.float32)}
    )
    at = HEADER_BYTES + CODEC_ENTRY.size + 1
    bomb = zstandard.ZstdCompressor().compress(bytes(2**28))
    assert at + 4 + int.from_bytes(message[at : at + 4], "little") == len(message)
    with pytest.raises(tg.PayloadError, match="Zstandard"):
        server.add(sealed(message[:at] + len(bomb).to_bytes(4, "little") + bomb))
    assert server.count == 0
    server.add(message)


def test_no_number_of_messages_at_the_limits_makes_a_sum_overflow() -> None:
    limits = tg.federated.Limits()
    assert np.float32(limits.max_abs * limits.max_weight) + np.float32(2.0**122) == 2.0**122
    with pytest.raises(tg.InputError, match="overflow"):
        tg.federated.Limits(max_abs=2.0**65)
    for wrong in (
        {"max_abs": 0},
        {"max_norm": float("nan")},
        {"max_weight": None},
        {"codecs": ("TopK",)},
    ):
        with pytest.raises(tg.InputError):
            tg.federated.Limits(**wrong)  # type: ignore[arg-type]
