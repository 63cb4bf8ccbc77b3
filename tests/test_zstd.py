"""The Zstandard frames in a body: exact values back, known sizes, no bombs."""

from __future__ import annotations

import struct
import sys

import numpy as np
import pytest
import reference as ref
import torch
from arrays import assert_same_bits, gradient
from contract import Grid
from hypothesis import given
from hypothesis import strategies as st

import tersegrad as tg

zstandard = pytest.importorskip("zstandard")

INNER = [
    tg.Quantize(bits=4),
    tg.Identity(),
    tg.Ternary(block_size=64),
    tg.TopK(density=0.1, values=tg.Quantize(bits=4, block_size=64)),
    tg.TopK(density=0.1, values=tg.Quantize(bits=4, block_size=64), indices="rice"),
    tg.ChunkTopK(k=5, chunk=50, values=tg.Sign(block_size=64), indices="bitmap"),
]


def smooth(n: int) -> torch.Tensor:
    """Compressible: few values are far from zero."""
    return torch.from_numpy(gradient(n)) ** 3


@pytest.mark.parametrize("inner", INNER, ids=repr)
def test_what_is_decoded_is_what_the_inner_codec_decodes(inner: tg.Codec) -> None:
    for n in (0, 1, 5, 64, 3000, 50_000):
        x, r, plain_r = smooth(n), torch.ones(n), torch.ones(n)
        payload = tg.compress(x, tg.Zstd(inner), residual=r)
        assert_same_bits(
            tg.decompress(bytes(payload)), tg.decompress(tg.compress(x, inner, residual=plain_r))
        )
        assert_same_bits(r, plain_r)
        assert payload.body.nbytes <= 4 + inner.max_body_size(n)


def test_four_bit_bodies_shrink_and_noise_grows_by_four_bytes() -> None:
    x = smooth(100_000)
    inner = tg.Quantize(bits=4)
    assert tg.compress(x, tg.Zstd(inner)).nbytes < 0.6 * tg.compress(x, inner).nbytes
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(1000).astype(np.float32))
    exact = tg.compress(noise.sign() * (1 + noise.abs() % 1), tg.Zstd(tg.Sign(block_size=65536)))
    assert exact.body.nbytes == 4 + tg.Sign(block_size=65536).body_size(1000)


def frame_at(raw: bytes) -> tuple[int, bytes]:
    """Where the frame of a dense payload of rank 1 begins, and the frame."""
    (length,) = struct.unpack_from("<I", raw, 48)
    assert length == len(raw) - 52
    return 52, raw[52:]


def with_body(raw: bytes, body: bytes) -> bytes:
    return ref.seal(raw[:28] + struct.pack("<Q", len(body)) + raw[36:48] + body)


def with_frame(raw: bytes, frame: bytes) -> bytes:
    return with_body(raw, struct.pack("<I", len(frame)) + frame)


def test_a_frame_that_states_or_holds_another_size_is_refused() -> None:
    n = 3000
    raw = bytes(tg.compress(smooth(n), tg.Zstd(tg.Quantize(bits=4))))
    values = zstandard.ZstdDecompressor().decompress(frame_at(raw)[1])
    make = zstandard.ZstdCompressor(level=1).compress
    assert_same_bits(tg.decompress(with_frame(raw, make(values))), tg.decompress(raw))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(values)
    bomb = make(bytes(2**28))
    for frame in (
        bomb,
        make(values + b"\0"),
        make(values[:-1]),
        make(b""),
        unsized,
        make(values) + b"\0",
        make(values) + make(b""),
        make(values)[:-1],
        b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd",  # a frame to be skipped
        b"\0" * 20,
    ):
        out = np.full(n, 7, np.float32)
        with pytest.raises(tg.PayloadError):
            tg.decompress(with_frame(raw, frame), out=out)
        assert (out == 7).all()


def test_a_length_that_does_not_fit_the_body_is_refused() -> None:
    raw = bytes(tg.compress(smooth(3000), tg.Zstd(tg.TopK(density=0.1, indices="rice"))))
    body = raw[48:]
    for length in (0, 1, len(body) - 4, len(body) - 3, 2**32 - 1):
        with pytest.raises(tg.PayloadError):
            tg.decompress(with_body(raw, struct.pack("<I", length) + body[4:]))
    for size in range(8):
        with pytest.raises(tg.PayloadError):
            tg.decompress(with_body(raw, body[:size]))


@given(data=st.data(), inner=st.sampled_from(INNER))
def test_any_forged_body_is_refused_or_decodes(data: st.DataObject, inner: tg.Codec) -> None:
    raw = bytearray(bytes(tg.compress(smooth(600), tg.Zstd(inner))))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(8, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    out = torch.full((600,), 7.0)
    try:
        tg.decompress(ref.seal(bytes(raw)), out=out)
    except (tg.PayloadError, tg.InputError):  # InputError: the shape is another
        assert (out == 7).all()


def test_messages_hold_frames_among_other_bodies() -> None:
    xs = [smooth(n) for n in (3000, 0, 64, 500)]
    codecs = [tg.Zstd(INNER[4]), tg.Sign(), tg.Zstd(INNER[0]), tg.Zstd(INNER[3])]
    raw = bytes(tg.compress_many(xs, codecs))
    for x, codec, y in zip(xs, codecs, tg.decompress_many(raw, kind="torch"), strict=True):
        assert_same_bits(y, tg.decompress(tg.compress(x, codec)))


@pytest.mark.parametrize(
    "inner",
    [tg.RandomK(k=3), Grid(), tg.TopK(k=3, values=Grid()), tg.Zstd(tg.Sign()), None, tg.Sign],
    ids=repr,
)
def test_only_codecs_of_the_package_go_inside(inner: tg.Codec) -> None:
    with pytest.raises(tg.CodecError, match="Zstd"):
        tg.Zstd(inner)


def test_a_stranger_cannot_ask_for_another_inner_codec() -> None:
    raw = bytes(tg.compress(smooth(300), tg.Zstd(tg.Quantize(bits=4))))
    for number in (0, 5, 7, 9, 77, 200, 255):
        with pytest.raises(tg.PayloadError):
            tg.decompress(ref.seal(raw[:8] + bytes([number]) + raw[9:]))
    sparse = bytes(tg.compress(smooth(300), tg.TopK(k=3)))
    with pytest.raises(tg.PayloadError):  # as a value codec
        tg.decompress(ref.seal(sparse[:16] + bytes([9]) + sparse[17:]))


def test_without_the_package_an_encoder_says_what_to_install_and_a_decoder_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = bytes(tg.compress(smooth(300), tg.Zstd(tg.Quantize(bits=4))))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(tg.BackendError, match=r"tersegrad\[zstd\]"):
        tg.compress(smooth(300), tg.Zstd(tg.Quantize(bits=4)))
    with pytest.raises(tg.PayloadError, match="zstandard"):
        tg.decompress(raw)
