"""Hostile buffers: what the oracle accepts is read with its bits, all else is a PayloadError."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from arrays import DTYPES, VARIANTS, as_torch, assert_same_bits, gradient, kernels, stored_of
from contract import CODECS, Grid, is_in_the_document, name_of
from hypothesis import given
from hypothesis import strategies as st

import tersegrad as tg

DOCUMENTED = [codec for codec in CODECS if is_in_the_document(codec)]
SMALL = [
    tg.Identity(),
    tg.Cast(dtype="bfloat16"),
    tg.Quantize(bits=8, block_size=64),
    tg.Quantize(bits=4, block_size=64),
    tg.Quantize(bits=2),
    tg.Sign(block_size=64),
    tg.TopK(k=7, indices="elias-fano"),
    tg.TopK(k=7, indices="bitmap", values=tg.Quantize(bits=4)),
    tg.TopK(k=7, indices="u16", values=tg.Sign(block_size=64)),
    tg.ChunkTopK(k=2, chunk=20, values=tg.Cast()),
    tg.RandomK(k=9, seed=2**40, values=tg.Quantize(bits=2)),
    Grid(),
    tg.Ternary(block_size=64),
    tg.Integers(bits=16, scale=0.25),
    tg.Threshold(value=1.0, values=tg.Quantize(bits=4)),
    tg.TopK(k=7, indices="rice", values=tg.Ternary(block_size=64)),
    tg.ChunkTopK(k=2, chunk=20, indices="rice"),
    tg.Rotated(3, block=64),
    tg.Rotated(0.3, block=64, seed=2**40),
]


def small(codec: tg.Codec, dtype: str = "float32", shape: tuple[int, ...] = (7, 11)) -> bytes:
    x = ref.store(gradient(math.prod(shape)).reshape(shape), dtype)
    return bytes(tg.compress(as_torch(x), codec, step=3))


def assert_refused(raw: bytes, like: torch.Tensor | None = None, match: str | None = None) -> None:
    """PayloadError from every reader, and an `out` that keeps its bits."""
    with pytest.raises(tg.PayloadError, match=match):
        tg.decompress(raw)
    if like is not None:
        for accumulate in (False, True):
            out = torch.full_like(like, 7)
            before = out.clone()
            with pytest.raises(tg.PayloadError):
                tg.decompress(raw, out=out, accumulate=accumulate)
            assert_same_bits(out, before)


def entries_claimed(raw: bytes) -> int:
    rank = min(raw[7], (len(raw) - 40) // 8)
    return math.prod(struct.unpack_from(f"<{rank}Q", raw, 40))


def assert_read_as_the_oracle_reads_it(raw: bytes) -> None:
    """A huge shape is only parsed: an honest sparse payload may decode to gigabytes."""
    if entries_claimed(raw) > 250_000:
        try:
            tg.Payload.from_bytes(raw)
        except tg.PayloadError:
            return
        assert raw[5] in (5, 6, 7, 16)
        return
    try:
        expected, dtype, shape = ref.decompress(raw)
    except ref.RefusedError:
        assert_refused(raw)
        return
    restored = tg.decompress(raw, kind="torch")
    assert tuple(restored.shape) == shape
    assert_same_bits(restored, ref.store(expected, dtype))


def patch(raw: bytes, offset: int, new: bytes) -> bytes:
    """The payload with other bytes at `offset` and a correct checksum: a forgery."""
    return ref.seal(raw[:offset] + new + raw[offset + len(new) :])


# --- Accidents. ---


@pytest.mark.parametrize("codec", SMALL, ids=name_of)
def test_every_truncation_is_refused(codec: tg.Codec) -> None:
    raw = small(codec)
    for length in range(len(raw)):
        assert_refused(raw[:length])
        with pytest.raises(tg.PayloadError):
            tg.Payload.from_bytes(raw[:length])


@pytest.mark.parametrize("codec", SMALL, ids=name_of)
def test_every_extension_is_refused(codec: tg.Codec) -> None:
    raw = small(codec)
    for extra in (b"\0", b"\xff", bytes(8), bytes(1000), raw):
        assert_refused(raw + extra, torch.zeros(7, 11))
        assert_refused(ref.seal(raw + extra), torch.zeros(7, 11))


@pytest.mark.parametrize("codec", SMALL, ids=name_of)
def test_every_flipped_bit_is_found(codec: tg.Codec) -> None:
    raw = small(codec)
    out = torch.full((7, 11), 7.0)
    before = out.clone()
    for byte in range(len(raw)):
        for bit in range(8):
            flipped = bytearray(raw)
            flipped[byte] ^= 1 << bit
            with pytest.raises(tg.PayloadError):
                tg.decompress(flipped, out=out)
    assert_same_bits(out, before)


@pytest.mark.parametrize(
    "raw", [b"", b"T", b"TGRD", b"PK\x03\x04" + bytes(60), bytes(40), bytes(1000), b"\xff" * 400]
)
def test_what_was_never_a_payload_is_refused(raw: bytes) -> None:
    assert_refused(raw)
    with pytest.raises(tg.PayloadError):
        tg.Payload.from_bytes(raw)


@given(raw=st.binary(max_size=200))
def test_noise_is_refused(raw: bytes) -> None:
    assert_refused(raw)
    assert_refused(b"TGRD\x01" + raw)


# --- Forgeries: the checksum is right, the content is not. ---


@pytest.mark.parametrize(
    "codec", [codec for codec in SMALL if is_in_the_document(codec)], ids=name_of
)
def test_every_value_of_every_header_byte_is_read_as_the_oracle_reads_it(codec: tg.Codec) -> None:
    raw = small(codec)
    for offset in [*range(36), *range(40, 56)]:
        for value in range(256):
            if (
                offset != 5 or not 128 <= value <= 254
            ):  # ids of registered codecs are not the oracle's
                assert_read_as_the_oracle_reads_it(patch(raw, offset, bytes([value])))


@pytest.mark.parametrize("number", [0, 99, 127, 128, 254, 255])
def test_an_unknown_codec_is_refused_by_its_number(number: int) -> None:
    assert_refused(
        patch(small(tg.Identity()), 5, bytes([number])), torch.zeros(7, 11), match=str(number)
    )


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_refused_by_its_number(version: int) -> None:
    assert_refused(
        patch(small(tg.Identity()), 4, bytes([version])), torch.zeros(7, 11), match=str(version)
    )


@given(
    codec=st.sampled_from([codec for codec in SMALL if is_in_the_document(codec)]),
    dtype=st.sampled_from(DTYPES),
    edits=st.lists(
        st.tuples(
            st.sampled_from([5, 6, 7, *range(8, 36, 1), *range(40, 56)]),
            st.one_of(st.sampled_from([0, 1, 2, 3, 4, 7, 8, 255]), st.integers(0, 255)),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_any_forged_header_is_read_as_the_oracle_reads_it(
    codec: tg.Codec, dtype: str, edits: list[tuple[int, int]]
) -> None:
    raw = small(codec, dtype)
    for offset, value in edits:
        if offset != 5 or not 128 <= value <= 254:
            raw = patch(raw, offset, bytes([value]))
    assert_read_as_the_oracle_reads_it(raw)


@given(
    codec=st.sampled_from([codec for codec in SMALL if is_in_the_document(codec)]),
    dtype=st.sampled_from(DTYPES),
    edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=3),
)
def test_any_forged_body_is_read_as_the_oracle_reads_it(
    codec: tg.Codec, dtype: str, edits: list[tuple[int, int]]
) -> None:
    raw = small(codec, dtype)
    for position, value in edits:
        raw = patch(raw, 56 + position % (len(raw) - 56), bytes([value]))
    assert_read_as_the_oracle_reads_it(raw)


@pytest.mark.parametrize(
    "shape",
    [
        (4194305, 4194305, 211106198978564),
        (2**32, 1, 1),
        (2**16, 2**16, 1),
        (2**63, 2, 1),
        (2**64 - 1, 2**64 - 1, 2**64 - 1),
        (2**21, 2**21, 2**22 + 1),
        (641, 6700417, 1),
        (2**32 - 1, 1, 1),
    ],
)
@pytest.mark.parametrize("codec", SMALL, ids=name_of)
def test_a_shape_that_overflows_is_refused(codec: tg.Codec, shape: tuple[int, ...]) -> None:
    if isinstance(codec, (tg.RandomK, tg.TopK, tg.Threshold)) and shape == (2**32 - 1, 1, 1):
        return
    raw = small(codec, shape=(7, 11, 1))
    assert_refused(patch(raw, 40, struct.pack("<3Q", *shape)), torch.zeros(7, 11, 1))


def test_a_rank_above_32_is_refused_and_32_is_not() -> None:
    raw = small(tg.Identity(), shape=(1,) * 32)
    assert tg.decompress(raw).shape == (1,) * 32
    one_more = ref.seal(raw[:7] + b"\x21" + raw[8:40] + struct.pack("<Q", 1) + raw[40:])
    assert_refused(one_more)


@pytest.mark.parametrize("rank", [0, 1, 2, 3, 31, 255])
def test_a_forged_rank_is_refused(rank: int) -> None:
    raw = small(tg.Quantize(), shape=(4, 4, 4, 4))
    assert_refused(patch(raw, 7, bytes([rank])), torch.zeros(4, 4, 4, 4))


def body_of(raw: bytes) -> int:
    return 40 + 8 * raw[7]


@pytest.mark.parametrize(
    "bits", [0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xBF800000, 0x80000000, 0x80000001]
)
@pytest.mark.parametrize(
    "codec",
    [
        tg.Quantize(bits=8),
        tg.Quantize(bits=4, block_size=64),
        tg.Sign(),
        tg.TopK(density=0.5, values=tg.Sign(block_size=64)),
    ],
    ids=name_of,
)
def test_a_scale_that_no_encoder_writes_is_refused_in_any_block(codec: tg.Codec, bits: int) -> None:
    for n in (77, 100_003):
        raw = small(codec, shape=(n,))
        count = round(0.5 * n) if isinstance(codec, tg.TopK) else n
        block_size = codec.values.block_size if isinstance(codec, tg.TopK) else codec.block_size
        scales = math.ceil(count / block_size)
        first = body_of(raw)
        if isinstance(codec, tg.TopK):
            first += len(raw) - first - codec.values.body_size(count, "float32")
        for block in {0, scales // 2, scales - 1}:
            forged = patch(raw, first + 4 * block, struct.pack("<I", bits))
            for variant in VARIANTS:
                with kernels(variant, 2):
                    assert_refused(forged, torch.zeros(n))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dense_value_that_is_not_finite_is_refused_anywhere(dtype: str) -> None:
    patterns = {
        "float32": [0x7F800000, 0xFF800000, 0x7FC00000, 0xFF800001],
        "float16": [0x7C00, 0xFC00, 0x7E00, 0xFC01],
        "bfloat16": [0x7F80, 0xFF80, 0x7FC0, 0xFF81],
    }[dtype]
    n = 20_011
    item = ref.ITEM_BYTES[dtype]
    codecs = [
        tg.Identity(),
        tg.Cast(dtype=dtype),
        tg.TopK(density=0.5, values=tg.Cast(dtype=dtype)),
        tg.RandomK(density=0.5),
    ]
    for codec in codecs:
        raw = small(codec, dtype, shape=(n,))
        count = n if isinstance(codec, (tg.Identity, tg.Cast)) else round(0.5 * n)
        first = len(raw) - count * item
        for entry in (0, 5, count // 2, count - 1):
            for bits in patterns:
                forged = patch(raw, first + entry * item, bits.to_bytes(item, "little"))
                assert_refused(forged, as_torch(ref.store(np.zeros(n, np.float32), dtype)))


def with_indices(codec: tg.TopK, n: int, stream: bytes) -> bytes:
    """A payload of `codec` whose index stream is `stream`."""
    raw = small(codec, shape=(n,))
    return patch(raw, body_of(raw), stream)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("n", "k"), [(100, 7), (1000, 300), (70_000, 50), (200_000, 5000)])
def test_a_broken_u16_stream_is_refused(n: int, k: int, variant: str) -> None:
    codec = tg.TopK(k=k, indices="u16")
    ranges = math.ceil(n / 65536)
    indices = ref.random_indices(n, k, 3, 0)
    good = ref.encode_indices(3, indices, n)
    start = 4 * ranges
    generator = np.random.default_rng(0)

    def offsets(change: Any) -> bytes:
        values = np.frombuffer(good[start:], "<u2").copy()
        change(values)
        return good[:start] + values.tobytes()

    def swap(values: np.ndarray, at: int) -> None:
        values[at], values[at + 1] = values[at + 1], values[at]

    last_range = (n - 1) >> 16
    in_one_range = np.flatnonzero(indices[1:] >> 16 == indices[:-1] >> 16)
    places = {0, int(in_one_range[-1]), *generator.choice(in_one_range, 5).tolist()}
    forged = [offsets(lambda values, at=at: swap(values, at)) for at in places]
    forged += [
        offsets(lambda values, at=at: values.__setitem__(at + 1, values[at])) for at in places
    ]
    forged += [
        offsets(lambda values: values.__setitem__(-1, n - (last_range << 16))),
        offsets(lambda v: v.fill(0)),
    ]
    counts = np.frombuffer(good[:start], "<u4").copy()
    for change in (1, 2**32 - 1, 2**31):
        wrong = counts.copy()
        wrong[-1] = (int(wrong[-1]) + change) % 2**32
        forged.append(wrong.tobytes() + good[start:])
    if ranges > 1:
        wrong = counts.copy()
        wrong[0] = int(wrong[0]) + 2**31
        wrong[1] = int(wrong[1]) + 2**31
        forged.append(wrong.tobytes() + good[start:])  # the sum is right modulo 2^32
        forged.append(
            counts[::-1].tobytes() + good[start:] if counts[0] != counts[-1] else forged[0]
        )
    with kernels(variant, 2):
        assert_read_as_the_oracle_reads_it(with_indices(codec, n, good))
        for stream in forged:
            raw = with_indices(codec, n, stream)
            assert_read_as_the_oracle_reads_it(raw)
            if stream != forged[-1] or ranges == 1:
                assert_refused(raw, torch.zeros(n))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("n", "k"), [(100, 7), (64, 64), (1000, 300), (200_000, 5000), (200_000, 3)]
)
def test_a_broken_elias_fano_stream_is_refused(n: int, k: int, variant: str) -> None:
    codec = tg.TopK(k=k, indices="elias-fano")
    good = ref.encode_indices(1, ref.random_indices(n, k, 3, 0), n)
    low = ref.low_bits(n, k)
    split = ref.bytes_of(k * low)
    high_bits = k + (n >> low) + 1
    high = np.unpackbits(np.frombuffer(good[split:], np.uint8), bitorder="little")
    ones, zeros = np.flatnonzero(high), np.flatnonzero(high[:high_bits] == 0)
    forged = []

    def flipped(*positions: int) -> bytes:
        changed = high.copy()
        changed[list(positions)] ^= 1
        return good[:split] + np.packbits(changed, bitorder="little").tobytes()

    for one in {0, len(ones) // 2, len(ones) - 1}:
        forged.append(flipped(int(ones[one])))  # too few
    for zero in {0, len(zeros) // 2, len(zeros) - 1}:
        forged.append(flipped(int(zeros[zero])))  # too many
    for padding in range(high_bits, len(high)):
        forged.append(flipped(padding))
        forged.append(flipped(padding, int(ones[0])))  # k ones, one of them in the padding
    forged.append(good[:split] + bytes(len(good) - split))
    forged.append(good[:split] + b"\xff" * (len(good) - split))
    for padding in range(k * low, 8 * split):
        changed = bytearray(good)
        changed[padding // 8] |= 1 << padding % 8
        forged.append(bytes(changed))
    with kernels(variant, 2):
        assert_read_as_the_oracle_reads_it(with_indices(codec, n, good))
        for stream in forged:
            assert_refused(with_indices(codec, n, stream), torch.zeros(n))
        # Low bits in any order and ones in any place: refused exactly when the oracle refuses.
        generator = np.random.default_rng(1)
        for _ in range(20):
            changed = bytearray(good)
            for _ in range(generator.integers(1, 4)):
                changed[generator.integers(0, len(changed))] ^= 1 << generator.integers(0, 8)
            assert_read_as_the_oracle_reads_it(with_indices(codec, n, bytes(changed)))
        for _ in range(10):
            one, zero = (
                int(generator.choice(ones)),
                int(generator.choice(zeros)) if len(zeros) else int(ones[0]),
            )
            assert_read_as_the_oracle_reads_it(
                with_indices(codec, n, flipped(one, zero) if one != zero else good)
            )


@pytest.mark.parametrize("variant", VARIANTS)
def test_elias_fano_indices_beyond_n_are_refused(variant: str) -> None:
    n, k = 100, 7  # l = 3; high parts reach 12, so 100 to 103 can be written
    for last in (99, 100, 103):
        indices = np.array([0, 1, 2, 3, 4, 5, last])
        high = np.zeros(k + (n >> 3) + 1, np.uint8)
        high[(indices >> 3) + np.arange(k)] = 1
        stream = ref.pack(indices & 7, 3) + ref.pack(high, 1)
        raw = with_indices(tg.TopK(k=k, indices="elias-fano"), n, stream)
        with kernels(variant):
            assert_read_as_the_oracle_reads_it(raw)
            if last >= n:
                assert_refused(raw, torch.zeros(n))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n", [100, 4099, 200_001])
def test_a_broken_bitmap_is_refused(n: int, variant: str) -> None:
    k = n // 10
    good = ref.encode_indices(2, ref.random_indices(n, k, 3, 0), n)
    bits = np.unpackbits(np.frombuffer(good, np.uint8), bitorder="little")
    ones, zeros = np.flatnonzero(bits), np.flatnonzero(bits[:n] == 0)
    flips = [
        [ones[0]],
        [ones[-1]],
        [zeros[0]],
        [zeros[-1]],
        [n],
        [len(bits) - 1],
        [n, ones[0]],
        [len(bits) - 1, ones[-1]],
    ]
    with kernels(variant, 2):
        for flip in flips:
            if max(flip) < len(bits):
                changed = bits.copy()
                changed[flip] ^= 1
                stream = np.packbits(changed, bitorder="little").tobytes()
                assert_refused(
                    with_indices(tg.TopK(k=k, indices="bitmap"), n, stream), torch.zeros(n)
                )


@pytest.mark.parametrize(
    ("codec", "used"),
    [
        (tg.Quantize(bits=4, block_size=64), 77 * 4),
        (tg.Quantize(bits=2, block_size=64), 77 * 2),
        (tg.Sign(block_size=64), 77),
    ],
    ids=["Quantize4", "Quantize2", "Sign"],
)
def test_set_padding_bits_are_refused(codec: tg.Codec, used: int) -> None:
    raw = small(codec)
    last = raw[-1]
    for bit in range(used % 8 or 8, 8):
        assert_refused(patch(raw, len(raw) - 1, bytes([last | 1 << bit])), torch.zeros(7, 11))


@pytest.mark.parametrize("k", [0, 6, 8, 77, 78, 2**31, 2**32 - 1])
@pytest.mark.parametrize(
    "codec",
    [
        tg.TopK(k=7, indices="elias-fano"),
        tg.TopK(k=7, indices="bitmap"),
        tg.TopK(k=7, indices="u16"),
        tg.RandomK(k=7),
    ],
    ids=name_of,
)
def test_a_wrong_k_is_refused(codec: tg.Codec, k: int) -> None:
    assert_refused(patch(small(codec), 8, struct.pack("<I", k)), torch.zeros(7, 11))


def test_codes_that_no_encoder_writes_decode_as_the_document_says() -> None:
    """-128 and its like are beyond the encoder, but the document gives them a value."""
    for bits in (8, 4, 2):
        raw = small(tg.Quantize(bits=bits), shape=(256,))
        forged = patch(
            raw,
            body_of(raw),
            struct.pack("<f", 3e38) + bytes([0x80, 0x88, 0xAA, 0xFF] * (8 * bits)),
        )
        assert_read_as_the_oracle_reads_it(forged)


def test_a_sparse_value_codec_inside_a_sparse_codec_is_refused() -> None:
    raw = small(tg.TopK(k=7))
    for number in (0, 5, 6, 7, 9, 127, 255):
        assert_refused(patch(raw, 16, bytes([number])), torch.zeros(7, 11))


@pytest.mark.parametrize("codec", SMALL, ids=name_of)
@pytest.mark.parametrize("threads", [1, 2])
def test_out_keeps_its_bits_when_a_large_payload_is_broken_at_its_end(
    codec: tg.Codec, threads: int
) -> None:
    n = 200_003
    raw = bytearray(small(codec, shape=(n,)))
    raw[-1] ^= 0x40
    with kernels(VARIANTS[0], threads):
        assert_refused(bytes(raw), torch.zeros(n))


def test_decode_into_refuses_a_broken_body_before_it_writes() -> None:
    from tersegrad.codec import decode_into

    n = 200_003
    for codec, break_at, new in (
        (tg.Identity(), -4, struct.pack("<f", math.nan)),
        (tg.Quantize(bits=4), 4 * (n // 256), struct.pack("<f", -1.0)),
        (tg.TopK(k=n // 2, indices="bitmap"), 0, b"\xff\xff"),
    ):
        body = bytearray(np.asarray(tg.compress(gradient(n), codec).body).tobytes())
        at = break_at % len(body)
        body[at : at + len(new)] = new
        out = np.full(n, 7, np.float32)
        for accumulate in (False, True):
            with pytest.raises(tg.PayloadError):
                decode_into(np.frombuffer(bytes(body), np.uint8), codec, out, accumulate=accumulate)
            assert_same_bits(out, np.full(n, 7, np.float32))
        with pytest.raises((tg.PayloadError, tg.InputError)):
            decode_into(np.frombuffer(bytes(body[:-1]), np.uint8), codec, out)


# --- What the receiver expects. ---


def test_expect_accepts_its_shape_and_dtype_and_refuses_others() -> None:
    for codec in SMALL:
        raw = small(codec)
        for read in (
            lambda like, raw=raw: tg.decompress(raw, expect=like),
            lambda like, raw=raw: tg.Payload.from_bytes(raw, expect=like),
        ):
            read(torch.empty(7, 11))
            read(np.empty((7, 11), np.float32))
            wrong = (
                torch.empty(7, 12),
                torch.empty(11, 7),
                torch.empty(77),
                torch.empty(7, 11, 1),
                torch.empty(7, 11, dtype=torch.float16),
                torch.empty(7, 11, dtype=torch.bfloat16),
                np.empty((7, 11), np.float16),
            )
            for like in wrong:
                with pytest.raises(tg.PayloadError):
                    read(like)


def test_expect_works_on_a_payload_too() -> None:
    payload = tg.compress(torch.ones(5), tg.Sign())
    tg.decompress(payload, expect=torch.empty(5))
    with pytest.raises(tg.PayloadError, match="6"):
        tg.decompress(payload, expect=torch.empty(6))


def test_out_of_another_shape_is_refused_and_untouched() -> None:
    raw = small(tg.Quantize())
    for shape in ((77,), (11, 7), (7, 12), (7, 11, 1), ()):
        out = torch.full(shape, 7.0)
        with pytest.raises((tg.PayloadError, tg.InputError)):
            tg.decompress(raw, out=out)
        assert (out == 7).all()


@pytest.mark.parametrize(
    "source",
    [
        None,
        3,
        "TGRD",
        [84, 71],
        np.zeros(50, np.float32),
        torch.zeros(50),
        torch.zeros(50, dtype=torch.int8),
        object(),
    ],
    ids=lambda source: type(source).__name__,
)
def test_a_source_of_the_wrong_kind_is_an_input_error(source: Any) -> None:
    with pytest.raises(tg.InputError):
        tg.decompress(source)
    with pytest.raises(tg.InputError):
        tg.Payload.from_bytes(source)


def test_a_strided_buffer_is_read_in_its_order_or_refused() -> None:
    raw = small(tg.Quantize())
    spread = np.zeros(2 * len(raw), np.uint8)
    spread[::2] = np.frombuffer(raw, np.uint8)
    expected = tg.decompress(raw)
    for source in (spread[::2], torch.from_numpy(spread)[::2]):
        try:
            restored = tg.decompress(source)
        except tg.InputError:
            continue
        assert_same_bits(restored, expected)


def test_a_writable_source_may_change_after_from_bytes_was_checked() -> None:
    """Either the body was copied or decoding validates again: never a crash, never a silent NaN."""
    raw = bytearray(small(tg.Identity()))
    payload = tg.Payload.from_bytes(raw)
    raw[-4:] = struct.pack("<f", math.nan)
    try:
        restored = tg.decompress(payload)
    except tg.PayloadError:
        return
    assert np.isfinite(stored_of(restored)).all()


def test_a_payload_shows_itself_in_its_repr() -> None:
    shown = repr(tg.compress(torch.zeros(3, 4), tg.Quantize(bits=4)))
    assert "Quantize" in shown
    assert "(3, 4)" in shown
    assert "float32" in shown
