"""Laws of `tg.add`: payloads are summed without decoding, and the sum is the one that decoding gives."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from arrays import DTYPES, VARIANTS, as_torch, assert_same_bits, gradient, kernels, stored_of
from contract import CODECS, name_of
from devices import DEVICES, on

import tersegrad as tg
from tersegrad.device.message import DeviceMessage
from tersegrad.device.payload import DevicePayload

SIXTEEN = range(16)
GRIDS = [
    tg.Integers(bits=8, scale=0.25, addends=16),
    tg.Integers(bits=16, clip=5.0, addends=16, rounding="stochastic"),
    tg.Integers(bits=32, scale=2.0**-20, addends=16),
]


def codes_of(payload: tg.Payload, bits: int) -> np.ndarray:
    return np.asarray(payload.body).view(f"<i{bits // 8}").astype(np.int64)


def test_the_sum_of_sixteen_payloads_is_decode_then_add_in_integers() -> None:
    for codec, dtype in itertools.product(GRIDS, DTYPES):
        payloads = [
            tg.compress(as_torch(ref.store(gradient(20_011, seed=s), dtype)), codec, step=s)
            for s in SIXTEEN
        ]
        total = tg.add(payloads)
        sums = sum(codes_of(payload, codec.bits) for payload in payloads)
        assert np.array_equal(codes_of(total, codec.bits), sums)
        expected = ref.saturate(sums.astype(np.float32) * np.float32(codec.unit), dtype)
        assert_same_bits(ref.widen(stored_of(tg.decompress(total)), dtype), expected)
        assert bytes(tg.add([bytes(p) for p in reversed(payloads)])) == bytes(total)


def test_with_a_power_of_two_decoding_before_or_after_the_sum_gives_the_same_bits() -> None:
    codec = tg.Integers(bits=16, scale=2.0**-8, addends=16)
    payloads = [tg.compress(gradient(5000, seed=s), codec) for s in SIXTEEN]
    added = np.zeros(5000, np.float32)
    for payload in payloads:
        tg.decompress(payload, out=added, accumulate=True)
    assert_same_bits(tg.decompress(tg.add(payloads)), added)


def test_a_mask_of_one_seed_and_step_adds_with_integers_and_floats_as_values() -> None:
    for values in (None, tg.Cast("bfloat16"), tg.Integers(bits=16, scale=2.0**-7, addends=16)):
        codec = tg.RandomK(density=0.05, seed=3, values=values)
        payloads = [tg.compress(gradient(7000, seed=s), codec, step=4) for s in SIXTEEN]
        added = np.zeros(7000, np.float32)
        for payload in payloads:
            tg.decompress(payload, out=added, accumulate=True)
        if isinstance(values, tg.Cast):
            added = ref.saturate(added, "bfloat16")
        total = tg.add(payloads)
        assert_same_bits(tg.decompress(bytes(total)), added)
        assert total.nbytes == payloads[0].nbytes


def test_floats_add_in_order_and_round_once() -> None:
    for dtype in DTYPES:
        parts = [ref.store(gradient(999, seed=s) * np.float32(100), dtype) for s in range(5)]
        for codec in (tg.Identity(), tg.Cast("float16"), tg.Cast("bfloat16"), tg.Cast("float32")):
            wire = codec.dtype if isinstance(codec, tg.Cast) else dtype
            sums = np.zeros(999, np.float32)
            for number, part in enumerate(parts):
                value = ref.saturate(ref.widen(part, dtype), wire)
                sums = sums + value if number else value
            expected = ref.saturate(ref.saturate(sums, wire), dtype)
            total = tg.add([tg.compress(as_torch(part), codec) for part in parts])
            assert_same_bits(ref.widen(stored_of(tg.decompress(total)), dtype), expected)


def test_a_sum_of_floats_beyond_their_range_saturates() -> None:
    payload = tg.compress(np.full(3, 3e38, np.float32), tg.Identity())
    assert tg.decompress(tg.add([payload, payload])).tolist() == [np.finfo(np.float32).max] * 3
    one = tg.compress(np.array([-0.0, 1.0], np.float32), tg.Identity())
    assert bytes(tg.add([one])) == bytes(one)


def test_messages_add_tensor_by_tensor() -> None:
    codecs = [tg.Integers(bits=16, scale=2.0**-9), tg.RandomK(k=9), tg.Cast()]
    shapes = [(30, 7), (100,), (5,)]
    messages = [
        tg.compress_many(
            [gradient(int(np.prod(s)), seed=9 * m + i).reshape(s) for i, s in enumerate(shapes)],
            codecs,
            step=2,
        )
        for m in range(3)
    ]
    total = tg.add(messages)
    assert bytes(tg.add([bytes(message) for message in messages])) == bytes(total)
    restored = tg.decompress_many(total)
    for position, shape in enumerate(shapes):
        parts = [
            tg.Payload(m.codecs[position], "float32", shape, m.bodies()[position], "numpy", 2)
            for m in messages
        ]
        assert_same_bits(restored[position], tg.decompress(tg.add(parts)))
    assert len(tg.add([tg.compress_many([], codecs[0])])) == 0


def test_the_examples_of_the_document_run() -> None:
    text = (Path(__file__).parent.parent / "docs" / "sums.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert len(blocks) == 2
    exec("\n".join(blocks), {})


def test_empty_and_single_entries_add() -> None:
    for n in (0, 1):
        for codec in (*GRIDS, tg.Identity(), tg.RandomK(density=0.5)):
            payload = tg.compress(np.ones(n, np.float32), codec)
            assert tg.decompress(tg.add([payload] * 3)).shape == (n,)


# --- What does not add. ---


@pytest.mark.parametrize("codec", [c for c in CODECS if not c.is_additive], ids=name_of)
def test_a_codec_that_does_not_add_says_what_does(codec: tg.Codec) -> None:
    payload = tg.compress(gradient(300), codec)
    with pytest.raises(tg.CodecError, match="Integers"):
        tg.add([payload, payload])
    with pytest.raises(tg.CodecError, match="does not add"):
        codec._sum_bodies([], "float32", False)


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        (tg.Integers(8, 0.5), tg.Integers(8, 0.25), "scale 0.25 is not 0.5"),
        (tg.Integers(8, 0.5), tg.Integers(16, 0.5), "bits 16 is not 8"),
        (tg.Integers(8, 0.5), tg.Identity(), "Identity is not Integers"),
        (tg.RandomK(k=9, seed=1), tg.RandomK(k=9, seed=2), "seed 2 is not 1"),
        (tg.RandomK(k=9), tg.RandomK(k=8), "k 8 is not 9"),
        (tg.RandomK(k=9), tg.RandomK(k=9, values=tg.Cast()), "values Cast"),
        (tg.Cast("float16"), tg.Cast("bfloat16"), "dtype 'bfloat16' is not 'float16'"),
    ],
)
def test_a_difference_is_named(first: tg.Codec, second: tg.Codec, named: str) -> None:
    x = gradient(50)
    with pytest.raises(tg.CodecError, match=named):
        tg.add([tg.compress(x, first), tg.compress(x, second)])
    with pytest.raises(tg.CodecError, match=named):
        tg.add([tg.compress_many([x], first), tg.compress_many([x], second)])


def test_other_steps_shapes_dtypes_and_kinds_are_refused() -> None:
    x, codec = gradient(50), tg.RandomK(k=9)
    payload = tg.compress(x, codec, step=3)
    with pytest.raises(tg.CodecError, match="step 4 is not 3"):
        tg.add([payload, tg.compress(x, codec, step=4)])
    others: list[Any] = [
        tg.compress(x.reshape(5, 10), codec, step=3),
        tg.compress(x.astype(np.float16), codec, step=3),
        tg.compress_many([x], codec, step=3),
    ]
    for other in others:
        with pytest.raises(tg.InputError, match=r"payload 1 holds|number 1"):
            tg.add([payload, other])
    with pytest.raises(tg.InputError, match="2 tensors"):
        tg.add([tg.compress_many([x], codec), tg.compress_many([x, x], codec)])
    with pytest.raises(tg.InputError, match="at least one"):
        tg.add([])
    with pytest.raises(tg.PayloadError):
        tg.add([b"TGRD"])


def test_rounding_seed_and_addends_do_not_keep_integers_from_adding() -> None:
    codecs = [
        tg.Integers(16, 0.5, addends=3, rounding="stochastic", seed=1),
        tg.Integers(16, 0.5, seed=2),
    ]
    tg.add([tg.compress(gradient(50), codec) for codec in codecs])


def test_a_stranger_s_values_are_checked_before_they_are_added() -> None:
    honest = tg.compress(np.ones(4, np.float32), tg.Identity())
    body = np.full(4, np.nan, np.float32).view(np.uint8)
    forged = tg.Payload(tg.Identity(), "float32", (4,), body, "numpy")
    with pytest.raises(tg.PayloadError, match="payload 1"):
        tg.add([honest, forged])


def test_a_sum_beyond_the_bits_is_an_error_that_says_what_to_choose() -> None:
    for bits in (8, 16, 32):
        codec = tg.Integers(bits=bits, scale=1.0)
        x = np.array([1.0, -2.0 * codec.limit], np.float32)
        payload = tg.compress(x, codec)
        with pytest.raises(tg.InputError, match=r"at entry 1 .* Integers\(addends=2\)"):
            tg.add([payload, payload])
        wrapped = codes_of(tg.add([payload, payload], wrap=True), bits)
        assert wrapped.tolist() == [2, (-2 * codec.limit) % 2**bits]


def test_the_stated_number_of_addends_always_fits() -> None:
    for bits, addends in ((8, 1), (8, 3), (8, 127), (16, 16), (16, 32767), (32, 1000), (32, 2**24)):
        codec = tg.Integers(bits=bits, scale=2.0**-3, addends=addends)
        assert 1 <= codec.limit * addends <= 2 ** (bits - 1) - 1
        for rounding in ("nearest", "stochastic"):
            payload = tg.compress(
                np.array([1e30, -1e30, 0.0], np.float32),
                tg.Integers(bits, 2.0**-3, addends=addends, rounding=rounding),
            )
            assert codes_of(payload, bits).tolist() == [codec.limit, -codec.limit, 0]


def test_masks_that_cancel_hide_each_payload_and_leave_the_sum() -> None:
    codec = tg.Integers(bits=32, clip=8.0, addends=3)
    payloads = [tg.compress(gradient(1000, seed=s), codec) for s in range(3)]
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 2**32, 1000, dtype=np.uint32) for _ in range(2)]
    masks.append(-(masks[0] + masks[1]))
    hidden = [
        tg.add([p, tg.Payload(codec, "float32", (1000,), mask.view(np.uint8), "numpy")], wrap=True)
        for p, mask in zip(payloads, masks, strict=True)
    ]
    assert bytes(tg.add(hidden, wrap=True)) == bytes(tg.add(payloads))


# --- On a device, where nothing waits. ---


def whatever_adds(addends: int) -> list[tg.Codec]:
    return [
        tg.Integers(bits=8, scale=0.25, addends=addends),
        tg.Integers(bits=16, clip=5.0, addends=addends, rounding="stochastic"),
        tg.Integers(bits=32, scale=2.0**-20, addends=addends),
        tg.Identity(),
        tg.Cast("bfloat16"),
        tg.RandomK(density=0.2, seed=3),
        tg.RandomK(density=0.2, values=tg.Integers(bits=16, scale=0.25, addends=addends)),
    ]


@pytest.mark.parametrize("device", DEVICES)
def test_sums_on_a_device_are_those_of_the_host_and_stay_there(device: str) -> None:
    for n, dtype, count in ((1003, "float32", 3), (5, "float16", 33), (300, "bfloat16", 16)):
        xs = [ref.store(gradient(n, seed=s), dtype) for s in range(count)]
        codecs = whatever_adds(count)
        for codec in codecs:
            expected = bytes(tg.add([tg.compress(as_torch(x), codec, step=2) for x in xs]))
            with on(device):
                total = tg.add([tg.compress(as_torch(x), codec, step=2) for x in xs])
                assert isinstance(total, DevicePayload)
                assert bytes(total) == expected
                assert_same_bits(tg.decompress(total), tg.decompress(expected))
        many = [tg.compress_many([as_torch(x)] * len(codecs), codecs, step=2) for x in xs]
        expected = bytes(tg.add(many))
        with on(device):
            many = [tg.compress_many([as_torch(x)] * len(codecs), codecs, step=2) for x in xs]
            assert isinstance(tg.add(many), DeviceMessage)
            assert bytes(tg.add(many)) == expected


@pytest.mark.parametrize("device", DEVICES)
def test_payloads_on_a_device_and_on_the_host_add_on_the_host(device: str) -> None:
    x, codec = gradient(100), tg.Integers(bits=16, clip=8.0, addends=2)
    one = tg.compress(x, codec)
    with on(device):
        total = tg.add([tg.compress(as_torch(x), codec), one])
    assert type(total) is tg.Payload
    assert bytes(total) == bytes(tg.add([one, one]))


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_wrong_with_a_sum_on_a_device_is_told_when_it_is_looked_at(device: str) -> None:
    codec = tg.Integers(bits=8, scale=1.0)
    good, large = gradient(50), np.full(50, -100, np.float32)
    bad = np.full(50, np.nan, np.float32)
    with on(device):
        kept, beyond, broken = (tg.compress(as_torch(x), codec) for x in (good, large, bad))
        skipped = tg.compress(as_torch(bad), codec, nonfinite="skip")
        for sources, error, match in (
            ([beyond, beyond], tg.InputError, "beyond their bits"),
            ([kept, broken], tg.NonFiniteError, "infinity"),
        ):
            total = tg.add(sources)
            assert not tg.decompress(total).any()
            with pytest.raises(error, match=match):
                total.check()
            with pytest.raises(error, match=match):  # and a sum of it is no better
                bytes(tg.add([total, kept]))
        assert bytes(tg.add([kept, skipped])) == bytes(kept)
        assert codes_of(tg.add([beyond, beyond], wrap=True).on_host(), 8).tolist() == [56] * 50
        message = tg.compress_many([as_torch(good), as_torch(large)], codec)
        with pytest.raises(tg.InputError, match="tensor 1 is a sum"):
            bytes(tg.add([message, message]))
        with pytest.raises(tg.CodecError, match="scale"):
            tg.add([kept, tg.compress(as_torch(good), tg.Integers(bits=8, scale=2.0))])


# --- Integers. ---


def test_what_the_limit_cuts_off_goes_into_the_residual() -> None:
    codec = tg.Integers(bits=8, scale=0.5, addends=2)
    x = np.array([100.0, -100.0, 31.5, 0.3], np.float32)
    assert codec.limit == 63
    assert codec.count_cut(x) == 2
    assert codec.count_cut(x, np.array([0, 0, 0.1, 0], np.float32)) == 3
    residual = np.zeros(4, np.float32)
    tg.compress(x, codec, residual=residual)
    assert_same_bits(residual, np.array([68.5, -68.5, 0.0, x[3] - np.float32(0.5)], np.float32))


def test_clip_gives_the_least_scale_that_cuts_nothing() -> None:
    for clip in (1.0, 0.1, 3.7, 1e-20, 12345.6):
        for bits, addends in ((8, 1), (16, 10), (32, 7)):
            codec = tg.Integers(bits=bits, clip=clip, addends=addends)
            assert codec.unit * codec.limit >= clip
            assert codec.unit * codec.limit <= clip * (1 + 2**-7)
            assert codec.count_cut(np.array([clip, -clip], np.float32)) == 0


def test_a_scale_is_rounded_to_what_travels() -> None:
    codec = tg.Integers(scale=1e-3)
    assert codec.scale == codec.unit == float(torch.tensor(1e-3).bfloat16())
    assert tg.Integers(scale=2.0**-30).scale == 2.0**-30
    raw = bytes(tg.compress(gradient(9), codec))
    assert tg.Payload.from_bytes(raw).codec == codec


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"scale": 1.0, "clip": 1.0}, {"scale": 0.0}, {"scale": -1.0}, {"clip": float("nan")},
        {"scale": float("inf")}, {"scale": 1e-35}, {"scale": "1"}, {"clip": 1e38, "bits": 8, "addends": 127},
        {"scale": 1.0, "bits": 4}, {"scale": 1.0, "addends": 0}, {"scale": 1.0, "bits": 8, "addends": 128},
        {"scale": 1.0, "rounding": "up"}, {"scale": 1.0, "seed": -1},
    ],
)  # fmt: skip
def test_senseless_integers_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(tg.CodecError, match="Integers: "):
        tg.Integers(**fields)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_the_mean_over_ten_thousand_seeds_is_the_value(bits: int) -> None:
    x = (np.linspace(-3, 3, 61) + 0.013).astype(np.float32)
    total = np.zeros(61)
    for seed in range(10_000):
        codec = tg.Integers(bits=bits, scale=0.5, rounding="stochastic", seed=seed)
        total += codes_of(tg.compress(x, codec), bits)
    share = x.astype(np.float64) / 0.5 % 1
    errors = np.sqrt(share * (1 - share) / 10_000) + 2.0**-17  # noise has 16 bits
    assert np.abs((total / 10_000 - x / 0.5) / errors).max() < 4


def test_extreme_entries_give_the_bytes_of_the_oracle_in_every_variant() -> None:
    tiny = np.float32(2.0**-149)
    edges = np.array(
        [0.0, -0.0, tiny, -tiny, 0.5, -0.5, 1.5, 2.5, -2.5, 127.5, -128.5, 32767.5, 8388607.5, 3e9,
         2147483520.0, -2147483648.0, 3.4e38, -3.4e38, 0.49999997, -0.49999997, 2.0**-126],
        np.float32,
    )  # fmt: skip
    x = np.concatenate([np.roll(edges, shift) for shift in range(21)])
    for bits, scale in itertools.product((8, 16, 32), (1.0, 2.0**-100, 2.0**100, 2.0**-16)):
        for rounding in ("nearest", "stochastic"):
            codec = tg.Integers(bits=bits, scale=scale, rounding=rounding)
            expected, lost = ref.compress(x, codec, np.zeros_like(x), step=7)
            for variant in VARIANTS:
                residual = np.zeros_like(x)
                with kernels(variant):
                    assert bytes(tg.compress(x, codec, residual=residual, step=7)) == expected
                assert_same_bits(residual, lost)
            with on("emulated"):
                kept = as_torch(np.zeros_like(x))
                payload = tg.compress(as_torch(x), codec, residual=kept, step=7)
                assert bytes(payload) == expected
            assert_same_bits(kept, lost)
