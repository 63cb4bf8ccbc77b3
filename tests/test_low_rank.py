"""Laws of LowRank beyond the contract: matrices, streams, threads, forged factors."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import reference as ref
import reference_low_rank as low_rank
import torch
from arrays import DTYPES, VARIANTS, as_torch, assert_same_bits, bits_of, gradient, kernels, mixture

import tersegrad as tg
from tersegrad.exchange import Selection

CODEC = tg.LowRank(rank=2)


def matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Of a spectrum that falls, as gradients have."""
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(rows, 12)), rng.normal(size=(12, columns))
    spectrum = 0.5 ** np.arange(12)
    noise = 0.01 * rng.normal(size=(rows, columns))
    return ((left * spectrum) @ right + noise).astype(np.float32)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(16, 16), (17, 15), (9, 33), (40, 64), (8, 3, 3, 3), (65, 1030)])
def test_every_shape_rank_and_dtype_gives_the_bytes_of_the_oracle(
    variant: str, shape: tuple[int, ...]
) -> None:
    for rank in (1, 3, 4, 5, 7):
        for factors in ("float32", "bfloat16"):
            codec: Any = tg.LowRank(rank, factors, seed=5)  # type: ignore[arg-type]
            for dtype in DTYPES:
                x = ref.store(mixture(int(np.prod(shape))), dtype).reshape(shape)
                residual = gradient(x.size, seed=9).reshape(shape)
                expected, kept = ref.compress(x, codec, residual)
                r = as_torch(residual)
                with kernels(variant):
                    assert bytes(tg.compress(as_torch(x), codec, residual=r)) == expected
                assert_same_bits(r, kept)


def test_threads_change_no_bit() -> None:
    for rows, columns in ((1030, 517), (3, 200_003), (70_001, 5)):
        x, answers = matrix(rows, columns), set()
        for variant in VARIANTS:
            for threads in (1, 2, 5):
                with kernels(variant, threads):
                    r = torch.zeros(rows, columns)
                    raw = bytes(tg.compress(torch.from_numpy(x), tg.LowRank(3), residual=r))
                    answers.add((raw, bits_of(r).tobytes(), bits_of(tg.decompress(raw)).tobytes()))
        assert len(answers) == 1


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e37])
@pytest.mark.parametrize(
    "make",
    [np.zeros, np.ones, lambda s: np.eye(*s), lambda s: np.arange(np.prod(s)).reshape(s) % 7 - 3],
)
def test_matrices_without_full_rank_obey_the_oracle(make: Any, scale: float) -> None:
    x = (make((20, 30)) * scale).astype(np.float32)
    codec = tg.LowRank(5)
    expected, kept = ref.compress(x, codec, np.zeros_like(x))
    residual = np.zeros_like(x)
    assert bytes(tg.compress(x, codec, residual=residual)) == expected
    assert_same_bits(residual, kept)
    assert np.isfinite(tg.decompress(expected)).all()


def test_a_stream_begins_where_its_last_call_ended() -> None:
    feedback, codec = tg.ErrorFeedback(CODEC), tg.LowRank(2, columns=40)
    residual, memory = np.zeros(1200, np.float32), None
    for step in range(4):
        x = matrix(30, 40, step)
        payload = feedback.compress(x, "w")
        a = x.ravel() + residual
        body = low_rank.encode(codec, a, 30, memory)
        assert payload.body.tobytes() == body
        memory = low_rank.factors_of(codec, a, 30, memory)[1]
        residual = a - low_rank.decode(codec, body, 30, "float32")
    assert_same_bits(feedback.residual("w").ravel(), residual)


def test_power_iteration_comes_close_to_the_best_approximation() -> None:
    x, feedback = matrix(100, 80), tg.ErrorFeedback(tg.LowRank(4))
    for _ in range(4):
        feedback.compress(x, "w")
        feedback.residual("w").fill(0)  # type: ignore[union-attr]
    lost = np.linalg.norm(x - tg.decompress(feedback.compress(x, "w")))
    best = np.sqrt((np.linalg.svd(x, compute_uv=False)[4:] ** 2).sum())
    assert best <= lost < 1.01 * best


