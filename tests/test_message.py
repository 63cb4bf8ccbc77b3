"""Many tensors in one message: the same bits as one by one, and the same refusals as a payload."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
import torch
from arrays import bits_of, gradient
from contract import CODECS, Grid, name_of
from hypothesis import given
from hypothesis import strategies as st

import tersegrad as tg
from tersegrad import _core

SHAPES = [(64,), (8, 3, 5, 5), (1000,), (33, 5), (), (0, 4), (70, 61), (1,)]


def tensors(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.Tensor]:
    flat = torch.from_numpy(
        gradient(sum(int(np.prod(s)) for s in SHAPES), seed=seed).astype(np.float32)
    )
    parts = flat.split([int(np.prod(s)) for s in SHAPES])
    return [part.reshape(shape).to(dtype) for part, shape in zip(parts, SHAPES, strict=True)]


def same(a: Any, b: Any) -> bool:
    return a.shape == b.shape and np.array_equal(bits_of(a), bits_of(b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("codec", CODECS, ids=name_of)
def test_a_message_holds_what_payloads_hold(codec: tg.Codec, dtype: torch.dtype) -> None:
    xs, kept = tensors(dtype), tensors(seed=1)
    alone = [r.clone() for r in kept]
    message = tg.compress_many(xs, codec, residuals=kept, step=7)
    raw = bytes(message)
    assert len(raw) == message.nbytes
    assert message.ratio == sum(x.nbytes for x in xs) / len(raw)
    for restored in (tg.decompress_many(message), tg.decompress_many(raw, kind="torch")):
        for x, y, r, r_alone, before in zip(
            xs, restored, kept, alone, tensors(seed=1), strict=True
        ):
            r_alone.copy_(before)
            payload = tg.compress(x, codec, residual=r_alone, step=7)
            assert y.dtype == dtype
            assert same(y, tg.decompress(payload))
            assert same(r, r_alone)


def test_every_tensor_may_have_its_own_codec() -> None:
    xs = tensors()
    codecs = [CODECS[i % len(CODECS)] for i in range(len(xs))]
    message = tg.compress_many(xs, codecs, step=3)
    again = tg.Message.from_bytes(bytes(message))
    assert [type(codec) for codec in again.codecs] == [type(codec) for codec in codecs]
    assert bytes(again) == bytes(message)
    for x, codec, y in zip(xs, codecs, tg.decompress_many(again, kind="torch"), strict=True):
        assert same(y, tg.decompress(tg.compress(x, codec, step=3)))


def test_equal_codecs_share_a_line_of_the_table() -> None:
    xs = tensors()
    one = tg.compress_many(xs, tg.Quantize(bits=4))
    many = tg.compress_many(xs, [tg.Quantize(bits=4) for _ in xs])
    assert bytes(one) == bytes(many)


def test_numpy_and_torch_give_the_same_bytes() -> None:
    codec = tg.TopK(density=0.1, values=tg.Quantize(bits=4))
    arrays = [x.numpy() for x in tensors()]
    message = tg.compress_many(arrays, codec)
    assert bytes(message) == bytes(tg.compress_many(tensors(), codec))
    assert all(isinstance(y, np.ndarray) for y in tg.decompress_many(message))
    with pytest.raises(tg.InputError, match="all torch"):
        tg.compress_many([arrays[0], tensors()[1]], codec)


def test_views_that_are_not_contiguous_are_compressed_as_they_read() -> None:
    x = torch.arange(12.0).reshape(3, 4)
    first, second = tg.decompress_many(tg.compress_many([x.t(), x[:, ::2]], tg.Identity()))
    assert torch.equal(first, x.t())
    assert torch.equal(second, x[:, ::2])


@pytest.mark.parametrize("table", [True, False], ids=["exchange table", "older torch"])
def test_every_kind_of_tensor_is_read_as_torch_reads_it(
    table: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not table:
        monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__", raising=False)
    x = torch.arange(1.0, 13.0)
    views = {
        "offset": x[3:7],
        "minus": torch.view_as_complex(x.reshape(6, 2)).conj().imag,  # torch negates when it reads
        "one column": x.reshape(12, 1)[:, :1],
        "channels last": x.reshape(1, 3, 2, 2).to(memory_format=torch.channels_last),
        "empty": x[:0].reshape(0, 5).t(),
        "parameter": torch.nn.Parameter(x),
        "number": x.sum(),
    }
    for name, tensor in views.items():
        (read,) = tg.decompress_many(tg.compress_many([tensor], tg.Identity()))
        assert torch.equal(read, tensor), name
    for odd in (x.to_sparse(), x.double(), x.to("meta"), x.reshape((1,) * 40 + (12,))):
        with pytest.raises(tg.InputError):
            tg.compress_many([x, odd], tg.Identity())
    for kept in (x.clone().requires_grad_(), x.double(), x.reshape(3, 4), x.numpy()):
        with pytest.raises(tg.InputError):
            tg.compress_many([x, x], tg.Sign(), residuals=[None, kept])


def test_no_tensors_are_a_message_too() -> None:
    message = tg.compress_many([], tg.Sign())
    assert tg.decompress_many(bytes(message)) == []


def test_decoding_accumulates_onto_out() -> None:
    xs = tensors()
    totals = [torch.full_like(x, 2.0) for x in xs]
    message = tg.compress_many(xs, tg.Identity())
    assert tg.decompress_many(bytes(message), out=totals, accumulate=True, scale=0.5) == totals
    for x, total in zip(xs, totals, strict=True):
        assert torch.equal(total, 2.0 + 0.5 * x)


# --- Inputs that are not finite. ---


@pytest.mark.parametrize("codec", [tg.TopK(density=0.1), tg.Quantize(bits=4), Grid()], ids=name_of)
def test_error_leaves_every_residual_as_it_was(codec: tg.Codec) -> None:
    xs, kept = tensors(), tensors(seed=1)
    xs[6][1, 1] = float("nan")
    with pytest.raises(tg.NonFiniteError, match=r"\[6\]"):
        tg.compress_many(xs, codec, residuals=kept)
    for r, before in zip(kept, tensors(seed=1), strict=True):
        assert same(r, before)


@pytest.mark.parametrize("codec", [tg.TopK(density=0.1), tg.Quantize(bits=4), Grid()], ids=name_of)
def test_skip_sends_zeros_for_the_offending_tensor_alone(codec: tg.Codec) -> None:
    xs, kept, alone = tensors(), tensors(seed=1), tensors(seed=1)
    xs[2][5] = float("inf")
    message = tg.compress_many(xs, codec, residuals=kept, nonfinite="skip")
    assert message.skipped == (2,)
    for position, y in enumerate(tg.decompress_many(bytes(message), kind="torch")):
        if position == 2:
            assert not y.any()
            assert same(kept[2], alone[2])
        else:
            payload = tg.compress(xs[position], codec, residual=alone[position])
            assert same(y, tg.decompress(payload))
            assert same(kept[position], alone[position])


def test_reset_zeroes_the_residual_of_the_offending_tensor() -> None:
    xs, kept = tensors(), tensors(seed=1)
    xs[2][5] = float("inf")
    with pytest.raises(tg.NonFiniteError, match="set to zero"):
        tg.compress_many(xs, tg.TopK(density=0.1), residuals=kept, nonfinite="reset")
    assert not kept[2].any()
    assert kept[6].any()


@pytest.mark.parametrize(
    "arguments",
    [
        {"residuals": [None]},
        {"residuals": [torch.zeros(3)] * len(SHAPES)},
        {"residuals": [x.half() for x in tensors()]},
        {"codec": [tg.Sign()]},
        {"nonfinite": "ignore"},
        {"step": -1},
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any]) -> None:
    codec = arguments.pop("codec", tg.Sign()) if "codec" in arguments else tg.Sign()
    with pytest.raises(tg.InputError):
        tg.compress_many(tensors(), codec, **arguments)


def test_a_codec_must_be_a_codec() -> None:
    with pytest.raises(tg.CodecError):
        tg.compress_many(tensors(), ["sign"] * len(SHAPES))  # type: ignore[list-item]


# --- Hostile messages. ---

CODEC_TABLE = 28
TENSOR_TABLE = CODEC_TABLE + 28


def small() -> bytes:
    xs = [torch.tensor([1.0, -4.0, 2.0, 0.5]), torch.tensor([[3.0, 1.0], [0.0, 9.0]])]
    return bytes(tg.compress_many(xs, tg.TopK(k=2, indices="elias-fano"), step=1))


def sealed(raw: bytearray) -> bytes:
    """With the checksum an attacker would compute."""
    raw[24:28] = struct.pack("<I", _core.crc32c(bytes(raw[28:]), _core.crc32c(bytes(raw[:24]))))
    return bytes(raw)


def assert_refused(raw: bytes) -> None:
    out = [torch.full((4,), 7.0), torch.full((2, 2), 7.0)]
    with pytest.raises(tg.PayloadError):
        tg.decompress_many(raw, out=out)
    assert all((o == 7.0).all() for o in out)
    with pytest.raises(tg.PayloadError):
        tg.decompress_many(raw)


def test_the_small_message_is_good() -> None:
    first, second = tg.decompress_many(small())
    assert first.tolist() == [0, -4, 2, 0]
    assert second.tolist() == [[3, 0], [0, 9]]


def test_every_truncation_is_refused() -> None:
    raw = small()
    for length in range(len(raw)):
        assert_refused(raw[:length])
        if length >= CODEC_TABLE:
            assert_refused(sealed(bytearray(raw[:length])))


def test_every_extension_is_refused() -> None:
    raw = small()
    assert_refused(raw + b"\0")
    assert_refused(sealed(bytearray(raw + b"\0")))


def test_every_flipped_bit_is_refused() -> None:
    raw = small()
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        assert_refused(bytes(flipped))


@pytest.mark.parametrize(
    ("offset", "replacement"),
    [
        (0, b"TGRD"),
        (4, b"\x02"),
        (5, b"\x00"),
        (5, b"\x02"),
        (6, b"\x01"),
        (8, struct.pack("<I", 1)),
        (8, struct.pack("<I", 2**32 - 1)),
        (16, struct.pack("<Q", 2**63)),
        (CODEC_TABLE, b"\x00"),
        (CODEC_TABLE, b"\xc7"),
        (CODEC_TABLE + 1, b"\x01"),
        (CODEC_TABLE + 4, struct.pack("<d", float("nan"))),
        (CODEC_TABLE + 4, struct.pack("<d", 2.0)),
        (CODEC_TABLE + 12, struct.pack("<I", 3)),
        (CODEC_TABLE + 16, b"\x07"),
        (CODEC_TABLE + 27, b"\x01"),
        (TENSOR_TABLE, b"\x01"),
        (TENSOR_TABLE + 1, b"\x00"),
        (TENSOR_TABLE + 2, b"\x21"),
        (TENSOR_TABLE + 3, b"\x01"),
        (TENSOR_TABLE + 4, struct.pack("<I", 2**32 - 1)),
    ],
)
def test_forged_fields_are_refused(offset: int, replacement: bytes) -> None:
    raw = bytearray(small())
    raw[offset : offset + len(replacement)] = replacement
    assert_refused(sealed(raw))


@given(data=st.data())
def test_forged_messages_are_refused_or_decode_whole(data: st.DataObject) -> None:
    raw = bytearray(small())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        restored = tg.decompress_many(sealed(raw))
    except tg.PayloadError:
        return
    assert all(torch.isfinite(torch.as_tensor(y.astype(np.float32))).all() for y in restored)


def test_a_fault_in_the_last_tensor_keeps_the_first_from_being_written() -> None:
    raw = bytearray(small())
    raw[-4:] = struct.pack("<f", float("nan"))
    assert_refused(sealed(raw))


def test_a_message_must_be_what_is_expected() -> None:
    raw = small()
    fits = [torch.zeros(4), torch.zeros(2, 2)]
    assert len(tg.decompress_many(raw, expect=fits)) == 2
    for wrong in ([fits[0]], [fits[1], fits[0]], [fits[0].half(), fits[1]]):
        with pytest.raises(tg.PayloadError, match="expected"):
            tg.decompress_many(raw, expect=wrong)
        with pytest.raises(tg.PayloadError, match="expected"):
            tg.decompress_many(tg.Message.from_bytes(raw), expect=wrong)
    with pytest.raises(tg.InputError, match="out has"):
        tg.decompress_many(raw, out=[torch.zeros(4)])
    with pytest.raises(tg.InputError, match="shape"):
        tg.decompress_many(raw, out=[torch.zeros(4), torch.zeros(4)])


# --- Error feedback over a model. ---


def test_feedback_over_many_is_feedback_one_by_one() -> None:
    codec = tg.TopK(density=0.05, values=tg.Quantize(bits=4, rounding="stochastic", seed=5))
    together, alone = tg.ErrorFeedback(codec), tg.ErrorFeedback(codec)
    for step in range(5):
        named = {f"p{i}": x for i, x in enumerate(tensors(seed=step))}
        message = together.compress_many(named)
        restored = tg.decompress_many(bytes(message), kind="torch")
        for (name, x), y in zip(named.items(), restored, strict=True):
            assert same(y, tg.decompress(alone.compress(x, key=name)))
            assert same(together.residual(name), alone.residual(name))


def test_feedback_over_many_resumes_to_the_bit() -> None:
    codec = tg.TopK(density=0.05, values=tg.Quantize(bits=4, rounding="stochastic"))
    feedback = tg.ErrorFeedback(codec)
    named = {f"p{i}": x for i, x in enumerate(tensors())}
    feedback.compress_many(named)
    file = io.BytesIO()
    torch.save(feedback.state_dict(), file)
    file.seek(0)
    resumed = tg.ErrorFeedback(codec)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(3):
        assert bytes(resumed.compress_many(named)) == bytes(feedback.compress_many(named))


def test_a_key_that_changes_its_shape_is_named() -> None:
    feedback = tg.ErrorFeedback(tg.Sign())
    feedback.compress_many({"w": torch.ones(4)})
    with pytest.raises(tg.StateError, match="'w'"):
        feedback.compress_many({"w": torch.ones(5)})


@pytest.mark.parametrize("nonfinite", ["error", "skip"])
def test_a_sum_beyond_float32_is_an_input_error_as_for_one_tensor(nonfinite: Any) -> None:
    xs = [np.ones(5, np.float32), np.full(5, 3e38, np.float32)]
    residuals = [np.zeros(5, np.float32), np.full(5, 3e38, np.float32)]
    with pytest.raises(tg.InputError, match=r"tensors \[1\] are finite but their sums"):
        tg.compress_many(xs, tg.TopK(k=1), residuals=residuals, nonfinite=nonfinite)
    with pytest.raises(tg.InputError, match="finite but x"):
        tg.compress(xs[1], tg.TopK(k=1), residual=np.full(5, 3e38, np.float32), nonfinite=nonfinite)
