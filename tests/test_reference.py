"""The oracle against published vectors, the document's own example, and itself."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
from reference_numbers import _crc_bytes

CODECS = [
    ref.Identity(),
    ref.Cast("float16"),
    ref.Cast("bfloat16"),
    ref.Quantize(8),
    ref.Quantize(4, 64),
    ref.Quantize(2, 128, "stochastic", 7),
    ref.Sign(64),
    ref.TopK(density=0.1),
    ref.TopK(k=9, values=ref.Quantize(4), indices="u16"),
    ref.ChunkTopK(3, 50, ref.Sign(), "bitmap"),
    ref.RandomK(density=0.2, seed=2**63 + 5, values=ref.Cast("bfloat16")),
]


def test_crc32c_gives_the_published_check_value() -> None:
    assert ref.crc32c(b"123456789") == 0xE3069283
    assert ref.crc32c(bytes(32)) == 0x8A9136AA
    assert ref.crc32c(bytes(range(32))) == 0x46DD794E  # RFC 3720, B.4


def test_crc32c_of_long_input_is_the_byte_by_byte_one() -> None:
    data = bytes(i * i % 251 for i in range(10_001))
    assert ref.crc32c(data) == _crc_bytes(0xFFFFFFFF, data) ^ 0xFFFFFFFF


def test_philox_gives_the_known_answers_of_random123() -> None:
    # Random123 kat_vectors, philox4x32 with 7 rounds.
    zero = ref.philox(np.array([0]), 0, 0, 0)[0]
    assert [hex(word) for word in zero] == ["0x5f6fb709", "0xd893f64", "0x4f121f81", "0x4f730a48"]
    ones = ref.philox(np.array([2**64 - 1], np.uint64), 2**32 - 1, 2**32 - 1, 2**64 - 1)[0]
    assert [hex(word) for word in ones] == ["0x5207ddc2", "0x45165e59", "0x4d8ee751", "0x8c52f662"]
    pi = ref.philox(
        np.array([0x85A308D3243F6A88], np.uint64), 0x13198A2E, 0x03707344, 0x299F31D0A4093822
    )[0]
    assert [hex(word) for word in pi] == ["0x4dfccaba", "0x190a87f0", "0xc47362ba", "0xb6b5242a"]


def test_elias_fano_is_the_example_of_the_document() -> None:
    indices = np.array([3, 4, 13, 29])
    encoded = ref.encode_indices(1, indices, 32)
    # Low bits 3, 4, 5, 5 are 0b101_101_100_011; high bits, from the lowest, 1 1 0 1 0 0 1 0 0.
    assert encoded == bytes([0b01100011, 0b1011, 0b01001011, 0])
    assert ref.decode_indices(1, encoded, 32, 4).tolist() == [3, 4, 13, 29]


@pytest.mark.parametrize("form", [1, 2, 3])
@pytest.mark.parametrize(
    ("n", "k"), [(1, 1), (7, 7), (64, 3), (65536, 65536), (65537, 2), (200_000, 1999), (5, 0)]
)
def test_index_streams_return_their_indices_in_the_promised_size(form: int, n: int, k: int) -> None:
    indices = ref.random_indices(n, k, 1, 0)
    encoded = ref.encode_indices(form, indices, n)
    assert len(encoded) == ref.index_bytes(form, n, k)
    assert np.array_equal(ref.decode_indices(form, encoded, n, k), indices)


def test_narrow_values_round_to_nearest_even_and_saturate() -> None:
    largest = float(np.finfo(np.float32).max)
    values = np.array([65519.0, 65520.0, 1e30, -1e30, 2.0**-25, 3 * 2.0**-25, -0.0], np.float32)
    assert ref.store(values, "float16").tolist() == [65504, 65504, 65504, -65504, 0, 2.0**-23, -0.0]
    cases = {
        1.0: 0x3F80,
        1 + 2.0**-8: 0x3F80,
        1 + 3 * 2.0**-8: 0x3F82,
        largest: 0x7F7F,
        -largest: 0xFF7F,
    }
    assert ref.store(np.array(list(cases), np.float32), "bfloat16").tolist() == list(cases.values())
    with np.errstate(over="ignore"):
        assert ref.store(np.array([np.inf, -np.inf], np.float32), "float32").tolist() == [
            largest,
            -largest,
        ]


def test_every_float16_and_bfloat16_survives_widening() -> None:
    bits = np.arange(65536, dtype=np.uint16)
    half = bits.view(np.float16)[np.isfinite(bits.view(np.float16))]
    assert np.array_equal(
        ref.store(ref.widen(half, "float16"), "float16").view(np.uint16), half.view(np.uint16)
    )
    brain = bits[(bits & 0x7FFF) < 0x7F80]
    assert np.array_equal(ref.store(ref.widen(brain, "bfloat16"), "bfloat16"), brain)


def test_quantize_is_the_arithmetic_of_the_document_on_a_block_done_by_hand() -> None:
    payload, residual = ref.compress(
        np.array([7.0, -3.5, 0.4, -7.0, 0.5], np.float32), ref.Quantize(4, 64)
    )
    # scale 1; -3.5 and 0.5 lie between codes and the tie goes up: -3 and 1.
    assert payload[48:] == bytes([0, 0, 0x80, 0x3F, 0xD7, 0x90, 0x01])
    assert residual.tolist() == [0, -0.5, np.float32(0.4), 0, -0.5]


def test_sign_is_the_mean_magnitude_with_the_sign_bit() -> None:
    payload, _ = ref.compress(np.array([1.0, -2.0, -0.0], np.float32), ref.Sign(64))
    assert payload[48:] == np.float32(1).tobytes() + b"\x06"
    assert ref.decompress(payload)[0].tolist() == [1, -1, -1]


def test_header_fields_stand_where_the_document_puts_them() -> None:
    payload, _ = ref.compress(np.zeros((2, 3), np.float16), ref.Cast("bfloat16"))
    assert (
        payload[:40]
        == b"TGRD\x01\x02\x02\x02\x03" + bytes(19) + bytes([12, *bytes(7)]) + payload[36:40]
    )
    assert payload[40:56] == bytes([2, *bytes(7), 3, *bytes(7)])
    assert len(payload) == 68


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@pytest.mark.parametrize("dtype", ref.DTYPE_IDS)
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 1000])
def test_oracle_reads_what_it_writes_and_keeps_the_residual_law(
    codec: object, dtype: str, n: int
) -> None:
    generator = np.random.default_rng(n)
    x = ref.store(generator.standard_normal(n), dtype)
    before = generator.standard_normal(n).astype(np.float32)
    payload, residual = ref.compress(x, codec, before, step=3)
    decoded, name, shape = ref.decompress(payload)
    assert (name, shape) == (dtype, (n,))
    assert np.array_equal(
        residual.view(np.uint32), (ref.widen(x, dtype) + before - decoded).view(np.uint32)
    )
    for cut in range(0, len(payload), 7):
        with pytest.raises(ref.RefusedError):
            ref.decompress(payload[:cut])
