"""The laws every codec obeys. A new codec joins by one line in CODECS.

A law is a function of one codec; test_contract.py runs each law on each codec.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, dataclass, fields
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from arrays import (
    DTYPES,
    KINDS,
    VARIANTS,
    as_kind,
    as_numpy,
    as_torch,
    assert_same_bits,
    bits_of,
    dtype_name,
    gradient,
    kernels,
    mixture,
    stored_of,
)

import tersegrad as tg


@dataclass(frozen=True)
class Grid(tg.Codec, id=200):
    """A codec written outside the package: multiples of 1/unit, one byte each."""

    unit: int = 3

    def body_size(self, n: int, dtype: str = "float32") -> int:
        return n

    def _encode(self, values: Any, body: Any, dtype: str, step: int) -> None:
        codes = np.clip(np.rint(values * np.float32(self.unit)), -127, 127)
        body[:] = codes.astype(np.int8).view(np.uint8)

    def _decode(self, body: Any, values: Any, dtype: str, step: int) -> None:
        values[:] = body.view(np.int8).astype(np.float32) / np.float32(self.unit)

    def _params(self) -> bytes:
        return bytes([self.unit])

    @classmethod
    def _from_params(cls, params: bytes) -> Grid:
        return cls(unit=params[0])


CODECS: list[tg.Codec] = [
    tg.Identity(),
    tg.Cast(dtype="float16"),
    tg.Cast(dtype="bfloat16"),
    tg.Cast(dtype="float32"),
    tg.Quantize(bits=8),
    tg.Quantize(bits=4, block_size=64),
    tg.Quantize(bits=2, block_size=1024),
    tg.Quantize(bits=8, rounding="stochastic", seed=2**64 - 1),
    tg.Quantize(bits=4, block_size=320, rounding="stochastic", seed=7),
    tg.Sign(),
    tg.Sign(block_size=64),
    tg.TopK(density=0.01),
    tg.TopK(k=5, values=tg.Quantize(bits=4), indices="elias-fano"),
    tg.TopK(density=0.3, values=tg.Cast(dtype="float16"), indices="bitmap"),
    tg.TopK(density=0.05, values=tg.Sign(block_size=64), indices="u16"),
    tg.TopK(density=1.0, values=tg.Quantize(bits=2, block_size=64, rounding="stochastic", seed=3)),
    tg.ChunkTopK(),
    tg.ChunkTopK(k=3, chunk=50, values=tg.Quantize(bits=8, block_size=64)),
    tg.ChunkTopK(k=1, chunk=1, values=tg.Identity(), indices="u16"),
    tg.RandomK(density=0.02, seed=5),
    tg.RandomK(k=40, seed=2**63, values=tg.Quantize(bits=4)),
    Grid(),
    tg.TopK(density=0.1, values=Grid(unit=7)),
    tg.Ternary(),
    tg.Ternary(block_size=64, threshold=0.7),
    tg.Integers(bits=8, scale=2.0**-6),
    tg.Integers(bits=16, clip=3.0, addends=16, rounding="stochastic", seed=5),
    tg.Integers(bits=32, scale=1e-7, rounding="stochastic"),
    tg.RandomK(density=0.1, values=tg.Integers(bits=16, clip=4.0, addends=3)),
    tg.Threshold(value=0.5),
    tg.Threshold(value=1e9, values=tg.Quantize(bits=4)),
    tg.Threshold(density=0.02, values=tg.Quantize(bits=8, block_size=64), indices="elias-fano"),
    tg.Threshold(density=0.3, indices="rice"),
    tg.TopK(density=0.01, indices="rice"),
    tg.TopK(density=0.3, values=tg.Ternary(block_size=128), indices="rice"),
    tg.ChunkTopK(k=3, chunk=50, values=tg.Quantize(bits=4), indices="rice"),
    tg.TopK(density=0.1, values=Grid(unit=7), indices="rice"),
    tg.Rotated(),
    tg.Rotated(3, block=64, scale="mmse", seed=2**64 - 1),
    tg.Rotated(0.25, block=1024, seed=6),
]
if importlib.util.find_spec("zstandard"):  # an extra
    CODECS += [
        tg.Zstd(tg.Quantize(bits=4, block_size=64)),
        tg.Zstd(tg.TopK(density=0.1, values=tg.Quantize(bits=4), indices="rice"), level=3),
    ]

SHAPES = [(), (0,), (3, 0), (1,), (7,), (64,), (5, 13), (256,), (257,), (4, 1025), (20_011,)]


def name_of(codec: tg.Codec) -> str:
    return repr(codec).replace(" ", "").replace("'", "")


def is_in_the_document(codec: tg.Codec) -> bool:
    nested = getattr(codec, "values", None)
    return type(codec).__name__ in ref.CODEC_IDS and not isinstance(nested, Grid)


def inputs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """An input and a residual (float32) for each dtype and shape."""
    for dtype in DTYPES:
        for shape in SHAPES:
            n = int(np.prod(shape))
            yield ref.store(mixture(n), dtype).reshape(shape), gradient(n, seed=9).reshape(shape)


def some_inputs(*shapes: tuple[int, ...]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return (pair for pair in inputs() if pair[0].shape in shapes)


# --- Sizes and bytes. ---


def assert_size(codec: tg.Codec, n: int, dtype: str, body_bytes: int) -> None:
    """The size that the codec promises: exact, or where it says that it cannot, a bound."""
    most = codec.max_body_size(n, dtype)
    if codec.is_fixed_size:
        assert body_bytes == most == codec.body_size(n, dtype)
        return
    assert body_bytes <= most
    with pytest.raises(tg.CodecError, match="different sizes"):
        codec.body_size(n, dtype)


def body_size_is_exact_or_bounded(codec: tg.Codec) -> None:
    for x, _ in inputs():
        payload = tg.compress(as_torch(x), codec)
        assert_size(codec, x.size, ref.dtype_of(x), payload.body.nbytes)
        assert payload.nbytes == len(bytes(payload)) == 40 + 8 * x.ndim + payload.body.nbytes
        assert payload.ratio == x.nbytes / payload.nbytes


def payload_says_what_it_is(codec: tg.Codec) -> None:
    for x, _ in inputs():
        for kind in KINDS:
            payload = tg.compress(as_kind(x, kind), codec, step=6)
            assert (payload.dtype, tuple(payload.shape), payload.step) == (
                ref.dtype_of(x),
                x.shape,
                6,
            )
            assert payload.codec == codec
            assert payload.skipped is False
            assert type(payload.body) is type(as_kind(x, kind))


def bytes_are_those_of_the_oracle(codec: tg.Codec) -> None:
    if not is_in_the_document(codec):
        return
    for x, residual in inputs():
        expected, expected_residual = ref.compress(x, codec, residual, step=11)
        r = as_torch(residual)
        assert bytes(tg.compress(as_torch(x), codec, residual=r, step=11)) == expected, x.shape
        assert_same_bits(r, expected_residual)


def bytes_round_trip(codec: tg.Codec) -> None:
    for x, _ in inputs():
        payload = tg.compress(as_torch(x), codec, step=1)
        raw = bytes(payload)
        again = tg.Payload.from_bytes(raw)
        assert bytes(again) == raw
        assert (again.dtype, tuple(again.shape), again.nbytes) == (
            payload.dtype,
            x.shape,
            payload.nbytes,
        )
        assert_size(again.codec, x.size, again.dtype, payload.body.nbytes)
        assert bytes(tg.Payload.from_bytes(raw, expect=as_torch(x))) == raw


def bytes_decode_to_the_bits_of_the_payload(codec: tg.Codec) -> None:
    for x, _ in inputs():
        payload = tg.compress(as_torch(x), codec, step=2)
        raw = bytes(payload)
        expected = tg.decompress(payload)
        assert isinstance(expected, torch.Tensor)
        sources: list[Any] = [
            raw,
            bytearray(raw),
            memoryview(raw),
            np.frombuffer(raw, np.uint8),
            torch.frombuffer(bytearray(raw), dtype=torch.uint8),
            tg.Payload.from_bytes(raw),
        ]
        for source in sources:
            assert_same_bits(tg.decompress(source), expected, type(source).__name__)
        for kind in KINDS:
            if kind == "torch" or not isinstance(as_numpy(x), torch.Tensor):
                restored = tg.decompress(raw, kind=kind)
                assert isinstance(restored, torch.Tensor) == (kind == "torch")
                assert_same_bits(restored, expected, kind)


def restored_has_the_kind_dtype_and_shape_of_the_input(codec: tg.Codec) -> None:
    for x, _ in inputs():
        for kind in KINDS:
            given = as_kind(x, kind)
            restored = tg.decompress(tg.compress(given, codec))
            assert type(restored) is type(given)
            assert restored.dtype == given.dtype
            assert tuple(restored.shape) == x.shape


def torch_and_numpy_give_the_same_bytes(codec: tg.Codec) -> None:
    for x, residual in inputs():
        answers = []
        for kind in KINDS:
            given = as_kind(x, kind)
            r = residual.copy() if isinstance(given, np.ndarray) else as_torch(residual)
            payload = tg.compress(given, codec, residual=r, step=3)
            answers.append(
                (bytes(payload), bits_of(r).tobytes(), bits_of(tg.decompress(payload)).tobytes())
            )
        assert answers[0] == answers[1]


def strided_input_gives_the_bytes_of_its_copy(codec: tg.Codec) -> None:
    wide = mixture(2 * 30 * 41).reshape(30, 82)
    for dtype in DTYPES:
        x = as_torch(ref.store(wide, dtype))
        for view in (x[:, ::2], x.t(), x[::3, 5:40], x[3]):
            expected = bytes(tg.compress(view.contiguous(), codec))
            assert bytes(tg.compress(view, codec)) == expected
            if dtype != "bfloat16":
                assert bytes(tg.compress(view.numpy(), codec)) == expected
    backwards = wide[::-1, ::-1]
    assert bytes(tg.compress(backwards, codec)) == bytes(tg.compress(backwards.copy(), codec))


# --- Residuals. ---


def residual_is_exactly_what_was_lost(codec: tg.Codec) -> None:
    for x, residual in inputs():
        for kind in KINDS:
            given = as_kind(x, kind)
            r = residual.copy() if isinstance(given, np.ndarray) else as_torch(residual)
            payload = tg.compress(given, codec, residual=r, step=5)
            decoded = stored_of(tg.decompress(payload))
            dtype = ref.dtype_of(x)
            lost = (ref.widen(x, dtype) + residual) - ref.widen(decoded, dtype)
            assert_same_bits(r, lost, f"{kind} {dtype} {x.shape}")


def compress_without_residual_is_compress_with_a_residual_of_zeros(codec: tg.Codec) -> None:
    for x, _ in inputs():
        if (
            ref.dtype_of(x) != "float32"
        ):  # -0 + 0 is +0, so the input must be free of negative zeros
            continue
        x = np.where(x == 0, np.float32(1), x)
        residual = np.zeros(x.shape, np.float32)
        assert bytes(tg.compress(x, codec, residual=residual)) == bytes(tg.compress(x, codec))


def input_is_not_written(codec: tg.Codec) -> None:
    for x, residual in some_inputs((257,), (4, 1025)):
        given = as_torch(x)
        tg.compress(given, codec, residual=as_torch(residual))
        assert_same_bits(given, x)


def non_finite_input_is_an_error_that_touches_nothing(codec: tg.Codec) -> None:
    for x, residual in some_inputs((1,), (257,), (20_011,)):
        for bad in (np.inf, -np.inf, np.nan):
            given = as_torch(x)
            given[..., x.shape[-1] // 2] = bad
            r = as_torch(residual)
            with pytest.raises(tg.NonFiniteError):
                tg.compress(given, codec, residual=r)
            assert_same_bits(r, residual)
            with pytest.raises(tg.NonFiniteError):
                tg.compress(given, codec)


def non_finite_residual_is_an_error_that_says_so(codec: tg.Codec) -> None:
    for x, residual in some_inputs((1,), (257,), (20_011,)):
        for bad in (np.inf, -np.inf, np.nan):
            for nonfinite in ("error", "skip"):
                r = as_torch(residual)
                r[-1] = bad
                with pytest.raises((tg.InputError, tg.NonFiniteError), match="residual"):
                    tg.compress(as_torch(x), codec, residual=r, nonfinite=nonfinite)


def skip_gives_zeros_and_leaves_the_residual(codec: tg.Codec) -> None:
    for x, residual in some_inputs((1,), (257,), (4, 1025)):
        given = as_torch(x)
        given[..., -1] = float("nan")
        r = as_torch(residual)
        payload = tg.compress(given, codec, residual=r, nonfinite="skip")
        assert payload.skipped is True
        assert_size(codec, x.size, ref.dtype_of(x), payload.body.nbytes)
        assert_same_bits(r, residual)
        for source in (payload, bytes(payload)):
            restored = tg.decompress(source)
            assert tuple(restored.shape) == x.shape
            assert not stored_of(restored).astype(np.float32).any()
        finite = tg.compress(as_torch(x), codec, nonfinite="skip")
        assert finite.skipped is False
        assert bytes(finite) == bytes(tg.compress(as_torch(x), codec))


# --- Determinism. ---


def every_variant_and_thread_count_gives_the_same_bits(codec: tg.Codec) -> None:
    for dtype in DTYPES:
        for n in (1000, 150_001):
            x, residual = ref.store(mixture(n), dtype), gradient(n, seed=4)
            answers = set()
            for variant in VARIANTS:
                for threads in (1, 2, 3):
                    with kernels(variant, threads):
                        r = as_torch(residual)
                        raw = bytes(tg.compress(as_torch(x), codec, residual=r, step=8))
                        total = as_torch(gradient(n, seed=5))
                        tg.decompress(raw, out=total, accumulate=True, scale=0.3)
                        restored = tg.decompress(raw)
                    answers.add(
                        (raw, *(bits_of(array).tobytes() for array in (r, total, restored)))
                    )
            assert len(answers) == 1, (dtype, n)


def the_same_call_gives_the_same_bytes(codec: tg.Codec) -> None:
    for x, residual in some_inputs((7,), (4, 1025)):
        first = bytes(tg.compress(as_torch(x), codec, residual=as_torch(residual), step=4))
        assert bytes(tg.compress(as_torch(x), codec, residual=as_torch(residual), step=4)) == first


# --- Decoding into an array. ---


def out_receives_what_decompress_returns(codec: tg.Codec) -> None:
    for x, _ in some_inputs((), (3, 0), (7,), (257,), (4, 1025)):
        dtype = ref.dtype_of(x)
        payload = tg.compress(as_torch(x), codec)
        decoded = ref.widen(stored_of(tg.decompress(payload)), dtype)
        for out_dtype in DTYPES:
            for kind in KINDS:
                out = as_kind(ref.store(np.full(x.shape, 7, np.float32), out_dtype), kind)
                returned = tg.decompress(bytes(payload), out=out)
                assert returned is out
                assert_same_bits(
                    out, ref.store(decoded, out_dtype), f"{dtype} into {out_dtype} {kind}"
                )


def accumulate_adds_scale_times_decoded(codec: tg.Codec) -> None:
    for x, _ in some_inputs((), (3, 0), (7,), (257,), (4, 1025)):
        dtype = ref.dtype_of(x)
        payload = tg.compress(as_torch(x), codec)
        decoded = ref.widen(stored_of(tg.decompress(payload)), dtype)
        for out_dtype in DTYPES:
            start = ref.store(
                gradient(x.size, seed=2).reshape(x.shape) + np.float32(0.125), out_dtype
            )
            for scale in (1.0, 0.3, -2.0, 0.0):
                out = as_torch(start)
                assert tg.decompress(payload, out=out, accumulate=True, scale=scale) is out
                expected = ref.accumulate(start, decoded, scale, out_dtype)
                assert_same_bits(out, expected, f"{dtype} into {out_dtype}, scale {scale}")


def scale_multiplies_what_is_decoded(codec: tg.Codec) -> None:
    for x, _ in some_inputs((), (257,), (4, 1025)):
        dtype = ref.dtype_of(x)
        payload = tg.compress(as_torch(x), codec)
        decoded = ref.widen(stored_of(tg.decompress(payload)), dtype)
        expected = np.float32(0.3) * decoded
        out = torch.full(x.shape, 7.0)
        tg.decompress(payload, out=out, scale=0.3)
        assert_same_bits(out, expected)
        assert_same_bits(tg.decompress(payload, scale=0.3), ref.store(expected, dtype))


def seam_for_adapters_writes_the_same_body(codec: tg.Codec) -> None:
    from tersegrad.codec import decode_into, encode_into

    if not codec.is_fixed_size:
        seam_for_adapters_refuses_to_encode_what_has_no_fixed_size(codec)
        return
    for x, residual in inputs():
        dtype = ref.dtype_of(x)
        payload_residual, r = as_torch(residual), as_torch(residual)
        payload = tg.compress(as_torch(x), codec, residual=payload_residual, step=12)
        body = torch.zeros(codec.body_size(x.size, dtype), dtype=torch.uint8)
        assert encode_into(as_torch(x), codec, body, residual=r, step=12) is True
        assert body.numpy().tobytes() == np.asarray(payload.body).tobytes()
        assert_same_bits(r, payload_residual)
        out = as_torch(x)
        out.fill_(3)
        decode_into(body, codec, out, step=12)
        assert_same_bits(out, tg.decompress(payload))
    if x.size:
        bad = torch.full((300,), float("inf"))
        body = torch.zeros(codec.body_size(300), dtype=torch.uint8)
        r = torch.ones(300)
        assert encode_into(bad, codec, body, residual=r) is False
        assert_same_bits(r, np.ones(300, np.float32))


def seam_for_adapters_refuses_to_encode_what_has_no_fixed_size(codec: tg.Codec) -> None:
    from tersegrad.codec import decode_into, encode_into

    for x, residual in some_inputs((7,), (4, 1025)):
        body = np.zeros(codec.max_body_size(x.size, ref.dtype_of(x)), np.uint8)
        r = as_torch(residual)
        with pytest.raises(tg.CodecError, match="'elias-fano'"):
            encode_into(as_torch(x), codec, body, residual=r)
        assert_same_bits(r, residual)
        payload = tg.compress(as_torch(x), codec)
        out = as_torch(x)
        decode_into(payload.body, codec, out)
        assert_same_bits(out, tg.decompress(payload))


# --- A codec is a value. ---


def codec_is_a_frozen_hashable_value(codec: tg.Codec) -> None:
    twin = copy.deepcopy(codec)
    assert twin == codec
    assert hash(twin) == hash(codec)
    assert pickle.loads(pickle.dumps(codec)) == codec
    for field in fields(codec):
        with pytest.raises(FrozenInstanceError):
            setattr(codec, field.name, None)


def repr_is_an_expression_for_the_codec(codec: tg.Codec) -> None:
    assert eval(repr(codec), {**vars(tg), "Grid": Grid}) == codec


def dict_form_survives_json(codec: tg.Codec) -> None:
    plain = json.loads(json.dumps(codec.to_dict()))
    assert plain == codec.to_dict()
    again = tg.Codec.from_dict(plain)
    assert type(again) is type(codec)
    assert again == codec


def dtype_is_told_by_name(codec: tg.Codec) -> None:
    assert codec.max_body_size(100) == codec.max_body_size(100, "float32")
    for x, _ in some_inputs((7,)):
        assert tg.compress(as_torch(x), codec).dtype == dtype_name(as_torch(x))


LAWS: list[Callable[[tg.Codec], None]] = [
    body_size_is_exact_or_bounded,
    payload_says_what_it_is,
    bytes_are_those_of_the_oracle,
    bytes_round_trip,
    bytes_decode_to_the_bits_of_the_payload,
    restored_has_the_kind_dtype_and_shape_of_the_input,
    torch_and_numpy_give_the_same_bytes,
    strided_input_gives_the_bytes_of_its_copy,
    residual_is_exactly_what_was_lost,
    compress_without_residual_is_compress_with_a_residual_of_zeros,
    input_is_not_written,
    non_finite_input_is_an_error_that_touches_nothing,
    non_finite_residual_is_an_error_that_says_so,
    skip_gives_zeros_and_leaves_the_residual,
    every_variant_and_thread_count_gives_the_same_bits,
    the_same_call_gives_the_same_bytes,
    out_receives_what_decompress_returns,
    accumulate_adds_scale_times_decoded,
    scale_multiplies_what_is_decoded,
    seam_for_adapters_writes_the_same_body,
    codec_is_a_frozen_hashable_value,
    repr_is_an_expression_for_the_codec,
    dict_form_survives_json,
    dtype_is_told_by_name,
]
