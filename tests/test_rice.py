"""Index streams of Rice and of runs, and the bodies without a fixed size: sizes, one encoding for each set, hostile streams."""

from __future__ import annotations

import math
import struct
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from arrays import assert_same_bits, gradient
from contract import Grid
from hypothesis import given
from hypothesis import strategies as st
from reference_indices import decode_indices, encode_indices, pack

import tersegrad as tg
from tersegrad import _core

RICE, RUNS = 4, 5
CODEC = tg.TopK(density=0.05, values=tg.Quantize(bits=4), indices="rice")


def encode(indices: np.ndarray, n: int, form: int = RICE) -> bytes:
    stream = np.zeros(_core.index_bytes(form, n, len(indices)), np.uint8)
    used = _core.encode_index(form, indices.astype(np.uint32), n, stream)
    return stream[:used].tobytes()


def decode(stream: bytes, n: int, k: int, form: int = RICE) -> np.ndarray:
    return _core.decode_index(form, np.frombuffer(stream, np.uint8), n, k)


def sets() -> dict[str, tuple[np.ndarray, int]]:
    """Index sets, and the n they lie in, by name."""
    generator = np.random.default_rng(7)
    far = 2**32 - 1
    made = {
        "first": ([0], 1),
        "last of many": ([far - 1], far),
        "both ends": ([0, far - 1], far),
        "a group less one": (range(15), 100),
        "a group": (range(0, 160, 10), 160),
        "a group and one": (range(0, 170, 10), 1000),
        "all": (range(1000), 1000),
        "a jump inside a group": ([*range(8), *range(far - 9, far)], far),
        "jumps between groups": (
            np.concatenate([np.arange(16) + i * 2**27 for i in range(32)]),
            far,
        ),
        "narrow and wide in turns": (
            np.cumsum(np.tile(np.repeat([1, 2**20], 16), 40)),
            2**30,
        ),
        "uniform": (np.sort(generator.choice(100_000, 3000, replace=False)), 100_000),
        "rows": (np.flatnonzero(np.repeat(generator.random(100) < 0.1, 384)), 38_400),
        "63 in a run": (range(63), 63),
        "64 in a run": (range(64), 64),
        "64 at the end": (range(far - 64, far), far),
        "pairs": (np.arange(0, 300, 3).repeat(2) + np.tile([0, 1], 100), 1000),
        "pairs and one single": (
            [*range(1), *(i + j for i in range(2, 100, 3) for j in (0, 1))],
            101,
        ),
        "more runs than are decoded at once": (np.flatnonzero(np.arange(4000) % 7 > 1), 4000),
        "a long run among short ones": ([*range(0, 90, 3), *range(200, 2000)], 10**9),
    }
    return {name: (np.array(indices, np.int64), n) for name, (indices, n) in made.items()}


@pytest.mark.parametrize("form", [RICE, RUNS])
@pytest.mark.parametrize("name", sets())
def test_a_stream_is_that_of_the_oracle_and_reads_back(name: str, form: int) -> None:
    indices, n = sets()[name]
    stream = encode(indices, n, form)
    assert stream == encode_indices(form, indices, n)
    assert np.array_equal(decode(stream, n, len(indices), form), indices)
    assert np.array_equal(decode_indices(form, stream, n, len(indices)), indices)


