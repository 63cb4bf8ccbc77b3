"""What users hand over: accepted and right, or refused by name before anything is written."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from arrays import as_torch, assert_same_bits, gradient
from contract import CODECS, name_of

import tersegrad as tg

CODEC = tg.Quantize(bits=8)


@pytest.mark.parametrize(
    "x",
    [
        np.ones(3),
        np.ones(3, np.int32),
        np.ones(3, np.uint16),
        np.ones(3, bool),
        np.ones(3, np.complex64),
        np.ones(3, np.longdouble),
        np.array(["a"]),
        np.array([None]),
        np.ones(3, ">f4"),
        np.ones(3, ">f2"),
        np.ones(3, [("a", np.float32)]),
        torch.ones(3, dtype=torch.float64),
        torch.ones(3, dtype=torch.int8),
        torch.ones(3, dtype=torch.bool),
        torch.ones(3, dtype=torch.complex64),
    ],
    ids=lambda x: f"{type(x).__name__}-{x.dtype}",
)
def test_another_dtype_is_an_input_error_that_names_it(x: Any) -> None:
    name = str(x.dtype).removeprefix("torch.")
    with pytest.raises(tg.InputError) as caught:
        tg.compress(x, CODEC)
    if name[0] not in "<>[|" and name != "object":
        assert name in str(caught.value)


@pytest.mark.parametrize(
    "x",
    [None, 1.0, [1.0, 2.0], (1.0,), "abc", b"abcd", object(), range(3), memoryview(bytes(8))],
    ids=lambda x: type(x).__name__,
)
def test_what_is_no_array_is_an_input_error(x: Any) -> None:
    with pytest.raises(tg.InputError):
        tg.compress(x, CODEC)


def test_an_input_error_is_a_type_error_and_a_value_error() -> None:
    assert issubclass(tg.InputError, TypeError)
    assert issubclass(tg.InputError, ValueError)
    assert issubclass(tg.InputError, tg.TersegradError)
    for error in (tg.CodecError, tg.NonFiniteError, tg.PayloadError, tg.StateError):
        assert issubclass(error, ValueError)
        assert issubclass(error, tg.TersegradError)
    assert issubclass(tg.BackendError, RuntimeError)


def test_a_meta_tensor_is_refused() -> None:
    with pytest.raises(tg.InputError, match="meta"):
        tg.compress(torch.ones(3, device="meta"), CODEC)
    payload = tg.compress(torch.ones(3), CODEC)
    with pytest.raises(tg.InputError, match="meta"):
        tg.decompress(payload, out=torch.ones(3, device="meta"))
    with pytest.raises(tg.InputError):
        tg.compress(torch.ones(3), CODEC, residual=torch.zeros(3, device="meta"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_tensor_is_refused_until_there_is_a_cuda_backend() -> None:
    with pytest.raises((tg.InputError, tg.BackendError), match="cuda"):
        tg.compress(torch.ones(3, device="cuda"), CODEC)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_a_sparse_or_quantized_tensor_is_refused() -> None:
    with pytest.raises(tg.InputError, match="sparse"):
        tg.compress(torch.ones(3).to_sparse(), CODEC)
    with pytest.raises(tg.InputError):
        tg.compress(torch.ones(3, 3).to_sparse_csr(), CODEC)


def test_a_tensor_that_requires_grad_is_compressed_as_its_data() -> None:
    x = torch.linspace(-1, 1, 100)
    expected = bytes(tg.compress(x, CODEC))
    assert bytes(tg.compress(x.clone().requires_grad_(), CODEC)) == expected
    assert bytes(tg.compress(torch.nn.Parameter(x.clone()), CODEC)) == expected
    assert bytes(tg.compress(x.clone().requires_grad_() * 1, CODEC)) == expected
    assert not tg.decompress(tg.compress(x.clone().requires_grad_(), CODEC)).requires_grad


def test_a_parameter_is_written_under_no_grad() -> None:
    leaf = torch.nn.Parameter(torch.zeros(3))
    payload = tg.compress(torch.ones(3), CODEC)
    with torch.no_grad():
        tg.decompress(payload, out=leaf)
    assert (leaf == 1).all()


def test_a_lazily_negated_tensor_is_compressed_as_its_values() -> None:
    z = torch.complex(torch.linspace(-1, 1, 100), torch.linspace(2, 5, 100))
    lazy = z.conj().imag
    assert lazy.is_neg()
    assert bytes(tg.compress(lazy, CODEC)) == bytes(
        tg.compress(lazy.resolve_neg().contiguous(), CODEC)
    )
    real = torch.view_as_real(z.resolve_conj())[:, 1].contiguous()
    negated = torch._neg_view(real)
    assert bytes(tg.compress(negated, CODEC)) == bytes(tg.compress(-real, CODEC))


def test_a_lazily_negated_tensor_is_not_written_in_place() -> None:
    lazy = torch._neg_view(torch.zeros(3))
    payload = tg.compress(torch.ones(3), CODEC)
    for call in (
        lambda: tg.decompress(payload, out=lazy),
        lambda: tg.compress(torch.ones(3), CODEC, residual=lazy),
    ):
        with pytest.raises(tg.InputError, match="written in place"):
            call()


@pytest.mark.parametrize("codec", CODECS, ids=name_of)
def test_zero_dimensional_and_empty_arrays_work(codec: tg.Codec) -> None:
    for shape in ((), (0,), (0, 5), (3, 0, 2), (1, 1, 1)):
        for x in (np.full(shape, 0.5, np.float32), torch.full(shape, 0.5)):
            residual = x * 0
            payload = tg.compress(
                x, codec, residual=np.asarray(residual) if isinstance(x, np.ndarray) else residual
            )
            restored = tg.decompress(bytes(payload))
            assert tuple(restored.shape) == shape
            assert tuple(payload.shape) == shape
            assert math.isfinite(payload.ratio)


def test_memory_order_is_not_logical_order() -> None:
    x = gradient(60).reshape(5, 12)
    expected = bytes(tg.compress(x, CODEC))
    assert bytes(tg.compress(np.asfortranarray(x), CODEC)) == expected
    assert bytes(tg.compress(as_torch(x.T.copy()).t(), CODEC)) == expected
    picture = torch.from_numpy(gradient(2 * 3 * 4 * 5).reshape(2, 3, 4, 5))
    assert bytes(tg.compress(picture.to(memory_format=torch.channels_last), CODEC)) == bytes(
        tg.compress(picture, CODEC)
    )
    expanded = torch.ones(1, 5).expand(4, 5)
    assert bytes(tg.compress(expanded, CODEC)) == bytes(tg.compress(expanded.clone(), CODEC))
    broadcast = np.broadcast_to(np.ones(5, np.float32), (4, 5))
    assert bytes(tg.compress(broadcast, CODEC)) == bytes(tg.compress(broadcast.copy(), CODEC))


def test_a_read_only_input_is_read() -> None:
    x = gradient(100)
    expected = bytes(tg.compress(x, CODEC))
    x.flags.writeable = False
    assert bytes(tg.compress(x, CODEC)) == expected


def test_more_than_32_dimensions_are_refused() -> None:
    x = torch.ones((1,) * 33)
    with pytest.raises(tg.InputError, match="33"):
        tg.compress(x, CODEC)


# --- Residuals. ---


def wrong_residuals() -> list[Any]:
    read_only = np.zeros(6, np.float32)
    read_only.flags.writeable = False
    return [
        np.zeros(5, np.float32),
        np.zeros((2, 3), np.float32),
        np.zeros((6, 1), np.float32),
        np.zeros(6, np.float64),
        np.zeros(6, np.float16),
        np.zeros(6, ">f4"),
        np.zeros(12, np.float32)[::2],
        np.zeros(6, np.float32)[::-1],
        read_only,
        torch.zeros(6),
        [0.0] * 6,
        0.0,
        "zeros",
    ]


@pytest.mark.parametrize(
    "residual", wrong_residuals(), ids=lambda r: f"{type(r).__name__}-{getattr(r, 'shape', r)}"
)
def test_a_residual_that_does_not_fit_is_an_input_error(residual: Any) -> None:
    with pytest.raises(tg.InputError):
        tg.compress(np.ones(6, np.float32), CODEC, residual=residual)
    if isinstance(residual, (np.ndarray, torch.Tensor)):
        assert not residual.any()


@pytest.mark.parametrize(
    "residual",
    [
        torch.zeros(5),
        torch.zeros(2, 3),
        torch.zeros(6, dtype=torch.float16),
        torch.zeros(6, dtype=torch.float64),
        torch.zeros(12)[::2],
        torch.zeros(1).expand(6),
        np.zeros(6, np.float32),
        torch.zeros(6).to_sparse(),
    ],
    ids=lambda r: f"{type(r).__name__}-{r.dtype}-{tuple(r.shape)}",
)
def test_a_tensor_residual_that_does_not_fit_is_an_input_error(residual: Any) -> None:
    with pytest.raises(tg.InputError):
        tg.compress(torch.ones(6), CODEC, residual=residual)


def test_a_residual_of_a_narrow_input_is_float32() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        residual = torch.zeros(6)
        tg.compress(torch.full((6,), 0.3, dtype=dtype), tg.Sign(), residual=residual)
        with pytest.raises(tg.InputError):
            tg.compress(torch.ones(6, dtype=dtype), CODEC, residual=torch.zeros(6, dtype=dtype))


def test_an_input_that_is_its_own_residual_is_refused_or_read_before_it_is_written() -> None:
    x = gradient(1000)
    expected, expected_residual = ref.compress(x, CODEC, x)
    try:
        raw = bytes(tg.compress(x, CODEC, residual=x))
    except tg.InputError:
        return
    assert raw == expected
    assert_same_bits(x, expected_residual)


# --- out. ---


def wrong_outs() -> list[Any]:
    read_only = np.zeros(6, np.float32)
    read_only.flags.writeable = False
    return [
        np.zeros(5, np.float32),
        np.zeros((2, 3), np.float32),
        np.zeros(6),
        np.zeros(6, np.int32),
        np.zeros(6, ">f4"),
        read_only,
        torch.zeros(5),
        torch.zeros(6, dtype=torch.float64),
        torch.zeros(1).expand(6),
        torch.zeros(6).to_sparse(),
        [0.0] * 6,
        bytearray(24),
        3,
    ]


@pytest.mark.parametrize(
    "out", wrong_outs(), ids=lambda o: f"{type(o).__name__}-{getattr(o, 'shape', '')}"
)
def test_an_out_that_does_not_fit_is_refused_and_untouched(out: Any) -> None:
    raw = bytes(tg.compress(np.ones(6, np.float32), CODEC))
    for accumulate in (False, True):
        with pytest.raises((tg.InputError, tg.PayloadError)):
            tg.decompress(raw, out=out, accumulate=accumulate)
    if isinstance(out, np.ndarray) or (isinstance(out, torch.Tensor) and not out.is_sparse):
        assert not out.any()


def test_a_strided_out_is_filled_or_refused() -> None:
    raw = bytes(tg.compress(np.arange(6, dtype=np.float32), tg.Identity()))
    for wide in (np.full(12, 7, np.float32), torch.full((12,), 7.0)):
        try:
            tg.decompress(raw, out=wide[::2])
        except tg.InputError:
            assert (wide == 7).all()
        else:
            assert wide[::2].tolist() == [0, 1, 2, 3, 4, 5]
            assert (wide[1::2] == 7).all()


def test_accumulate_without_out_is_refused() -> None:
    payload = tg.compress(np.ones(3, np.float32), CODEC)
    with pytest.raises((tg.InputError, TypeError)):
        tg.decompress(payload, accumulate=True)


@pytest.mark.parametrize("scale", [math.nan, math.inf, None, 1e39])
def test_a_scale_that_is_no_finite_float32_is_refused(scale: Any) -> None:
    payload = tg.compress(np.ones(3, np.float32), CODEC)
    out = np.ones(3, np.float32)
    with pytest.raises((tg.InputError, TypeError, ValueError)):
        tg.decompress(payload, out=out, accumulate=True, scale=scale)
    assert (out == 1).all()


@pytest.mark.parametrize("kind", ["jax", 3])
def test_an_unknown_kind_is_refused(kind: Any) -> None:
    raw = bytes(tg.compress(np.ones(3, np.float32), CODEC))
    with pytest.raises(ValueError, match=str(kind)):
        tg.decompress(raw, kind=kind)


def test_kind_chooses_what_bytes_become() -> None:
    raw = bytes(tg.compress(np.ones(3, np.float32), CODEC))
    assert isinstance(tg.decompress(raw), np.ndarray)
    assert isinstance(tg.decompress(raw, kind="torch"), torch.Tensor)
    tensor = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    assert isinstance(tg.decompress(tensor), torch.Tensor)
    assert isinstance(tg.decompress(tensor, kind="numpy"), np.ndarray)


def test_restored_memory_belongs_to_the_caller() -> None:
    for codec in CODECS:
        payload = tg.compress(torch.ones(100), codec)
        first = tg.decompress(payload)
        kept = first.clone()
        tg.decompress(payload).fill_(9)
        assert torch.equal(first, kept)


def test_a_payload_keeps_its_bytes_when_its_input_changes() -> None:
    for codec in CODECS:
        x = torch.linspace(-1, 1, 300)
        payload = tg.compress(x, codec)
        raw = bytes(payload)
        x.fill_(0)
        assert bytes(payload) == raw
