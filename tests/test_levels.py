"""Values on fitted levels: every grid and width against the oracle, and what they are for."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
from arrays import VARIANTS, as_torch, assert_same_bits, gradient, kernels
from devices import on

import tersegrad as tg

GRIDS = ("auto", "uniform", "square", "logarithmic")
EDGES = {
    "one": np.array([3.7], np.float32),
    "equal": np.full(130, -0.3, np.float32),
    "zeros": np.zeros(65, np.float32),
    "with zeros": np.where(np.arange(200) % 3 == 0, 0, gradient(200, seed=1)).astype(np.float32),
    "denormals": (np.arange(-70, 70) * 2.0**-149).astype(np.float32),
    "largest": np.array([3.4028235e38, -3.4028235e38, 3.39e38, 1e38] * 20, np.float32),
    "all magnitudes": np.ldexp(gradient(276, seed=2) + 2, np.arange(-149, 127)).astype(np.float32),
    "close": (1 + np.arange(128) * 2.0**-23).astype(np.float32),
    "survivors": (np.sign(gradient(1000, seed=3)) * (1 + gradient(1000, seed=4) ** 2)).astype("f4"),
}  # fmt: skip


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("grid", GRIDS)
def test_every_width_and_grid_is_that_of_the_oracle(bits: int, grid: str) -> None:
    codec = tg.Magnitudes(bits=bits, block_size=64, grid=grid)
    for name, x in EDGES.items():
        expected, _ = ref.compress(x, codec)
        decoded = ref.decompress(expected)[0]
        for variant in VARIANTS:
            with kernels(variant):
                assert bytes(tg.compress(x, codec)) == expected, (name, variant)
                assert_same_bits(tg.decompress(expected, kind="numpy"), decoded, name)
        with on("emulated") as place:
            assert bytes(tg.compress(as_torch(x), codec)) == expected, name
            assert_same_bits(tg.decompress(expected, kind=place), decoded, name)


def test_zeros_among_the_values_stay_zeros() -> None:
    x = EDGES["with zeros"]
    for bits in range(2, 9):
        restored = tg.decompress(tg.compress(x, tg.Magnitudes(bits=bits)))
        assert not restored[x == 0].any()


def test_a_block_of_one_bfloat16_magnitude_is_exact() -> None:
    x = np.where(np.arange(100) % 7 < 3, -1.5, 1.5).astype(np.float32)
    assert np.array_equal(tg.decompress(tg.compress(x, tg.Magnitudes(bits=2))), x)


def test_a_number_of_bits_stands_for_magnitudes() -> None:
    for codec in (tg.TopK(k=3, values=5), tg.ChunkTopK(values=5), tg.RandomK(k=3, values=5)):
        assert codec.values == tg.Magnitudes(bits=5)
        assert tg.Codec.from_dict(codec.to_dict() | {"values": 5}) == codec
    with pytest.raises(tg.CodecError, match="True"):
        tg.TopK(k=3, values=True)


def lost(x: np.ndarray, codec: tg.Codec) -> float:
    error = x - tg.decompress(tg.compress(x, codec))
    return float(np.sum(error.astype(np.float64) ** 2))


@pytest.mark.parametrize("tail", [2, 3])
def test_survivors_lose_less_than_half_of_what_a_symmetric_grid_loses(tail: int) -> None:
    x = (gradient(400_000, seed=5) ** tail).astype(np.float32)
    survivors = x[np.abs(x) >= np.sort(np.abs(x))[-4000]]
    plain, fitted = tg.Quantize(bits=4), tg.Magnitudes(bits=4)
    assert fitted.body_size(4000) == plain.body_size(4000)
    assert 2 * lost(survivors, fitted) < lost(survivors, plain)


@pytest.mark.parametrize(
    ("word", "match"),
    [(0x3F803F81, "out of order"), (0x7F800000, "infinite"), (0xBF80BF80, "spacing")],
)
def test_bounds_that_no_encoder_writes_are_refused(word: int, match: str) -> None:
    raw = bytearray(bytes(tg.compress(np.ones(64, np.float32), tg.Magnitudes())))
    raw[48:52] = word.to_bytes(4, "little")
    with pytest.raises(tg.PayloadError, match=match):
        tg.decompress(ref.seal(bytes(raw)))
