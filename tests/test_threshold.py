"""Laws of `Threshold`: what is sent, how near the share is, and what its bodies may not say."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from arrays import DTYPES, VARIANTS, as_torch, assert_same_bits, gradient, kernels
from reference_threshold import exp_of, log_of, pareto_excess

import tersegrad as tg
from tersegrad import _core

FORMS = ("auto", "elias-fano", "bitmap", "u16", "rice")


def sent(x: np.ndarray, codec: tg.Threshold) -> int:
    return int(np.asarray(tg.compress(x, codec).body)[:4].view("<u4")[0])


def shapes_of_gradients(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    normal = rng.standard_normal(n)
    return {
        "gaussian": normal,
        "laplace": rng.laplace(size=n),
        "gaussian x uniform^3": normal * rng.random(n) ** 3,
        "uniform": rng.random(n),
        "student t 3": rng.standard_t(3, n),
        "one in fifty": normal * (rng.random(n) < 0.02),
    }


@pytest.mark.parametrize("density", [0.1, 0.01, 0.001])
def test_the_share_that_is_sent_is_near_the_density(density: float) -> None:
    for name, x in shapes_of_gradients(300_000).items():
        if name == "one in fifty" and density > 0.02:
            continue
        for scale in (1.0, 1e-6, 1e4):
            share = sent((x * scale).astype(np.float32), tg.Threshold(density=density)) / x.size
            assert 15 / 16 <= share / density <= 17 / 16, (name, scale, share)


def test_equal_entries_and_zeros_end_the_search() -> None:
    x = np.ones(5000, np.float32)
    assert sent(x, tg.Threshold(density=0.01)) == 5000  # all or none
    assert sent(0 * x, tg.Threshold(density=0.01)) == 0
    x[:100] = 2
    assert sent(x, tg.Threshold(density=0.02)) == 100
    x[100:] = 0
    assert sent(x, tg.Threshold(density=0.5)) == 100  # zeros are never sent
    assert sent(x, tg.Threshold(density=1.0)) == 100
    assert sent(np.float32([3.0]), tg.Threshold(density=0.1)) == 1


def test_magnitudes_at_the_ends_of_the_range_are_searched_alike() -> None:
    rng = np.random.default_rng(2)
    for scale in (2.0**126, 2.0**-140, 2.0**70, 2.0**-80):
        x = (rng.laplace(size=50_000) * 0.1 * scale).astype(np.float32)
        codec = tg.Threshold(density=0.01)
        expected = ref.compress(x, codec)[0]
        for variant in VARIANTS:
            with kernels(variant, 2):
                assert bytes(tg.compress(x, codec)) == expected
        assert 100 <= sent(x, codec) <= 5000


def test_a_fixed_threshold_sends_what_reaches_it() -> None:
    x = np.array([0.5, -0.5, np.nextafter(np.float32(0.5), 0), -0.0, 2.0, -3e38], np.float32)
    for value, indices in ((0.5, [0, 1, 4, 5]), (0, range(6)), (3.4e38, []), (2.0, [4, 5])):
        expected = np.zeros(6, np.float32)
        expected[list(indices)] = x[list(indices)]
        payload = tg.compress(x, tg.Threshold(value=value))
        assert_same_bits(tg.decompress(bytes(payload)), expected)
        assert sent(x, tg.Threshold(value=value)) == len(list(indices))


def test_every_form_and_count_gives_the_bytes_of_the_oracle() -> None:
    for dtype in DTYPES:
        x = ref.store(gradient(3000), dtype)
        residual = gradient(3000, seed=5)
        for form in FORMS:
            for value in (0.0, 0.01, 0.5, 1.5, 3.0, 1e9):
                codec = tg.Threshold(value=value, indices=form)
                expected, lost = ref.compress(x, codec, residual, step=2)
                r = as_torch(residual)
                assert bytes(tg.compress(as_torch(x), codec, residual=r, step=2)) == expected
                assert_same_bits(r, lost)


def test_a_long_tensor_gives_the_bytes_of_the_oracle_for_any_number_of_threads() -> None:
    x, residual = gradient(700_001), gradient(700_001, seed=3)
    for codec in (tg.Threshold(density=0.01), tg.Threshold(value=0.7, values=tg.Quantize(bits=4))):
        expected, lost = ref.compress(x, codec, residual)
        for variant in VARIANTS:
            for threads in (1, 3):
                r = residual.copy()
                with kernels(variant, threads):
                    assert bytes(tg.compress(x, codec, residual=r)) == expected
                assert_same_bits(r, lost)


def test_the_largest_body_is_a_bound_for_any_number_of_entries() -> None:
    for form in ("elias-fano", "bitmap", "u16", "rice"):
        number = FORMS.index(form)
        for n in (*range(1, 70), 127, 1000, 4097):
            bound = tg.Threshold(value=1.0, indices=form).max_body_size(n) - 4 - 4 * n
            auto = tg.Threshold(value=1.0).max_body_size(n) - 4 - 4 * n
            for k in range(n + 1):
                assert _core.index_bytes(number, n, k) <= bound
                smallest = _core.smallest_index_form(n, k)
                assert _core.index_bytes(smallest, n, k) <= auto


def test_messages_and_clients_take_bodies_of_any_size() -> None:
    codecs = [tg.Threshold(value=1.0), tg.Threshold(density=0.1, indices="rice"), tg.Sign()]
    tensors = [gradient(500), gradient(900, seed=1), gradient(70, seed=2)]
    message = tg.compress_many(tensors, codecs)
    for x, codec, restored in zip(tensors, codecs, tg.decompress_many(bytes(message)), strict=True):
        assert_same_bits(restored, tg.decompress(tg.compress(x, codec)))
    model = {"a": gradient(500), "b": gradient(40)}
    update = tg.federated.Client(codecs[1], min_size=8).encode(model)
    server = tg.federated.Server(
        {name: np.zeros_like(x) for name, x in model.items()},
        limits=tg.federated.Limits(codecs=(tg.Threshold, tg.Identity)),
    )
    server.add(update, weight=1)
    assert_same_bits(server.mean()["a"], tg.decompress(tg.compress(model["a"], codecs[1])))


# --- What is refused. ---


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"value": 1.0, "density": 0.1}, {"value": -1.0}, {"value": math.nan}, {"value": math.inf}, {"value": "1"},
        {"density": 0.0}, {"density": 1.5}, {"value": 1.0, "indices": "huffman"},
        {"value": 1.0, "values": tg.TopK(k=1)},
    ],
)  # fmt: skip
def test_senseless_thresholds_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(tg.CodecError, match="Threshold: "):
        tg.Threshold(**fields)


def test_zstd_and_what_needs_a_size_refuse_it() -> None:
    with pytest.raises(tg.CodecError, match="Zstd"):
        tg.Zstd(tg.Threshold(value=1.0))
    with pytest.raises(tg.CodecError, match="TopK instead of Threshold"):
        tg.Threshold(value=1.0).body_size(10)


@pytest.mark.parametrize("form", FORMS)
def test_a_forged_count_or_stream_is_refused_before_anything_is_written(form: str) -> None:
    n = 400
    payload = tg.compress(gradient(n), tg.Threshold(value=1.0, indices=form))
    raw = bytes(payload)
    k = sent(gradient(n), payload.codec)
    forged = [
        raw[:48] + struct.pack("<I", count) + raw[52:]
        for count in (0, k - 1, k + 1, n, n + 1, 2**32 - 1)
    ]
    forged += [raw[:-1], raw + b"\0", raw[:48], raw[:51], raw[:52]]
    generator = np.random.default_rng(3)
    for _ in range(60):
        changed = bytearray(raw)
        changed[generator.integers(48, len(raw))] ^= 1 << generator.integers(0, 8)
        forged.append(bytes(changed))
    for each in forged:
        again = each[:28] + struct.pack("<Q", len(each) - 48) + each[36:]
        again = ref.seal(again)
        out = np.full(n, 7, np.float32)
        try:
            expected = ref.decompress(again)[0]
        except ref.RefusedError:
            with pytest.raises(tg.PayloadError):
                tg.decompress(again, out=out)
            assert (out == 7).all()
        else:
            tg.decompress(again, out=out)
            assert_same_bits(out, expected)


def test_forged_parameters_are_refused() -> None:
    raw = bytes(tg.compress(gradient(50), tg.Threshold(value=1.0)))
    for at, byte in ((8, 6), (9, 1), (12, 5), (12, 16), (12, 99), (16, 1), (27, 1)):
        with pytest.raises(tg.PayloadError):
            tg.decompress(ref.seal(raw[:at] + bytes([byte]) + raw[at + 1 :]))


# --- The numbers of the fit. ---


def test_the_logarithm_and_exponential_are_right_to_fifteen_digits() -> None:
    for x in (1.0, 1.5, 2.0, math.e, 100.0, 1e9, 2.0**32):
        assert log_of(x) == pytest.approx(math.log(x), rel=1e-15, abs=1e-16)
    for x in (-44.0, -1.0, -1e-9, 0.0, 0.3, 11.0):
        assert exp_of(x) == pytest.approx(math.exp(x), rel=3e-15)


def test_the_fit_is_exact_for_exponential_uniform_and_pareto_tails() -> None:
    assert pareto_excess(2.0, 4.0, 100.0) == pytest.approx(2 * math.log(100))
    assert pareto_excess(0.5, 1 / 12, 10.0) == pytest.approx(0.9)
    shape, scale = 0.25, 3.0
    mean, variance = scale / (1 - shape), scale**2 / ((1 - shape) ** 2 * (1 - 2 * shape))
    assert pareto_excess(mean, variance, 16.0) == pytest.approx(scale / shape * (16**shape - 1))
    assert torch.tensor(pareto_excess(1.0, 0.0, 4.0)).item() == pytest.approx(math.log(4))