@pytest.mark.parametrize("factors", ["float32", "bfloat16"])
def test_a_loaded_stream_goes_on_to_the_bit(factors: Any) -> None:
    codec = tg.LowRank(2, factors)
    whole, first = tg.ErrorFeedback(codec), tg.ErrorFeedback(codec)
    xs = [torch.from_numpy(matrix(30, 40, step)) for step in range(5)]
    expected = [bytes(whole.compress(x, "w")) for x in xs]
    got = [bytes(first.compress(x, "w")) for x in xs[:3]]
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = tg.ErrorFeedback(codec)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert got + [bytes(second.compress(x, "w")) for x in xs[3:]] == expected


def test_a_message_states_one_codec_for_matrices_of_all_shapes() -> None:
    shapes = [(30, 40), (8, 3, 5), (7,), (), (4, 64), (2, 3)]
    xs = [gradient(int(np.prod(shape)), seed=3).reshape(shape) for shape in shapes]
    message = tg.compress_many(xs, CODEC)
    raw = bytes(message)
    assert raw[5] == 1
    expected = [tg.decompress(tg.compress(x, CODEC)) for x in xs]
    for source in (message, raw):
        for got, wanted in zip(tg.decompress_many(source), expected, strict=True):
            assert_same_bits(got, wanted)
    feedback = tg.ErrorFeedback(CODEC)
    named = {str(i): x for i, x in enumerate(xs)}
    for _ in range(2):
        assert len(bytes(feedback.compress_many(named))) == len(raw)


def test_a_federated_client_may_send_low_rank() -> None:
    update = {"w": matrix(30, 40), "b": np.ones(40, np.float32)}
    client = tg.federated.Client(CODEC)
    server = tg.federated.Server(tg.federated.Layout.of(update))
    message = client.encode(update)
    server.add(message, weight=1)
    mean = server.mean()
    assert_same_bits(mean["w"], tg.decompress(tg.compress(update["w"], CODEC)))
    assert len(message) < 4 * 1200


def test_what_low_rank_does_not_make_smaller_travels_as_it_is() -> None:
    for shape in ((7,), (), (2, 3), (1, 100), (100, 1), (0, 5), (4, 4)):
        x = gradient(int(np.prod(shape))).reshape(shape)
        payload = tg.compress(x, tg.LowRank(4))
        assert payload.body.nbytes == 4 * x.size
        assert_same_bits(tg.decompress(payload), x)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.0000001, -2.0, 3e38])
def test_a_forged_first_factor_is_refused(bad: float) -> None:
    raw = bytearray(bytes(tg.compress(matrix(30, 40), CODEC)))
    raw[56 + 8 : 56 + 12] = np.float32(bad).tobytes()
    out = np.full((30, 40), 7, np.float32)
    with pytest.raises(tg.PayloadError, match="first factor"):
        tg.decompress(ref.seal(bytes(raw)), out=out)
    assert (out == 7).all()


def test_a_forged_second_factor_is_refused_or_saturates() -> None:
    honest = bytes(tg.compress(matrix(30, 40), CODEC))
    at = 56 + 4 * 60
    for bad in (np.nan, np.inf):
        with pytest.raises(tg.PayloadError, match="second factor"):
            tg.decompress(ref.seal(honest[:at] + np.float32(bad).tobytes() + honest[at + 4 :]))
    ones = np.ones(60, np.float32).tobytes()
    huge = np.full(80, 3e38, np.float32).tobytes()
    restored = tg.decompress(ref.seal(honest[:56] + ones + huge))
    assert (restored == np.finfo(np.float32).max).all()


@pytest.mark.parametrize(
    ("offset", "value", "match"),
    [
        (8, 0, "rank"),
        (8, 129, "rank"),
        (9, 2, "factors"),
        (9, 9, "dtype"),
        (10, 1, "parameter"),
        (12, 41, "body"),
    ],
)
def test_forged_parameters_are_refused(offset: int, value: int, match: str) -> None:
    raw = bytearray(bytes(tg.compress(matrix(30, 40), CODEC)))
    raw[offset] = value
    with pytest.raises(tg.PayloadError, match=match):
        tg.decompress(ref.seal(bytes(raw)))


def test_where_tensors_travel_in_parts_low_rank_is_refused() -> None:
    with pytest.raises(tg.CodecError, match="whole matrices"):
        Selection(CODEC, {}, 1)
    with pytest.raises(tg.CodecError, match="parameters"):
        tg.TopK(0.1, values=CODEC)
