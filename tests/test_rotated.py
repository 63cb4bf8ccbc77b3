"""Rotated: its grid, its errors and its bias are what the papers promise, for any length and any finite input."""

from __future__ import annotations

import math
import struct
from itertools import pairwise

import numpy as np
import pytest
import reference as ref
import reference_rotated
from arrays import VARIANTS, as_torch, assert_same_bits, gradient, kernels, mixture
from hypothesis import given
from hypothesis import strategies as st
from test_kernels import assert_variants_agree_with_the_oracle

import tersegrad as tg
from tersegrad.codec import decode_into, encode_into

# Mean squared error of Lloyd and Max's quantizer of the normal distribution, by bits; what is unbiased has D / (1 - D).
DISTORTION = {1: 0.36338, 2: 0.11748, 3: 0.034548, 4: 0.0095010}
BARS = {1: 0.59, 2: 0.137, 3: 0.037, 4: 0.0100}
EVERY_BITS = (0.25, 1, 2, 3, 4)


def nmse(x: np.ndarray, decoded: np.ndarray) -> float:
    wide = x.astype(np.float64)
    return float(((decoded - wide) ** 2).sum() / (wide**2).sum())


def normal(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


# --- The grid. ---


def density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def tail(x: float) -> float:
    return 0.5 * math.erfc(x / math.sqrt(2))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_grid_is_the_fixed_point_of_lloyd_and_max(bits: int) -> None:
    levels = [(i + 0.5) * 3 / 2 ** (bits - 1) for i in range(2 ** (bits - 1))]
    for _ in range(1500):
        limits = [(a + b) / 2 for a, b in pairwise(levels)]
        edges = [0.0, *limits, 40.0]
        levels = [(density(a) - density(b)) / (tail(a) - tail(b)) for a, b in pairwise(edges)]
    assert np.float32(levels).tolist() == np.float32(reference_rotated.LEVELS[bits]).tolist()
    assert np.float32(limits).tolist() == np.float32(reference_rotated.LIMITS[bits]).tolist()


# --- Errors. ---


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("scale", ["unbiased", "mmse"])
def test_the_error_is_that_of_the_best_quantizer_of_a_normal_distribution(
    bits: int, scale: str
) -> None:
    n = 2**20
    codec = tg.Rotated(bits, scale=scale)  # type: ignore[arg-type]
    assert codec.body_size(n) == n // 4096 * 4 + n * bits // 8
    distortion = DISTORTION[bits]
    expected = distortion / (1 - distortion) if scale == "unbiased" else distortion
    spike = np.zeros(n, np.float32)
    spike[12345] = -7
    heavy = normal(n) ** 7
    assert nmse(normal(n), tg.decompress(tg.compress(normal(n), codec))) < 1.01 * expected
    assert nmse(heavy, tg.decompress(tg.compress(heavy, codec))) < 1.05 * expected
    assert nmse(spike, tg.decompress(tg.compress(spike, codec))) < 1e-10
    assert 1.01 * expected <= BARS[bits]


def test_fractions_of_a_bit_cost_what_theory_says() -> None:
    x = normal(2**20)
    for bits in (0.1, 0.25, 0.5):
        unbiased = tg.compress(x, tg.Rotated(bits))
        assert unbiased.body.nbytes <= len(x) * bits / 8 + 5 * 256
        assert nmse(x, tg.decompress(unbiased)) == pytest.approx(np.pi / 2 / bits - 1, rel=0.02)
        mmse = tg.compress(x, tg.Rotated(bits, scale="mmse"))
        assert nmse(x, tg.decompress(mmse)) == pytest.approx(1 - bits * 2 / np.pi, rel=0.02)


@pytest.mark.parametrize("bits", EVERY_BITS)
def test_the_mean_over_ten_thousand_seeds_is_the_input(bits: float) -> None:
    n, seeds = 1024, 10_000
    x = normal(n, seed=1)
    total, squares = np.zeros(n), 0.0
    codec = tg.Rotated(bits, block=n)
    body, decoded = np.zeros(codec.body_size(n), np.uint8), np.zeros(n, np.float32)
    for seed in range(seeds):
        codec = tg.Rotated(bits, block=n, seed=seed)
        assert encode_into(x, codec, body)
        decode_into(body, codec, decoded)
        total += decoded
        squares += float(((decoded - x).astype(np.float64) ** 2).sum())
    bias = total / seeds - x
    error = math.sqrt(squares / seeds / n / seeds)  # standard error of the mean of one entry
    # Along any direction that is chosen beforehand the bias is a sum of independent errors of this size ...
    rng = np.random.default_rng(5)
    for direction in (np.sign(x), np.ones(n), *rng.standard_normal((20, n))):
        assert abs(bias @ direction) <= 4 * error * np.linalg.norm(direction)
    # ... the squares of all of them add up to n times its square, give or take sqrt(2 n) ...
    assert abs(bias @ bias / error**2 - n) <= 4 * math.sqrt(2 * n)
    # ... and along x itself every single call is right.
    assert abs(decoded @ x / (x @ x) - 1) < 1e-5 or isinstance(bits, float)


def test_errors_of_senders_with_their_own_seeds_cancel() -> None:
    x = normal(2**16)
    for bits in (1, 4):
        mean = np.zeros_like(x)
        for seed in range(16):
            payload = tg.compress(x, tg.Rotated(bits, seed=seed))
            tg.decompress(payload, out=mean, accumulate=True, scale=1 / 16)
        one = nmse(x, tg.decompress(payload))
        assert nmse(x, mean) < one / 16 * 1.05


# --- Bits. ---


def some_codecs(block: int) -> list[tg.Codec]:
    return [
        tg.Rotated(1, block=block),
        tg.Rotated(2, block=block, scale="mmse", seed=9),
        tg.Rotated(3, block=block),
        tg.Rotated(4, block=block, seed=2**64 - 1),
        tg.Rotated(0.3125, block=block, seed=1),
    ]


@pytest.mark.parametrize("bits", EVERY_BITS)
def test_every_length_of_a_block_agrees_with_the_oracle(bits: float) -> None:
    codec = tg.Rotated(bits, block=256)
    for n in [*range(70), 95, 96, 127, 128, 129, 191, 193, 255, 256, 257, 300, 511]:
        x, residual = mixture(n, seed=n), gradient(n, seed=1)
        assert_variants_agree_with_the_oracle(x, codec, residual, step=n)


@pytest.mark.parametrize("log2", range(6, 17))
def test_every_block_size_agrees_with_the_oracle(log2: int) -> None:
    for codec in some_codecs(1 << log2):
        n = max(2500, (1 << log2) + 77)
        assert_variants_agree_with_the_oracle(mixture(n), codec, threads=(2,))


EXTREMES = {
    "denormals": np.float32(1e-45) * np.arange(-400, 400, dtype=np.float32),
    "largest": np.full(700, np.finfo(np.float32).max) * np.where(np.arange(700) % 3, 1, -1),
    "largest alone": np.where(np.arange(500) == 77, np.float32(3.4e38), np.float32(1e-30)),
    "negative zeros": np.full(333, -0.0),
    "zeros and one": np.where(np.arange(900) == 899, 1.0, 0.0),
    "two powers": np.where(np.arange(640) % 2, 2.0**120, -(2.0**-126)),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_entries_agree_with_the_oracle_and_stay_finite(name: str) -> None:
    x = EXTREMES[name].astype(np.float32)
    for codec in some_codecs(64) + some_codecs(512):
        with np.errstate(over="ignore"):  # the residual of the oracle, which nobody asked for
            assert_variants_agree_with_the_oracle(x, codec)
        decoded = tg.decompress(tg.compress(x, codec))
        assert np.isfinite(decoded).all()
        if not x.any():
            assert_same_bits(decoded, np.zeros_like(x))


@given(
    bits=st.sampled_from([*EVERY_BITS, 0.1, 0.97]),
    log2=st.integers(6, 9),
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**32 - 1),
    exponents=st.lists(st.integers(-149, 127), min_size=1, max_size=1200),
)
def test_any_input_agrees_with_the_oracle(
    bits: float, log2: int, seed: int, step: int, exponents: list[int]
) -> None:
    n = len(exponents)
    x = np.float32(2.0) ** np.array(exponents, np.float32)
    x *= np.where(np.random.default_rng(n).random(n) < 0.5, np.float32(-1), np.float32(1.75))
    codec = tg.Rotated(bits, block=1 << log2, seed=seed, scale="mmse" if n % 2 else "unbiased")
    assert_variants_agree_with_the_oracle(x, codec, step=step)


def test_seed_and_step_change_the_rotation_and_travel() -> None:
    x = normal(5000)
    payloads = [
        tg.compress(x, tg.Rotated(bits, seed=seed), step=step)
        for bits in (2, 0.5)
        for seed, step in ((0, 0), (0, 1), (1, 0), (2**32, 0))
    ]
    assert len({bytes(payload.body) for payload in payloads}) == len(payloads)
    for payload in payloads:
        again = tg.Payload.from_bytes(bytes(payload))
        assert again.step == payload.step
        assert again.codec == payload.codec
        assert_same_bits(tg.decompress(again), tg.decompress(payload))


@pytest.mark.parametrize("bits", [0.1, 0.3, 0.9999])
@pytest.mark.parametrize("block", [64, 4096, 65536])
def test_a_fraction_of_a_bit_reads_back_as_the_share_that_was_sent(bits: float, block: int) -> None:
    payload = tg.compress(normal(100), tg.Rotated(bits, block=block))
    again = tg.Payload.from_bytes(bytes(payload)).codec
    assert isinstance(again, tg.Rotated)
    assert 0 <= again.bits - bits < 1 / block or again.bits == 1 - 1 / block
    assert again._params() == payload.codec._params()


def test_messages_carry_seed_and_step() -> None:
    tensors = [normal(5000), normal(33, seed=1)]
    for bits in (3, 0.25):
        message = tg.compress_many(tensors, tg.Rotated(bits, seed=4), step=77)
        for x, decoded in zip(tensors, tg.decompress_many(bytes(message)), strict=True):
            expected = tg.decompress(tg.compress(x, tg.Rotated(bits, seed=4), step=77))
            assert_same_bits(decoded, expected)


def test_a_federated_round_averages_clients_with_their_own_seeds() -> None:
    x = {"w": normal(4096 * 3 + 5)}
    server = tg.federated.Server(tg.federated.Layout.of(x))
    for seed in range(8):
        client = tg.federated.Client(tg.Rotated(2, seed=seed), error_feedback=False)
        server.add(client.encode(x, step=3))
    assert nmse(x["w"], server.mean()["w"]) < 0.134 / 8 * 1.1


def test_error_feedback_with_the_least_error_sends_everything_in_the_end() -> None:
    x, total = normal(10_000), np.zeros(10_000, np.float32)
    feedback = tg.ErrorFeedback(tg.Rotated(1, scale="mmse"))
    for step in range(1, 101):
        tg.decompress(feedback.compress(x, key="w"), out=total, accumulate=True)
        if step == 10:
            early = nmse(10 * x, total)
    assert nmse(100 * x, total) < early / 20


def test_zstd_takes_rotated_codes() -> None:
    pytest.importorskip("zstandard")
    x = normal(10_000)
    payload = tg.compress(x, tg.Zstd(tg.Rotated(4)), step=5)
    expected = tg.decompress(tg.compress(x, tg.Rotated(4), step=5))
    assert_same_bits(tg.decompress(bytes(payload)), expected)


# --- What strangers send. ---


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_codes_under_any_scale_decode_to_finite_values(variant: str) -> None:
    for codec in some_codecs(256):
        for n in (256, 512 + 8, 1024 + 128):  # whose codes fill whole bytes
            size, rows = codec.body_size(n), math.ceil(n / 256)
            for scale in (np.finfo(np.float32).max, np.float32(1e-45), np.float32(1)):
                for byte in (0, 255):  # all the same code: the largest sums
                    body = np.full(size, byte, np.uint8)
                    body[: 4 * rows] = np.full(rows, scale).view(np.uint8)
                    body[-1] = 0  # where there may be padding
                    out = np.full(n, 7, np.float32)
                    with kernels(variant):
                        decode_into(body, codec, out)
                    assert np.isfinite(out).all()


def forged(payload: tg.Payload, at: int, form: str, *values: object) -> bytes:
    raw = bytearray(bytes(payload))
    struct.pack_into("<" + form, raw, at, *values)
    return ref.seal(bytes(raw))


def test_forged_parameters_and_bodies_are_refused() -> None:
    payload = tg.compress(normal(4097), tg.Rotated(3, seed=1), step=2)
    body = 48
    for at, form, value in [
        (8, "B", 0),
        (8, "B", 5),
        (8, "B", 8),
        (9, "B", 5),
        (9, "B", 17),
        (9, "B", 255),
        (10, "H", 4096),
        (10, "H", 1024),  # a share of 3-bit codes
        (24, "B", 1),
        (27, "B", 1),
        (body, "f", -1.0),
        (body, "I", 0x80000000),
        (body + 4, "f", math.inf),
        (body + 4, "f", math.nan),
        (body + len(bytes(payload)) - 49, "B", 0x08),  # one code of three bits fills the last byte
    ]:
        raw = forged(payload, at, form, value)
        with pytest.raises(tg.PayloadError):
            tg.decompress(raw)
        with pytest.raises(ref.RefusedError):
            ref.decompress(raw)
    share = tg.compress(normal(4096), tg.Rotated(0.25))
    for value in (0, 1, 409, 4096):
        with pytest.raises(tg.PayloadError):
            tg.decompress(forged(share, 10, "H", value))


def test_rotated_is_no_value_codec() -> None:
    with pytest.raises(tg.CodecError, match="Rotated"):
        tg.TopK(0.1, values=tg.Rotated())
    payload = tg.compress(normal(100), tg.TopK(k=10, values=tg.Sign()))
    with pytest.raises(tg.PayloadError, match="value codec"):
        tg.decompress(forged(payload, 16, "B", 10))


@pytest.mark.parametrize("bits", [0, 5, 8, True, 1.0, 0.05, 2.5, "4", None, math.nan])
def test_senseless_bits_are_refused(bits: object) -> None:
    with pytest.raises(tg.CodecError, match="bits must be"):
        tg.Rotated(bits)  # type: ignore[arg-type]


@pytest.mark.parametrize("block", [0, 32, 100, 4095, 131072, 64.0, True])
def test_senseless_blocks_are_refused(block: object) -> None:
    with pytest.raises(tg.CodecError, match="power of two"):
        tg.Rotated(4, block=block)  # type: ignore[arg-type]


def test_a_scale_that_is_unknown_is_refused() -> None:
    with pytest.raises(tg.CodecError, match="unbiased"):
        tg.Rotated(4, scale="best")  # type: ignore[arg-type]


def test_torch_tensors_of_any_dtype_come_back() -> None:
    for dtype in ("float32", "float16", "bfloat16"):
        x = as_torch(ref.store(normal(9000), dtype))
        restored = tg.decompress(tg.compress(x, tg.Rotated(4)))
        assert restored.dtype == x.dtype
        assert float((restored.float() - x.float()).norm() / x.float().norm()) < 0.1
