"""Codecs as values: parameters, errors, codecs from outside, what randomness promises."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from arrays import DTYPES, assert_same_bits, gradient, stored_of
from contract import CODECS, Grid, is_in_the_document

import tersegrad as tg

BAD = [
    (tg.Cast, {"dtype": "float64"}, "float64"),
    (tg.Cast, {"dtype": "int8"}, "int8"),
    (tg.Cast, {"dtype": 16}, "16"),
    (tg.Cast, {"dtype": None}, "None"),
    (tg.Quantize, {"bits": 3}, "3"),
    (tg.Quantize, {"bits": 16}, "16"),
    (tg.Quantize, {"bits": 0}, "0"),
    (tg.Quantize, {"bits": "8"}, "8"),
    (tg.Quantize, {"bits": 4.5}, "4.5"),
    (tg.Quantize, {"block_size": 100}, "100"),
    (tg.Quantize, {"block_size": 0}, "0"),
    (tg.Quantize, {"block_size": -64}, "-64"),
    (tg.Quantize, {"block_size": 65600}, "65600"),
    (tg.Quantize, {"block_size": 64.5}, "64.5"),
    (tg.Quantize, {"rounding": "up"}, "up"),
    (tg.Quantize, {"seed": -1}, "-1"),
    (tg.Quantize, {"seed": 2**64}, str(2**64)),
    (tg.Quantize, {"seed": 1.5}, "1.5"),
    (tg.Sign, {"block_size": 65}, "65"),
    (tg.Sign, {"block_size": 0}, "0"),
    (tg.Sign, {"block_size": 2**17}, str(2**17)),
    (tg.Ternary, {"block_size": 65}, "65"),
    (tg.Ternary, {"threshold": -0.5}, "-0.5"),
    (tg.Ternary, {"threshold": 9.0}, "9.0"),
    (tg.Ternary, {"threshold": math.nan}, "nan"),
    (tg.Ternary, {"threshold": "0.7"}, "0.7"),
    (tg.Integers, {}, "None"),
    (tg.Integers, {"scale": 0.0}, "0.0"),
    (tg.Integers, {"scale": 1.0, "bits": 4}, "4"),
    (tg.TopK, {}, "density"),
    (tg.TopK, {"density": 0.1, "k": 3}, "3"),
    (tg.TopK, {"density": 0.0}, "0"),
    (tg.TopK, {"density": -0.1}, "-0.1"),
    (tg.TopK, {"density": 1.5}, "1.5"),
    (tg.TopK, {"density": math.nan}, "nan"),
    (tg.TopK, {"density": math.inf}, "inf"),
    (tg.TopK, {"density": "0.1"}, "0.1"),
    (tg.TopK, {"k": 0}, "0"),
    (tg.TopK, {"k": -4}, "-4"),
    (tg.TopK, {"k": 2.5}, "2.5"),
    (tg.TopK, {"k": 2**32}, str(2**32)),
    (tg.TopK, {"k": 3, "indices": "huffman"}, "huffman"),
    (tg.TopK, {"k": 3, "indices": 1}, "1"),
    (tg.TopK, {"k": 3, "values": "quantize"}, "quantize"),
    (tg.TopK, {"k": 3, "values": tg.TopK(k=17)}, "17"),
    (tg.TopK, {"k": 3, "values": tg.RandomK(k=17)}, "17"),
    (tg.TopK, {"k": 3, "values": tg.ChunkTopK(k=17)}, "17"),
    (tg.TopK, {"k": 3, "values": tg.Quantize}, "Quantize"),
    (tg.ChunkTopK, {"k": 0}, "0"),
    (tg.ChunkTopK, {"k": -1}, "-1"),
    (tg.ChunkTopK, {"chunk": 0}, "0"),
    (tg.ChunkTopK, {"chunk": 65537}, "65537"),
    (tg.ChunkTopK, {"indices": "rle"}, "rle"),
    (tg.ChunkTopK, {"values": 8}, "8"),
    (tg.RandomK, {}, "density"),
    (tg.RandomK, {"density": 0.1, "k": 3}, "3"),
    (tg.RandomK, {"density": 2.0}, "2.0"),
    (tg.RandomK, {"k": 0}, "0"),
    (tg.RandomK, {"k": 3, "seed": -7}, "-7"),
    (tg.RandomK, {"k": 3, "seed": 2**64}, str(2**64)),
    (tg.RandomK, {"k": 3, "values": tg.RandomK(k=17)}, "17"),
]


@pytest.mark.parametrize(("codec", "fields", "shown"), BAD, ids=lambda part: str(part)[:40])
def test_a_bad_parameter_is_a_codec_error_that_shows_it(
    codec: Any, fields: dict[str, Any], shown: str
) -> None:
    with pytest.raises(tg.CodecError) as caught:
        codec(**fields)
    assert shown in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("codec", [None, "topk", tg.TopK, {"codec": "topk"}, 8], ids=repr)
def test_compress_needs_a_codec(codec: Any) -> None:
    with pytest.raises((tg.CodecError, tg.InputError, TypeError)):
        tg.compress(torch.ones(3), codec)


@pytest.mark.parametrize("plain", [{}, None, 3, {"codec": "nope"}, {"k": 3}, [], "topk"], ids=repr)
def test_a_dict_that_names_no_codec_is_a_codec_error(plain: Any) -> None:
    with pytest.raises(tg.CodecError):
        tg.Codec.from_dict(plain)


def test_a_dict_with_a_bad_or_unknown_field_is_a_codec_error_that_shows_it() -> None:
    good = tg.Quantize(bits=4).to_dict()
    assert tg.Codec.from_dict(good) == tg.Quantize(bits=4)
    for field, value in (("bits", 5), ("colour", "red")):
        with pytest.raises(tg.CodecError, match=str(value) if field == "bits" else field):
            tg.Codec.from_dict({**good, field: value})


@pytest.mark.parametrize("step", [-1, 1.5, "1", None])
def test_a_step_that_is_no_count_is_refused(step: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        tg.compress(torch.ones(3), tg.Sign(), step=step)


def test_a_step_beyond_32_bits_wraps() -> None:
    codec = tg.RandomK(k=3)
    for step in (0, 5):
        expected = bytes(tg.compress(torch.ones(30), codec, step=step))
        assert bytes(tg.compress(torch.ones(30), codec, step=step + 2**32)) == expected


def test_body_size_of_an_unknown_dtype_is_refused() -> None:
    with pytest.raises((ValueError, KeyError), match="float64"):
        tg.Identity().body_size(10, "float64")


def test_numpy_integers_are_integers_or_refused() -> None:
    for make in (lambda: tg.TopK(k=np.int64(3)), lambda: tg.Quantize(bits=np.int32(4))):
        try:
            codec = make()
        except tg.CodecError as caught:
            assert "int" in str(caught)  # noqa: PT017
        else:
            json.dumps(codec.to_dict())


@pytest.mark.parametrize(
    ("density", "n", "k"),
    [(0.01, 10, 1), (0.5, 3, 2), (0.5, 5, 2), (1.0, 7, 7), (1e-9, 9, 1), (0.3, 0, 0)],
)
def test_k_of_a_density_is_rounded_and_at_least_one(density: float, n: int, k: int) -> None:
    for codec in (tg.TopK(density=density), tg.RandomK(density=density)):
        assert (
            codec.body_size(n)
            - (0 if isinstance(codec, tg.RandomK) else tg.TopK(k=k or 1).body_size(n) - 4 * k)
            == 4 * k
        )


def test_auto_indices_are_the_smallest_form() -> None:
    for n in (0, 1, 10, 1000, 65536, 65537, 1_000_000):
        for density in (0.0001, 0.001, 0.01, 0.1, 0.2, 0.25, 0.3, 0.5, 0.9, 1.0):
            sizes = [
                tg.TopK(density=density, indices=form).body_size(n)
                for form in ("elias-fano", "bitmap", "u16")
            ]
            assert tg.TopK(density=density).body_size(n) == min(sizes)
            assert sizes == [
                ref.body_size(tg.TopK(density=density, indices=f), n, "float32")
                for f in ("elias-fano", "bitmap", "u16")
            ]


def test_body_sizes_of_large_tensors_are_those_of_the_oracle() -> None:
    for codec in CODECS:
        if is_in_the_document(codec) and codec.is_fixed_size:
            for n in (25_557_032, 2**31, 2**32 - 1):
                for dtype in DTYPES:
                    assert codec.body_size(n, dtype) == ref.body_size(codec, n, dtype)


def test_four_bits_of_one_percent_cost_at_most_12_75_bits_per_kept_entry() -> None:
    n = 2**24
    codec = tg.TopK(density=0.01, values=tg.Quantize(bits=4))
    bits = 8 * (codec.body_size(n) + 48)
    assert bits / round(0.01 * n) <= 12.75


# --- Codecs from outside the package. ---


@dataclass(frozen=True)
class FirstOfBlock(tg.Codec, id=201):
    """A block of `width` entries travels as its first, a float32: parameters of four bytes."""

    width: int = 4

    def body_size(self, n: int, dtype: str = "float32") -> int:
        return 4 * math.ceil(n / self.width)

    def _encode(self, values: Any, body: Any, dtype: str, step: int) -> None:
        body[:] = np.ascontiguousarray(values[:: self.width]).view(np.uint8)

    def _decode(self, body: Any, values: Any, dtype: str, step: int) -> None:
        firsts = np.frombuffer(body.tobytes(), np.float32)
        if not np.isfinite(firsts).all():
            raise tg.PayloadError("FirstOfBlock: an entry is not finite")
        values[:] = firsts.repeat(self.width)[: len(values)]

    def _params(self) -> bytes:
        return self.width.to_bytes(4, "little")

    @classmethod
    def _from_params(cls, params: bytes) -> FirstOfBlock:
        width = int.from_bytes(params[:4], "little")
        if width < 1:
            raise tg.PayloadError(f"FirstOfBlock: width {width}")
        return cls(width)


@dataclass(frozen=True)
class StepCodec(tg.Codec, id=202):
    """Without parameters: shows the step and dtype it was called with."""

    def body_size(self, n: int, dtype: str = "float32") -> int:
        return 4

    def _encode(self, values: Any, body: Any, dtype: str, step: int) -> None:
        body[:] = np.frombuffer(np.uint32(step).tobytes(), np.uint8)

    def _decode(self, body: Any, values: Any, dtype: str, step: int) -> None:
        values[:] = float(np.frombuffer(body.tobytes(), np.uint32)[0])


def test_a_codec_from_outside_travels_as_bytes() -> None:
    for dtype in DTYPES:
        x = torch.arange(11, dtype=getattr(torch, dtype))
        payload = tg.compress(x, FirstOfBlock(width=3))
        raw = bytes(payload)
        assert raw[5] == 201
        assert raw[8:28] == bytes([3]) + bytes(19)
        assert tg.Payload.from_bytes(raw).codec == FirstOfBlock(width=3)
        assert tg.decompress(raw, kind="torch").tolist() == [0, 0, 0, 3, 3, 3, 6, 6, 6, 9, 9]


def test_a_codec_from_outside_is_found_by_its_dict() -> None:
    assert tg.Codec.from_dict(FirstOfBlock(width=9).to_dict()) == FirstOfBlock(width=9)


def test_a_codec_from_outside_keeps_the_residual_law_in_error_feedback() -> None:
    feedback = tg.ErrorFeedback(FirstOfBlock())
    residual = np.zeros(1001, np.float32)
    for step in range(5):
        x = gradient(1001, seed=step)
        decoded = tg.decompress(bytes(feedback.compress(x, key="w")))
        residual = (x + residual) - decoded
        assert_same_bits(feedback.residual("w"), residual)


def test_a_codec_from_outside_carries_the_values_of_a_sparse_codec() -> None:
    x = gradient(5000)
    for outer in (
        tg.TopK(density=0.1, values=Grid(unit=7)),
        tg.ChunkTopK(k=9, chunk=100, values=Grid()),
        tg.RandomK(density=0.1, values=Grid()),
    ):
        payload = tg.compress(x, outer)
        restored = tg.decompress(bytes(payload))
        assert tg.Payload.from_bytes(bytes(payload)).codec.values == outer.values
        plain = tg.decompress(tg.compress(x, replace(outer, values=None)))
        support = np.flatnonzero(plain)
        expected = np.zeros_like(x)
        unit = np.float32(outer.values.unit)
        expected[support] = np.clip(np.rint(x[support] * unit), -127, 127).astype(np.float32) / unit
        assert np.array_equal(restored, expected)


def test_a_codec_whose_parameters_do_not_fit_a_value_word_is_no_value_codec() -> None:
    with pytest.raises(tg.CodecError, match="FirstOfBlock"):
        tg.TopK(k=3, values=FirstOfBlock())


def test_a_codec_from_outside_is_told_step_and_dtype() -> None:
    restored = tg.decompress(tg.compress(torch.ones(3), StepCodec(), step=77))
    assert restored.tolist() == [77, 77, 77]


def test_a_forged_parameter_of_a_codec_from_outside_is_a_payload_error() -> None:
    raw = bytes(tg.compress(gradient(11), FirstOfBlock(width=3)))
    with pytest.raises(tg.PayloadError):
        tg.decompress(ref.seal(raw[:8] + bytes(4) + raw[12:]))
    with pytest.raises(tg.PayloadError):
        tg.decompress(ref.seal(raw[:27] + b"\x01" + raw[28:]))
    raw = bytes(tg.compress(gradient(11), StepCodec()))
    with pytest.raises(tg.PayloadError):
        tg.decompress(ref.seal(raw[:8] + b"\x01" + raw[9:]))


@pytest.mark.parametrize("number", [0, 1, 7, 127, 200, 255, 256, -1, "x"])
def test_an_id_that_is_taken_or_reserved_cannot_be_registered(number: Any) -> None:
    with pytest.raises((tg.CodecError, TypeError), match=str(number)):

        class Intruder(tg.Codec, id=number):
            pass

    assert tg.Codec.from_dict(Grid().to_dict()) == Grid()


def test_decoded_values_from_outside_that_are_not_finite_never_reach_out() -> None:
    raw = bytes(tg.compress(gradient(11), FirstOfBlock(width=3)))
    forged = ref.seal(raw[:-4] + np.float32(np.nan).tobytes())
    out = np.full(11, 7, np.float32)
    with pytest.raises(tg.PayloadError):
        tg.decompress(forged, out=out)
    assert (out == 7).all()


# --- What randomness promises. ---


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_stochastic_rounding_is_unbiased(bits: int) -> None:
    """The mean error lies within four standard errors, plus the 2^-17 of 16-bit noise."""
    n = 200_000
    largest = 2 ** (bits - 1) - 1
    for fraction in (0.1, 0.5, 0.9):
        x = np.full(n, -(largest - 1 + fraction), np.float32)
        x[::256] = (
            largest  # every block has scale 1, so entries lie between two codes by `fraction`
        )
        decoded = tg.decompress(
            tg.compress(x, tg.Quantize(bits=bits, rounding="stochastic", seed=bits))
        )
        inner = np.ones(n, bool)
        inner[::256] = False
        error = (decoded[inner].astype(np.float64) - x[inner]).mean()
        standard_error = math.sqrt(fraction * (1 - fraction) / inner.sum())
        assert abs(error) <= 4 * standard_error + 2.0**-17
        assert set(np.unique(decoded[inner])) == {-largest, -(largest - 1.0)}


def test_stochastic_rounding_errors_of_neighbours_are_uncorrelated() -> None:
    n = 128 * 1000
    x = np.full(n, 0.5, np.float32)
    x[::128] = 1.0
    up = (
        tg.decompress(tg.compress(x, tg.Quantize(bits=2, block_size=128, rounding="stochastic")))
        > 0
    ).reshape(-1, 128)
    noise = up[:, 1:].astype(np.float64) - 0.5
    correlation = 4 * noise.T @ noise / len(noise)
    np.fill_diagonal(correlation, 0)
    # 127 * 126 / 2 pairs of standard error 1 / sqrt(1000): chance puts one in 1000 runs past 5.5.
    assert np.abs(correlation).max() <= 5.5 / math.sqrt(len(noise))


def test_another_seed_or_step_rounds_differently() -> None:
    x = gradient(10_000)
    codecs = [
        tg.Quantize(bits=4, rounding="stochastic", seed=seed) for seed in (0, 1, 2**32, 2**63)
    ]
    assert (
        len({bytes(tg.compress(x, codec, step=step)) for codec in codecs for step in (0, 1)}) == 8
    )


def test_every_entry_is_drawn_with_probability_k_over_n() -> None:
    n, k, trials = 60, 12, 3000
    x = np.ones(n, np.float32)
    codec = tg.RandomK(k=k, seed=11)
    hits = np.zeros(n)
    for step in range(trials):
        mask = tg.decompress(tg.compress(x, codec, step=step))
        assert mask.sum() == k
        hits += mask
    standard_error = math.sqrt(trials * (k / n) * (1 - k / n))
    assert np.abs(hits - trials * k / n).max() <= 4 * standard_error


def test_entries_of_uneven_strata_are_drawn_with_probability_k_over_n() -> None:
    """Strata of 2 and 3 entries: the probability is one over the length of the stratum."""
    n, k, trials = 23, 9, 3000
    codec = tg.RandomK(k=k, seed=5)
    hits = np.zeros(n)
    for step in range(trials):
        hits += tg.decompress(tg.compress(np.ones(n, np.float32), codec, step=step))
    for j in range(k):
        start, end = j * n // k, (j + 1) * n // k
        p = 1 / (end - start)
        assert np.abs(hits[start:end] - trials * p).max() <= 4 * math.sqrt(trials * p * (1 - p))


def test_random_masks_need_no_input() -> None:
    """Two workers with one seed and step draw the same entries whatever their gradients are."""
    codec = tg.RandomK(density=0.05, seed=9)
    supports = {
        np.flatnonzero(
            stored_of(
                tg.decompress(
                    tg.compress(gradient(10_000, seed=worker) + np.float32(10), codec, step=4)
                )
            )
        ).tobytes()
        for worker in range(3)
    }
    assert len(supports) == 1