@st.composite
def index_sets(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    gaps = st.one_of(st.just(0), st.integers(0, 40), st.integers(0, 2**14), st.integers(0, 2**25))
    drawn = draw(st.lists(gaps, min_size=1, max_size=60))
    indices = np.cumsum(np.array(drawn) + 1) - 1
    return indices, int(indices[-1]) + draw(st.integers(1, 2**30))


@given(index_sets())
def test_any_set_has_one_stream_within_the_bounds(drawn: tuple[np.ndarray, int]) -> None:
    indices, n = drawn
    k = len(indices)
    stream = encode(indices, n)
    assert stream == encode_indices(RICE, indices, n)
    assert np.array_equal(decode(stream, n, k), indices)
    groups = math.ceil(k / 16)
    low = k * (ref.low_bits(n, k) + 1)
    most = 4 * groups + math.ceil(low / 8) + math.ceil(3 * k / 8) + 8
    assert math.ceil(groups / 8) + math.ceil(k / 8) <= len(stream) <= most - 8
    assert _core.index_bytes(RICE, n, k) == most


@st.composite
def sets_in_runs(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Runs and single indices, 64 or more in all, often about two for each run."""
    lengths = st.one_of(st.integers(1, 3), st.integers(1, 40))
    runs = draw(st.lists(st.tuples(st.integers(1, 2**20), lengths), min_size=20, max_size=40))
    runs.append((draw(st.integers(0, 3)) + 1, draw(st.integers(1, 64))))
    ends = np.cumsum([gap + length for gap, length in runs])
    indices = np.concatenate(
        [np.arange(end - length, end) for end, (_, length) in zip(ends, runs, strict=True)]
    ) - draw(st.sampled_from([0, 1]))
    return indices, int(indices[-1]) + draw(st.integers(1, 2**30))


@given(sets_in_runs())
def test_runs_stay_within_their_bounds_and_are_never_much_longer_than_rice(
    drawn: tuple[np.ndarray, int],
) -> None:
    indices, n = drawn
    k = len(indices)
    stream = encode(indices, n, RUNS)
    assert stream == encode_indices(RUNS, indices, n)
    assert np.array_equal(decode(stream, n, k, RUNS), indices)
    most = _core.index_bytes(RICE, n, k)
    assert _core.index_bytes(RUNS, n, k) == (most if k < 64 else 4 + 2 * most)
    assert (4 + 2 if k >= 64 else 1) <= len(stream) <= _core.index_bytes(RUNS, n, k) - 8


@given(st.one_of(index_sets(), sets_in_runs()), st.sampled_from([RICE, RUNS]), st.data())
def test_another_stream_is_refused_or_is_the_one_stream_of_another_set(
    drawn: tuple[np.ndarray, int], form: int, data: st.DataObject
) -> None:
    indices, n = drawn
    k = len(indices)
    raw = bytearray(encode(indices, n, form))
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    length = data.draw(st.sampled_from([len(raw), len(raw) - 1, len(raw) + 1, 1]))
    raw = (raw + b"\0")[:length]
    claimed = data.draw(st.sampled_from([k, k, k, k + 1, max(1, k - 1), min(n, 2**32 - 1)]))
    try:
        found = decode(bytes(raw), n, claimed, form)
    except tg.PayloadError:
        if claimed <= k + 1:
            with pytest.raises(ref.RefusedError):
                decode_indices(form, bytes(raw), n, claimed)
        return
    assert encode(found, n, form) == raw
    assert len(found) == claimed
    assert np.all(np.diff(found.astype(np.int64)) > 0)
    assert found[-1] < n


def sections(parameters: list[int], lows: list[int], highs: list[int]) -> bytes:
    return b"".join(pack(np.array(bits, np.int64), 1) for bits in (parameters, lows, highs))


def test_forged_sections_are_refused() -> None:
    n, k = 100, 2  # the parameter starts at floor(log2(50)) = 5
    low = [1, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    good = sections([1], low, [0, 1, 0, 1])
    assert decode(good, n, k).tolist() == [33, 83]
    forged = {
        "another parameter": sections([0, 0, 0, 1], [1] + 9 * [0], [0, 1, 0, 1]),
        "no parameter": sections([0], low, [0, 1, 0, 1]),
        "padding after the parameter": sections([1, 1], low, [0, 1, 0, 1]),
        "padding after the low parts": sections([1], [*low, 1], [0, 1, 0, 1]),
        "a third one": sections([1], low, [0, 1, 0, 1, 1]),
        "a one missing": sections([1], low, [0, 1, 0]),
        "a byte more": good + b"\0",
        "beyond n": sections([1], [1] * 10, [0, 0, 1, 1]),
        "empty": b"",
    }
    for name, stream in forged.items():
        for read in (decode, partial(decode_indices, RICE)):
            with pytest.raises((tg.PayloadError, ref.RefusedError)):
                pytest.fail(f"{name}: {read(stream, n, k)}")


def test_forged_runs_are_refused() -> None:
    n, k = 1000, 70
    indices = np.array([*range(100, 140), *range(500, 530)])
    good = encode(indices, n, RUNS)
    single = np.arange(0, 700, 10)

    def runs(count: int, *streams: bytes) -> bytes:
        return struct.pack("<I", count) + b"".join(streams)

    starts, ends = encode(np.array([100, 460]), 931), encode(np.array([39]), 69)
    assert good == runs(2, starts, ends)
    forged = {
        "fewer runs than are stated": runs(3, starts, ends),
        "more runs than are stated": runs(1, starts, ends),
        "all runs there could be": runs(2**32 - 1, starts, ends),
        "more than half as many runs as indices": runs(36, starts, ends),
        "runs written as single indices": runs(0, encode(indices, n)),
        "single indices without their head": encode(single, n),
        "a run that starts too late": runs(2, encode(np.array([100, 931]), 932), ends),
        "a run of no index": runs(2, starts, encode(np.array([69]), 70)),
        "a byte more": good + b"\0",
        "a byte less": good[:-1],
        "no streams": runs(2),
        "half of a head": good[:3],
        "empty": b"",
    }
    for name, stream in forged.items():
        for read in (partial(decode, form=RUNS), partial(decode_indices, RUNS)):
            with pytest.raises((tg.PayloadError, ref.RefusedError)):
                pytest.fail(f"{name}: {read(stream, n, k)}")
    assert np.array_equal(decode(runs(0, encode(single, n)), n, 70, RUNS), single)


def test_high_parts_whose_sum_wraps_are_refused() -> None:
    """Low width 31 and zeros enough to shift the quotient out of 64 bits, if it were not looked at first."""
    n, k = 2**32 - 1, 16
    climb = [0] * (2 * (31 - ref.low_bits(n, k))) + [1]
    for zeros in (2, 33, 2**10, 2**16):
        stream = sections(climb, [0] * 31 * k, [0] * zeros + [1] * k)
        with pytest.raises(tg.PayloadError):
            decode(stream, n, k)


def test_uniform_one_percent_costs_less_than_8_2_bits_an_index() -> None:
    n = 2**22
    indices = ref.random_indices(
        n, n // 100, 3, 0
    )  # one in each stratum: no clusters to profit from
    assert 8 * len(encode(indices, n)) / len(indices) <= 8.2
    indices = np.sort(np.random.default_rng(0).choice(n, n // 100, replace=False))
    assert 8 * len(encode(indices, n)) / len(indices) <= 8.2


def test_rows_and_clusters_cost_less_than_their_entropy_as_a_uniform_set() -> None:
    generator = np.random.default_rng(0)
    rows = (
        generator.random((4000, 384)) < np.where(generator.random(4000) < 0.05, 0.2, 0.0)[:, None]
    )
    indices, n = np.flatnonzero(rows), rows.size
    k = len(indices)
    uniform = math.log2(n / k) + math.log2(math.e)
    assert 8 * len(encode(indices, n)) / k < uniform - 2


def test_full_and_half_full_rows_cost_a_fraction_in_runs() -> None:
    """A row that a batch used, as embeddings have them, costs a few bytes; at nine entries of ten, below gzip's usual 1.3 bits."""
    generator = np.random.default_rng(0)
    used = (generator.random(4000) < 0.05)[:, None]
    for share, bits in ((1.0, 0.1), (0.9, 1.3)):
        indices = np.flatnonzero(used & (generator.random((4000, 384)) < share))
        assert 8 * len(encode(indices, 4000 * 384, RUNS)) / len(indices) < bits


# --- Payloads and messages. ---


def test_a_small_payload_that_claims_many_indices_is_refused_without_their_memory() -> None:
    """The oracle of memory is the allocator: 2^32 - 1 indices would take 16 GiB, their values as much."""
    for values, form in product(
        (None, tg.Quantize(bits=2), tg.Ternary(), Grid()), ("rice", "runs")
    ):
        codec = tg.TopK(k=4, values=values, indices=form)
        raw = bytearray(bytes(tg.compress(gradient(1000), codec)))
        raw[8:12] = struct.pack("<I", 2**32 - 1)
        raw[40:48] = struct.pack("<Q", 2**32 - 1)
        with pytest.raises(tg.PayloadError, match="bytes"):
            tg.Payload.from_bytes(ref.seal(bytes(raw)))


def tensors() -> list[torch.Tensor]:
    return [torch.from_numpy(gradient(n, seed=n)) for n in (3000, 0, 7, 64, 1)]


def test_a_message_finds_where_each_body_ends() -> None:
    xs = tensors()
    codecs = [CODEC, tg.Sign(), CODEC, tg.TopK(k=3, values=Grid(), indices="rice"), CODEC]
    raw = bytes(tg.compress_many(xs, codecs))
    for x, codec, y in zip(xs, codecs, tg.decompress_many(raw, kind="torch"), strict=True):
        assert_same_bits(y, tg.decompress(tg.compress(x, codec)))
    assert bytes(tg.Message.from_bytes(raw)) == raw


@pytest.mark.parametrize("codecs", [CODEC, tg.TopK(density=0.05, values=Grid(), indices="rice")])
def test_a_skipped_tensor_is_sent_as_zeros(codecs: tg.Codec) -> None:
    xs = [*tensors(), torch.from_numpy(gradient(5000))]
    xs[0][17] = float("nan")
    xs[3][1] = float("inf")
    kept = [torch.zeros_like(x) for x in xs]
    message = tg.compress_many(xs, codecs, residuals=kept, nonfinite="skip")
    assert message.skipped == (0, 3)
    for position, y in enumerate(tg.decompress_many(bytes(message), kind="torch")):
        if position in message.skipped:
            assert not y.any()
            assert not kept[position].any()
        else:
            assert_same_bits(y, tg.decompress(tg.compress(xs[position], codecs)))


@given(data=st.data())
def test_a_forged_message_is_refused_or_decodes_whole(data: st.DataObject) -> None:
    raw = bytearray(bytes(tg.compress_many(tensors(), CODEC)))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(28, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    raw[24:28] = struct.pack("<I", _core.crc32c(bytes(raw[28:]), _core.crc32c(bytes(raw[:24]))))
    out = [torch.full_like(x, 7) for x in tensors()]
    try:
        tg.decompress_many(bytes(raw), out=out)
    except tg.PayloadError:
        assert all((y == 7).all() for y in out)


def test_error_feedback_keeps_what_a_message_lost() -> None:
    feedback = tg.ErrorFeedback(CODEC)
    x = torch.from_numpy(gradient(3000))
    total = torch.zeros(3000, dtype=torch.float64)
    for _ in range(3):
        (y,) = tg.decompress_many(bytes(feedback.compress_many({"w": x})), kind="torch")
        total += y
    assert torch.allclose(total + feedback.residual("w"), 3.0 * x.double(), atol=1e-5)


def test_a_value_codec_without_a_fixed_size_is_refused() -> None:
    class Growing(Grid):
        is_fixed_size: Any = False

    with pytest.raises(tg.CodecError, match="fixed size"):
        tg.TopK(k=3, values=Growing())


def test_messages_between_ranks_ask_for_a_fixed_size() -> None:
    from tersegrad.ddp import CompressionState
    from tersegrad.exchange import Selection

    for ask in (
        lambda: CompressionState(CODEC),
        lambda: CompressionState(tg.Sign(), rules={"embed*": CODEC}),
        lambda: Selection(CODEC, {}, 0),
        lambda: Selection(tg.Sign(), {"embed*": CODEC}, 0),
    ):
        with pytest.raises(tg.CodecError, match="'elias-fano'"):
            ask()
