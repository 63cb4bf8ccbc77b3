"""Momentum, decay and storage of ErrorFeedback: each has a law, to the bit."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from arrays import DTYPES, as_kind, assert_same_bits, gradient, stored_of
from contract import CODECS, name_of

import tersegrad as tg
from tersegrad.feedback import STORAGES

F = np.float32
OPTIONS: list[dict[str, Any]] = [
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True, "masking": False},
    {"decay": 0.75},
    {"storage": "int8"},
    {"storage": "bfloat16"},
    {"storage": "float16"},
    {"momentum": 0.5, "nesterov": True, "decay": 0.9, "storage": "int8"},
]
SHAPES = {"weight": (16, 33), "bias": (33,), "scale": ()}


def tensors(step: int, dtype: str = "float32", kind: str = "torch") -> dict[str, Any]:
    return {
        key: as_kind(
            ref.store(gradient(int(np.prod(shape)), seed=step).reshape(shape), dtype), kind
        )
        for key, shape in SHAPES.items()
    }


def oracle(
    x: Any, velocity: Any, before: Any, options: dict[str, Any], payload: tg.Payload
) -> tuple[Any, Any]:
    """Velocity and residual after a call that has sent `payload`."""
    source = x
    if "momentum" in options:
        momentum = F(options["momentum"])
        velocity = velocity * momentum + x
        source = velocity * momentum + x if options.get("nesterov") else velocity
    sent = ref.widen(stored_of(tg.decompress(payload)), payload.dtype)
    if options.get("masking", True) and payload.codec.is_sparse:
        velocity = np.where(sent != 0, F(0), velocity)
    residual = (source + before * F(options.get("decay", 1))) - sent
    codec = STORAGES[options.get("storage", "float32")]
    if codec is not None:
        residual = np.asarray(residual, F)
        residual = tg.decompress(tg.compress(residual, codec, step=payload.step))
    return velocity, residual


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_option_obeys_its_law_for_every_codec(options: dict[str, Any], dtype: str) -> None:
    for codec in CODECS:
        feedback = tg.ErrorFeedback(codec, **options)
        kept = {key: (np.zeros(s, F), np.zeros(s, F)) for key, s in SHAPES.items()}
        for step in range(3):
            for key, tensor in tensors(step, dtype).items():
                payload = feedback.compress(tensor, key=key)
                x = ref.widen(stored_of(tensor), dtype)
                kept[key] = oracle(x, *kept[key], options, payload)
                name = f"{name_of(codec)}, {key} at step {step}"
                assert_same_bits(feedback.residual(key), np.asarray(kept[key][1], F), name)
                if "momentum" in options:
                    velocity = feedback.state_dict()["velocities"][key]
                    assert_same_bits(velocity, np.asarray(kept[key][0], F), name)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_whole_model_is_its_tensors_one_by_one(options: dict[str, Any], kind: str) -> None:
    codec = tg.TopK(density=0.1, values=tg.Quantize(4, rounding="stochastic"))
    together, alone = (tg.ErrorFeedback(codec, **options) for _ in range(2))
    for step in range(3):
        message = together.compress_many(tensors(step, kind=kind))
        decoded = tg.decompress_many(bytes(message), kind=kind)
        for (key, x), got in zip(tensors(step, kind=kind).items(), decoded, strict=True):
            assert_same_bits(got, tg.decompress(alone.compress(x, key=key)))
            assert_same_bits(together.residual(key), alone.residual(key))


def saved_and_loaded(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_resume_to_the_bit(options: dict[str, Any]) -> None:
    codec = tg.TopK(density=0.1, values=tg.Quantize(4))
    straight, first, resumed = (tg.ErrorFeedback(codec, **options) for _ in range(3))
    for step in range(6):
        if step == 3:
            resumed.load_state_dict(saved_and_loaded(first.state_dict()))
        for key, x in tensors(step).items():
            expected = bytes(straight.compress(x, key=key))
            assert bytes((first if step < 3 else resumed).compress(x, key=key)) == expected
    assert resumed.norm() == straight.norm() > 0


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_is_not_finite_changes_nothing(options: dict[str, Any]) -> None:
    bad = torch.ones(33)
    bad[7] = float("nan")
    for nonfinite in ("error", "skip", "reset"):
        feedback = tg.ErrorFeedback(tg.Sign(), nonfinite=nonfinite, **options)
        for key, x in tensors(0).items():
            feedback.compress(x, key=key)
        before = saved_and_loaded(feedback.state_dict())
        if nonfinite == "skip":
            assert feedback.compress(bad, key="bias").skipped
            message = feedback.compress_many({**tensors(1), "bias": bad})
            assert message.skipped == (1,)
            assert feedback.skipped == 2
        else:
            with pytest.raises(tg.NonFiniteError, match="bias"):
                feedback.compress(bad, key="bias")
            with pytest.raises(tg.NonFiniteError, match="bias"):
                feedback.compress_many({**tensors(1), "bias": bad})
        after = feedback.state_dict()
        for name in {"residuals", "velocities"} & set(before):
            if nonfinite == "reset":
                assert "bias" not in after[name]
            else:
                assert torch.equal(after[name]["bias"], before[name]["bias"])
            if nonfinite == "error":
                assert torch.equal(after[name]["weight"], before[name]["weight"])


def test_a_velocity_that_overflows_changes_nothing() -> None:
    feedback = tg.ErrorFeedback(tg.Sign(), momentum=0.9)
    huge = torch.full((4,), 2e38)
    feedback.compress(huge, key="w")
    before = saved_and_loaded(feedback.state_dict())
    with pytest.raises(tg.InputError, match=r"finite"):
        feedback.compress(huge, key="w")
    assert torch.equal(feedback.state_dict()["velocities"]["w"], before["velocities"]["w"])
    assert torch.equal(feedback.residual("w"), before["residuals"]["w"])


def test_int8_residuals_take_a_quarter_of_the_memory_and_lose_nothing_on_average() -> None:
    x = torch.from_numpy(gradient(64 * 64))
    feedback = tg.ErrorFeedback(tg.TopK(density=0.01), storage="int8")
    feedback.compress(x, key="w")
    assert feedback.state_dict()["residuals"]["w"].numel() <= 4096 * (1 + 4 / 64) + 64
    exact = tg.ErrorFeedback(tg.TopK(density=0.01))
    exact.compress(x, key="w")
    blocks = (feedback.residual("w") - exact.residual("w")).view(-1, 64)
    codes = exact.residual("w").view(-1, 64).abs().amax(1, keepdim=True) / 127
    assert bool((blocks.abs() <= codes * 1.001).all())
    # Rounding noise of variance at most code^2 / 4 an entry: the mean of 4096 is within 5 deviations.
    assert abs(float(blocks.mean())) <= 5 * 0.5 * float(codes.max()) / 64


def test_storage_may_change_between_runs() -> None:
    codec = tg.TopK(density=0.1)
    saved = tg.ErrorFeedback(codec)
    small = tg.ErrorFeedback(codec, storage="int8")
    again = tg.ErrorFeedback(codec)
    for key, x in tensors(0).items():
        saved.compress(x, key=key)
    small.load_state_dict(saved.state_dict())
    again.load_state_dict(saved_and_loaded(small.state_dict()))
    for key in SHAPES:
        assert_same_bits(again.residual(key), small.residual(key))
    assert again.norm() == pytest.approx(saved.norm(), rel=0.02)


def test_rescale_reaches_velocities_and_small_residuals() -> None:
    feedback = tg.ErrorFeedback(tg.TopK(density=0.1), momentum=0.9, storage="int8")
    feedback.compress(tensors(0)["weight"], key="weight")
    norm, velocity = feedback.norm(), feedback.state_dict()["velocities"]["weight"]
    feedback.rescale(2.0)
    assert feedback.norm() == pytest.approx(2 * norm, rel=0.01)
    assert torch.equal(feedback.state_dict()["velocities"]["weight"], 2 * velocity)
    feedback.reset()
    assert feedback.norm() == 0
    assert feedback.state_dict()["velocities"] == {}


@pytest.mark.parametrize(
    "options",
    [
        *({"momentum": value} for value in (1.0, -0.1, "0.9", True)),
        *({"decay": value} for value in (0.0, 1.5, None)),
        {"storage": "int4"},
    ],
    ids=str,
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(tg.InputError, match=next(iter(options))):
        tg.ErrorFeedback(tg.Sign(), **options)


def test_a_damaged_small_residual_is_a_state_error_that_changes_nothing() -> None:
    feedback = tg.ErrorFeedback(tg.Sign(), storage="int8")
    feedback.compress(torch.ones(100), key="w")
    before, state = feedback.norm(), feedback.state_dict()
    state["residuals"]["w"][50] ^= 1
    with pytest.raises(tg.StateError, match="w"):
        feedback.load_state_dict(state)
    assert feedback.norm() == before
    momentum = tg.ErrorFeedback(tg.Sign(), momentum=0.9)
    momentum.compress(torch.ones(100), key="w")
    with pytest.raises(tg.StateError, match="momentum"):
        feedback.load_state_dict(momentum.state_dict())
