"""Laws of EF21: what the receiver has is what the sender thinks it has, to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from arrays import DTYPES, assert_same_bits, gradient, stored_of
from contract import CODECS, Grid, name_of
from hypothesis import given
from hypothesis import strategies as st
from test_feedback_options import SHAPES, saved_and_loaded, tensors

import tersegrad as tg


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_receiver_has_the_senders_estimate(dtype: str, momentum: float) -> None:
    for codec in CODECS:
        sender, receiver = tg.EF21(codec, momentum=momentum), tg.EF21Receiver()
        velocity = dict.fromkeys(SHAPES)
        for step in range(4):
            for key, x in tensors(step, dtype).items():
                target: Any = ref.widen(stored_of(x), dtype)
                if momentum and step:
                    old, new = np.float32(momentum), np.float32(1 - momentum)
                    target = target * new + velocity[key] * old
                velocity[key] = target
                before = np.zeros(x.shape, np.float32) + (
                    stored_of(sender.estimate(key)) if step else np.float32(0)
                )
                payload = sender.compress(x, key=key)
                got = receiver.decompress(bytes(payload), key=key)
                name = f"{name_of(codec)}, {key} at step {step}"
                assert_same_bits(stored_of(got), stored_of(sender.estimate(key)), name)
                sent = ref.widen(stored_of(tg.decompress(payload)), dtype)
                assert_same_bits(got, np.asarray(before + sent, np.float32), name)
                if tg.Identity() == codec and dtype == "float32":
                    assert np.allclose(got, target, rtol=1e-5, atol=1e-6)


@given(
    codec=st.sampled_from(CODECS),
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=5),
    shape=st.sampled_from([(), (0,), (7,), (5, 13), (257,)]),
    bad=st.integers(0, 5),
)
def test_the_estimates_agree_whatever_is_sent(
    codec: tg.Codec, seeds: list[int], shape: tuple[int, ...], bad: int
) -> None:
    sender, receiver = tg.EF21(codec, nonfinite="skip"), tg.EF21Receiver()
    for number, seed in enumerate(seeds):
        x = gradient(int(np.prod(shape)), seed=seed).reshape(shape)
        x *= np.float32(10.0 ** (seed % 7))
        if number == bad and x.size:
            x.reshape(-1)[seed % x.size] = np.nan
        receiver.decompress(sender.compress(x, key="w"), key="w")
        assert_same_bits(receiver.estimate("w"), sender.estimate("w"))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_whole_model_is_its_tensors_one_by_one(kind: str) -> None:
    codec = tg.TopK(density=0.1, values=tg.Quantize(4))
    together, alone, receiver = tg.EF21(codec), tg.EF21(codec), tg.EF21Receiver()
    for step in range(3):
        message = together.compress_many(tensors(step, kind=kind))
        got = receiver.decompress_many(bytes(message), list(SHAPES), kind=kind)
        for key, x in tensors(step, kind=kind).items():
            alone.compress(x, key=key)
            assert type(got[key]) is type(x)
            assert_same_bits(got[key], alone.estimate(key))


def test_it_converges_where_the_tensor_settles() -> None:
    """A contraction: top-k removes at least k / n of the squared difference at each call."""
    x, sender = torch.from_numpy(gradient(1000)), tg.EF21(tg.TopK(k=100))
    for _ in range(11):
        before = float((x - sender.estimate("w")).square().sum()) if sender._calls else None
        sender.compress(x, key="w")
        after = float((x - sender.estimate("w")).square().sum())
        if before is not None:
            assert after <= before * 0.9 + 1e-9
    assert after < 1e-9


def test_the_mean_of_many_senders() -> None:
    receiver = tg.EF21Receiver()
    senders = [tg.EF21(tg.Sign()) for _ in range(4)]
    for step in range(3):
        for rank, sender in enumerate(senders):
            x = gradient(64, seed=10 * step + rank)
            mean = receiver.decompress(sender.compress(x, key="w"), key="w", scale=1 / 4)
    expected = np.mean([sender.estimate("w") for sender in senders], axis=0)
    assert np.allclose(mean, expected, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("codec", [tg.RandomK(density=0.2), tg.LowRank(rank=1)], ids=str)
def test_both_sides_resume_to_the_bit(codec: tg.Codec, momentum: float) -> None:
    sender, receiver = tg.EF21(codec, momentum=momentum), tg.EF21Receiver()
    for step in range(6):
        if step == 3:
            again, other = tg.EF21(codec, momentum=momentum), tg.EF21Receiver()
            again.load_state_dict(saved_and_loaded(sender.state_dict()))
            other.load_state_dict(saved_and_loaded(receiver.state_dict()))
        for key, x in tensors(step).items():
            payload = sender.compress(x, key=key)
            receiver.decompress(payload, key=key)
            if step >= 3:
                assert bytes(again.compress(x, key=key)) == bytes(payload)
                assert_same_bits(other.decompress(payload, key=key), receiver.estimate(key))


def test_what_a_caller_gets_is_a_copy() -> None:
    sender, receiver = tg.EF21(tg.Sign()), tg.EF21Receiver()
    got = receiver.decompress(sender.compress(torch.ones(8), key="w"), key="w")
    got.zero_()
    assert_same_bits(receiver.estimate("w"), sender.estimate("w"))


@pytest.mark.parametrize("codec", [tg.Quantize(), tg.TopK(density=0.1), Grid()], ids=name_of)
def test_what_is_not_finite_is_refused_or_skipped(codec: tg.Codec) -> None:
    bad = torch.ones(33)
    bad[2] = float("inf")
    careful, lenient = tg.EF21(codec), tg.EF21(codec, nonfinite="skip")
    for sender in (careful, lenient):
        sender.compress(tensors(0)["bias"], key="bias")
    before = careful.estimate("bias").clone()
    with pytest.raises(tg.NonFiniteError, match="bias"):
        careful.compress(bad, key="bias")
    with pytest.raises(tg.NonFiniteError, match="bias"):
        careful.compress_many({"new": torch.ones(3), "bias": bad})
    payload = lenient.compress(bad, key="bias")
    assert payload.skipped
    assert not tg.decompress(payload).any()
    for sender in (careful, lenient):
        assert_same_bits(sender.estimate("bias"), before)
    forgetful = tg.EF21(codec, nonfinite="reset")
    forgetful.compress(tensors(0)["bias"], key="bias")
    with pytest.raises(tg.NonFiniteError):
        forgetful.compress(bad, key="bias")
    assert not forgetful.estimate("bias").any()


def test_errors_say_which_key() -> None:
    sender, receiver = tg.EF21(tg.Sign()), tg.EF21Receiver()
    payload = sender.compress(torch.ones(8), key="w")
    receiver.decompress(payload, key="w")
    with pytest.raises(tg.StateError, match="'w'"):
        sender.compress(torch.ones(9), key="w")
    with pytest.raises(tg.StateError, match="'w'"):
        receiver.decompress(tg.compress(torch.ones(9), tg.Sign()), key="w")
    with pytest.raises(tg.PayloadError):
        receiver.decompress(bytes(payload)[:-1], key="w")
    with pytest.raises(tg.InputError, match="2 keys"):
        receiver.decompress_many(sender.compress_many({"w": torch.ones(8)}), ["w", "b"])
    with pytest.raises(tg.InputError, match="key"):
        sender.compress(torch.ones(8), key=3)  # type: ignore[arg-type]
    assert_same_bits(receiver.estimate("w"), stored_of(tg.decompress(payload)))


@pytest.mark.parametrize(
    "state", [None, 3, {}, {"version": 1}, {"version": 1, "estimates": {"w": 3}}]
)
def test_a_state_that_is_none_changes_nothing(state: Any) -> None:
    sender, receiver = tg.EF21(tg.Sign()), tg.EF21Receiver()
    receiver.decompress(sender.compress(torch.ones(8), key="w"), key="w")
    for kept in (sender, receiver):
        with pytest.raises(tg.StateError):
            kept.load_state_dict(state)
        assert kept.estimate("w").sum() == 8
    with pytest.raises(tg.StateError):
        sender.load_state_dict(tg.ErrorFeedback(tg.Sign()).state_dict())
    with pytest.raises(tg.InputError, match="momentum"):
        tg.EF21(tg.Sign(), momentum=1.0)


def test_rescale_and_reset_reach_both_sides() -> None:
    sender, receiver = tg.EF21(tg.Sign(), momentum=0.5), tg.EF21Receiver()
    receiver.decompress(sender.compress(torch.ones(8), key="w"), key="w")
    for kept in (sender, receiver):
        kept.rescale(2.0)
        assert kept.estimate("w").sum() == 16
        kept.reset("w")
        with pytest.raises(KeyError):
            kept.estimate("w")
