"""ErrorFeedback keeps, per key, exactly what the payloads did not carry."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from arrays import DTYPES, KINDS, as_kind, as_torch, assert_same_bits, gradient, stored_of
from contract import CODECS, Grid, is_in_the_document, name_of

import tersegrad as tg

LAYERS = {"weight": (16, 33), "bias": (33,), "scale": ()}


def gradients(step: int, dtype: str = "float32", kind: str = "torch") -> dict[str, Any]:
    return {
        key: as_kind(
            ref.store(gradient(int(np.prod(shape)), seed=step).reshape(shape), dtype), kind
        )
        for key, shape in LAYERS.items()
    }


def trained(codec: tg.Codec, steps: int = 3, kind: str = "torch") -> tg.ErrorFeedback:
    feedback = tg.ErrorFeedback(codec)
    for step in range(steps):
        for key, x in gradients(step, kind=kind).items():
            feedback.compress(x, key=key)
    return feedback


def saved_and_loaded(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("codec", CODECS, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES)
def test_residual_is_exactly_what_all_payloads_have_not_carried(
    codec: tg.Codec, dtype: str
) -> None:
    feedback = tg.ErrorFeedback(codec)
    residuals = {key: np.zeros(shape, np.float32) for key, shape in LAYERS.items()}
    for step in range(6):
        for key, x in gradients(step, dtype).items():
            payload = feedback.compress(x, key=key)
            decoded = ref.widen(stored_of(tg.decompress(payload)), dtype)
            entry = ref.widen(stored_of(x), dtype) + residuals[key]
            residuals[key] = np.asarray(entry - decoded, np.float32)
            assert_same_bits(feedback.residual(key), residuals[key], f"{key} at step {step}")


# A stream of LowRank has a memory, which test_low_rank.py follows.
STATELESS = [c for c in CODECS if is_in_the_document(c) and not isinstance(c, tg.LowRank)]


@pytest.mark.parametrize("codec", STATELESS, ids=name_of)
@pytest.mark.parametrize("kind", KINDS)
def test_many_steps_are_the_steps_of_the_oracle(codec: tg.Codec, kind: str) -> None:
    feedback = tg.ErrorFeedback(codec)
    residual = np.zeros((16, 33), np.float32)
    for step in range(12):
        x = gradients(step, kind="numpy")["weight"]
        payload = feedback.compress(as_kind(x, kind), key="weight")
        expected, residual = ref.compress(x, codec, residual, payload.step)
        assert bytes(payload) == expected
    assert_same_bits(feedback.residual("weight"), residual)


def test_random_streams_move_on_from_call_to_call() -> None:
    feedback = tg.ErrorFeedback(tg.RandomK(density=0.1))
    x = torch.ones(1000)
    supports = {
        tuple(torch.nonzero(tg.decompress(feedback.compress(x, key="w"))).ravel().tolist())
        for _ in range(10)
    }
    assert len(supports) == 10


def test_everything_arrives_in_the_end() -> None:
    """All decoded plus the residual is the sum of the inputs, up to the rounding of additions."""
    feedback = tg.ErrorFeedback(tg.TopK(density=0.05, values=tg.Quantize(bits=4)))
    steps = 50
    sent, given = np.zeros(5000), np.zeros(5000)
    for step in range(steps):
        x = gradient(5000, seed=step)
        given += x
        sent += tg.decompress(feedback.compress(x, key="w"))
    residual = feedback.residual("w")
    # Two float32 roundings per step, each at most 2^-24 of a magnitude below 2 * max(|x + r|).
    bound = steps * 2 * 2.0**-24 * 2 * max(np.abs(given).max(), np.abs(residual).max(), 4.0)
    assert np.abs(sent + residual - given).max() <= bound


def test_keys_do_not_mix() -> None:
    feedback = tg.ErrorFeedback(tg.Sign())
    alone = tg.ErrorFeedback(tg.Sign())
    for step in range(4):
        feedback.compress(torch.from_numpy(gradient(100, seed=step)), key="a")
        feedback.compress(torch.from_numpy(gradient(100, seed=step + 50)), key="b")
        alone.compress(torch.from_numpy(gradient(100, seed=step)), key="a")
    assert_same_bits(feedback.residual("a"), alone.residual("a"))
    assert not np.array_equal(stored_of(feedback.residual("a")), stored_of(feedback.residual("b")))


# --- State. ---


@pytest.mark.parametrize("codec", CODECS, ids=name_of)
def test_training_resumed_from_a_file_is_the_training_that_never_stopped(codec: tg.Codec) -> None:
    straight = trained(codec)
    resumed = tg.ErrorFeedback(codec)
    resumed.load_state_dict(saved_and_loaded(trained(codec).state_dict()))
    for step in range(3, 6):
        for key, x in gradients(step).items():
            expected, got = straight.compress(x, key=key), resumed.compress(x, key=key)
            assert bytes(got) == bytes(expected), (key, step)
            assert got.step == expected.step
            assert_same_bits(resumed.residual(key), straight.residual(key))
    assert resumed.skipped == straight.skipped
    assert resumed.norm() == straight.norm()


def test_training_on_numpy_resumes_to_the_bit() -> None:
    codec = tg.TopK(density=0.1, values=tg.Quantize(bits=4, rounding="stochastic", seed=3))
    straight = trained(codec, kind="numpy")
    resumed = tg.ErrorFeedback(codec)
    resumed.load_state_dict(pickle.loads(pickle.dumps(trained(codec, kind="numpy").state_dict())))
    for key, x in gradients(3, kind="numpy").items():
        assert bytes(resumed.compress(x, key=key)) == bytes(straight.compress(x, key=key))
        assert isinstance(resumed.residual(key), np.ndarray)
        assert_same_bits(resumed.residual(key), straight.residual(key))


def test_state_holds_plain_tensors_numbers_strings_and_containers_only() -> None:
    def check(value: Any) -> None:
        if isinstance(value, dict):
            for key, entry in value.items():
                assert type(key) is str
                check(entry)
        elif isinstance(value, (list, tuple)):
            for entry in value:
                check(entry)
        else:
            assert type(value) in (torch.Tensor, int, float, str, bool, type(None)), type(value)

    check(trained(tg.Quantize()).state_dict())


def test_state_is_a_snapshot() -> None:
    feedback = trained(tg.Quantize(bits=2))
    state = feedback.state_dict()
    before = copy.deepcopy(state)
    for key, x in gradients(9).items():
        feedback.compress(x, key=key)
    first, second = io.BytesIO(), io.BytesIO()
    torch.save(before, first)
    torch.save(state, second)
    resumed = [tg.ErrorFeedback(tg.Quantize(bits=2)) for _ in range(2)]
    resumed[0].load_state_dict(before)
    resumed[1].load_state_dict(state)
    for key in LAYERS:
        assert_same_bits(resumed[0].residual(key), resumed[1].residual(key))
    resumed[1].compress(gradients(4)["bias"], key="bias")
    again = tg.ErrorFeedback(tg.Quantize(bits=2))
    again.load_state_dict(state)
    assert_same_bits(again.residual("bias"), resumed[0].residual("bias"))


def test_loading_replaces_what_was_there() -> None:
    feedback = tg.ErrorFeedback(tg.Quantize())
    feedback.compress(torch.ones(10) / 3, key="old")
    feedback.load_state_dict(trained(tg.Quantize()).state_dict())
    fresh = tg.ErrorFeedback(tg.Quantize())
    fresh.load_state_dict(trained(tg.Quantize()).state_dict())
    assert feedback.norm() == fresh.norm()


@pytest.mark.parametrize("state", [None, 3, [], {}, {"nonsense": 1}, "state"], ids=repr)
def test_a_state_that_is_none_is_a_state_error_that_changes_nothing(state: Any) -> None:
    feedback = trained(tg.Quantize())
    before = feedback.norm()
    with pytest.raises(tg.StateError):
        feedback.load_state_dict(state)
    assert feedback.norm() == before


def test_a_state_of_another_codec_is_a_state_error_or_resumes() -> None:
    """A residual is a residual whatever codec left it: another may go on, never with garbage."""
    state = trained(tg.Quantize(bits=8)).state_dict()
    feedback = tg.ErrorFeedback(tg.TopK(density=0.1))
    try:
        feedback.load_state_dict(state)
    except tg.StateError:
        return
    for key in LAYERS:
        assert_same_bits(feedback.residual(key), trained(tg.Quantize(bits=8)).residual(key))


def test_a_shape_that_changed_names_the_key() -> None:
    feedback = trained(tg.Quantize())
    before = stored_of(feedback.residual("bias")).copy()
    with pytest.raises((tg.StateError, tg.InputError), match="bias"):
        feedback.compress(torch.ones(34), key="bias")
    assert_same_bits(feedback.residual("bias"), before)


def test_loading_onto_arrays_of_another_shape_names_the_key() -> None:
    resumed = tg.ErrorFeedback(tg.Quantize())
    resumed.load_state_dict(saved_and_loaded(trained(tg.Quantize()).state_dict()))
    with pytest.raises((tg.StateError, tg.InputError), match="weight"):
        resumed.compress(torch.ones(16, 34), key="weight")


# --- rescale, reset, norm, skip. ---


def test_rescale_multiplies_every_residual_once() -> None:
    for factor in (0.5, 2.0, 1 / 3, 1024.0):
        feedback, untouched = trained(tg.Sign()), trained(tg.Sign())
        feedback.rescale(factor)
        for key in LAYERS:
            expected = stored_of(untouched.residual(key)) * np.float32(factor)
            assert_same_bits(feedback.residual(key), np.asarray(expected, np.float32), key)


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), float("-inf")])
def test_rescale_by_what_is_not_finite_is_refused(factor: float) -> None:
    feedback = trained(tg.Sign())
    before = feedback.norm()
    with pytest.raises(ValueError, match=r"nan|inf"):
        feedback.rescale(factor)
    assert feedback.norm() == before


def test_norm_is_the_euclidean_norm_of_one_or_all_residuals() -> None:
    feedback = trained(tg.Sign())
    squares = {
        key: float((stored_of(feedback.residual(key)).astype(np.float64) ** 2).sum())
        for key in LAYERS
    }
    for key in LAYERS:
        assert isinstance(feedback.norm(key), float)
        assert feedback.norm(key) == pytest.approx(
            squares[key] ** 0.5, rel=1e-5
        )  # float32 accumulation allowed
    assert feedback.norm() == pytest.approx(sum(squares.values()) ** 0.5, rel=1e-5)
    assert tg.ErrorFeedback(tg.Sign()).norm() == 0


def test_reset_forgets_one_key_or_all() -> None:
    codec = tg.TopK(density=0.1)
    feedback = trained(codec)
    kept = feedback.norm("bias")
    feedback.reset("weight")
    assert feedback.norm("bias") == kept
    x = gradients(7)["weight"]
    zero = torch.zeros_like(x)
    assert (
        bytes(feedback.compress(x, key="weight"))[56:]
        == bytes(tg.compress(x, codec, residual=zero))[56:]
    )
    feedback.reset()
    assert feedback.norm() == 0


def test_an_unknown_key_is_a_key_error_or_nothing() -> None:
    feedback = trained(tg.Sign())
    for ask in (feedback.residual, feedback.norm, feedback.reset):
        try:
            answer = ask("nowhere")
        except (KeyError, tg.StateError) as caught:
            answer, message = None, str(caught)
            assert "nowhere" in message
        assert answer is None or answer == 0


@pytest.mark.parametrize("codec", [tg.Quantize(), tg.TopK(density=0.1), Grid()], ids=name_of)
def test_skipped_inputs_are_counted_and_leave_the_residual(codec: tg.Codec) -> None:
    feedback = tg.ErrorFeedback(codec, nonfinite="skip")
    feedback.compress(as_torch(gradient(100)), key="w")
    before = stored_of(feedback.residual("w")).copy()
    assert feedback.skipped == 0
    bad = torch.ones(100)
    bad[3] = float("inf")
    for count in (1, 2, 3):
        payload = feedback.compress(bad, key="w")
        assert payload.skipped
        assert not tg.decompress(payload).any()
        assert feedback.skipped == count
        assert_same_bits(feedback.residual("w"), before)
    assert not feedback.compress(torch.ones(100), key="w").skipped
    assert feedback.skipped == 3
    resumed = tg.ErrorFeedback(codec, nonfinite="skip")
    resumed.load_state_dict(saved_and_loaded(feedback.state_dict()))
    assert resumed.skipped == 3


def test_a_non_finite_input_is_an_error_by_default_that_changes_nothing() -> None:
    feedback = trained(tg.Quantize())
    before = stored_of(feedback.residual("bias")).copy()
    bad = torch.ones(33)
    bad[32] = float("nan")
    with pytest.raises(tg.NonFiniteError):
        feedback.compress(bad, key="bias")
    assert_same_bits(feedback.residual("bias"), before)
    assert feedback.skipped == 0


@pytest.mark.parametrize("nonfinite", ["ignore", "", None, True])
def test_an_unknown_treatment_of_non_finite_input_is_refused(nonfinite: Any) -> None:
    with pytest.raises(ValueError, match=repr(nonfinite)):
        tg.ErrorFeedback(tg.Sign(), nonfinite=nonfinite)
    with pytest.raises(ValueError, match=repr(nonfinite)):
        tg.compress(torch.ones(3), tg.Sign(), nonfinite=nonfinite)


def test_error_feedback_needs_a_codec() -> None:
    with pytest.raises((TypeError, ValueError)):
        tg.ErrorFeedback("topk")  # type: ignore[arg-type]


def test_residual_keeps_float32_for_narrow_inputs() -> None:
    feedback = tg.ErrorFeedback(tg.Sign())
    feedback.compress(torch.ones(10, dtype=torch.bfloat16), key="w")
    assert feedback.residual("w").dtype == torch.float32
