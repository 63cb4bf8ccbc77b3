"""Small floats and QSGD: every float8, edges against the oracle, and codecs that claim no bias have none."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
from arrays import VARIANTS, as_torch, assert_same_bits, gradient, kernels
from devices import on
from reference_smallfloat import NF4_LEVELS, decode_small

import tersegrad as tg

CODECS = [
    tg.Natural(block_size=64, rounding="nearest"),
    tg.Natural(block_size=64, seed=1),
    tg.Float8(block_size=64),
    tg.Float8(format="e5m2", block_size=64, rounding="stochastic"),
    tg.NF4(),
    tg.Quantize(bits=4, block_size=64, scale="l2", rounding="stochastic"),
    tg.Quantize(bits=2, scale="l2"),
]
EDGES = {
    "zeros": np.zeros(65, np.float32),
    "denormals": (np.arange(-70, 70) * 2.0**-149).astype(np.float32),
    "largest": np.array([3.4028235e38, -3.4028235e38, 1e38, 2.0**-126] * 20, np.float32),
    "all magnitudes": np.ldexp(gradient(276, seed=2) + 2, np.arange(-149, 127)).astype(np.float32),
    "small beside large": np.array([448, *(np.arange(60) * 2.0**-11), 2.0**-9], np.float32),
    "ordinary": gradient(1001, seed=3).astype(np.float32),
}


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_edges_are_those_of_the_oracle(codec: tg.Codec) -> None:
    for name, x in EDGES.items():
        expected, _ = ref.compress(x, codec, step=5)
        decoded = ref.decompress(expected)[0]
        for variant in VARIANTS:
            with kernels(variant):
                assert bytes(tg.compress(x, codec, step=5)) == expected, (name, variant)
                assert_same_bits(tg.decompress(expected, kind="numpy"), decoded, name)
        with on("emulated") as place:
            assert bytes(tg.compress(as_torch(x), codec, step=5)) == expected, name
            assert_same_bits(tg.decompress(expected, kind=place), decoded, name)


@pytest.mark.parametrize(("name", "largest"), [("e4m3", 0x7E), ("e5m2", 0x7B)])
def test_every_float8_decodes_to_itself_and_back(name: str, largest: int) -> None:
    codec = tg.Float8(format=name)  # type: ignore[arg-type]
    codes = np.array([c for c in range(256) if c & 127 <= largest], np.uint8)
    values = decode_small(codec, np.float32(1), codes.tobytes(), codes.size)
    assert values[np.argmax(codes == largest)] == {"e4m3": 448, "e5m2": 57344}[name]
    payload = tg.compress(values, codec)  # the largest is there, so the scale is one
    assert np.asarray(payload.body)[4:].tobytes() == codes.tobytes()
    assert_same_bits(tg.decompress(payload), values)


def test_the_levels_of_nf4_decode_to_themselves() -> None:
    assert np.array_equal(tg.decompress(tg.compress(NF4_LEVELS, tg.NF4())), NF4_LEVELS)


def test_natural_gives_powers_of_two_next_to_the_entry() -> None:
    x = gradient(5000, seed=4).astype(np.float32)
    for rounding in ("nearest", "stochastic"):
        codec = tg.Natural(rounding=rounding)  # type: ignore[arg-type]
        restored = tg.decompress(tg.compress(x, codec))
        assert np.array_equal(np.abs(np.frexp(restored)[0]), np.full(x.size, 0.5, np.float32))
        assert np.all((np.abs(restored) <= 2 * np.abs(x)) & (2 * np.abs(restored) >= np.abs(x)))


@pytest.mark.parametrize("kind", ["Natural", "Float8", "Float8 e5m2", "Quantize", "l2"])
def test_stochastic_rounding_has_no_bias_over_ten_thousand_seeds(kind: str) -> None:
    x = gradient(320, seed=6).astype(np.float32)
    x[:5] = [0, 1e-6, -1e-4, 0.7, -0.013]
    make = {
        "Natural": lambda seed: tg.Natural(seed=seed),
        "Float8": lambda seed: tg.Float8(rounding="stochastic", seed=seed),
        "Float8 e5m2": lambda seed: tg.Float8(format="e5m2", rounding="stochastic", seed=seed),
        "Quantize": lambda seed: tg.Quantize(bits=4, rounding="stochastic", seed=seed),
        "l2": lambda seed: tg.Quantize(bits=4, rounding="stochastic", seed=seed, scale="l2"),
    }[kind]
    total, squares, count = np.zeros(x.size), np.zeros(x.size), 10_000
    for seed in range(count):
        error = (tg.decompress(tg.compress(x, make(seed))) - x).astype(np.float64)
        total += error
        squares += error * error
    # Of the whole error, along a fixed direction and summed up: independent draws, so variances add.
    for weight in (np.ones(x.size), np.sign(x), x.astype(np.float64)):
        deviation = np.sqrt((weight**2 * squares).sum() * count) / count
        assert abs((weight * total).sum()) / count < 4 * deviation / np.sqrt(count)
