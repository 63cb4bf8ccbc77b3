"""The kernels of the CUDA module, run on the host thread by thread: equal to the bit to the CPU's, whatever the order of threads.

What the Python layers do with them is in test_device.py. Memory comes full of rubbish, between guards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import reference as ref
from arrays import DTYPES, as_torch, assert_same_bits, gradient, mixture, stored_of
from contract import Grid, name_of
from devices import CODECS
from emulation import EMULATED

import tersegrad as tg
from tersegrad.buffers import DTYPE_CODES

ORDERS = ("ascending", "descending", "shuffled")
GUARD = 64
FLOAT32 = DTYPE_CODES["float32"]
GEOMETRY = EMULATED.geometry
#: How many candidates each top-k with a head start had.
CANDIDATES: list[int] = []


@pytest.fixture(autouse=True)
def ascending_afterwards() -> Iterator[None]:
    yield
    EMULATED.configure("ascending")


class Memory:
    """Bytes at a multiple of 16, or `shift` beyond it, between guards that `check` looks at."""

    def __init__(self, nbytes: int, shift: int = 0) -> None:
        self.raw = np.full(nbytes + 2 * GUARD + 16, 0xA5, np.uint8)
        self.start = GUARD + (-(self.raw.ctypes.data + GUARD)) % 16 + shift
        self.bytes = self.raw[self.start : self.start + nbytes]

    @classmethod
    def of(cls, array: np.ndarray, shift: int = 0) -> Memory:
        memory = cls(array.nbytes, shift)
        memory.bytes[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return memory

    @property
    def address(self) -> int:
        return self.raw.ctypes.data + self.start

    def check(self) -> np.ndarray:
        rest = np.concatenate([self.raw[: self.start], self.raw[self.start + self.bytes.size :]])
        assert (rest == 0xA5).all(), "written outside"
        return self.bytes


def encode(
    codec: tg.Codec,
    x: np.ndarray,
    residual: np.ndarray | None = None,
    *,
    step: int = 0,
    step_on_device: bool = False,
    skip: int | None = None,
    checked: bool = False,
    last_key: np.ndarray | None = None,
    shift: int = 0,
) -> tuple[bytes, np.ndarray | None, int]:
    """The body, what the residual became, the status. `last_key` (one u32) receives what the next call is to be given."""
    dtype = ref.dtype_of(x)
    form, code = EMULATED.form_of(codec), DTYPE_CODES[dtype]
    given = Memory.of(x, shift * x.itemsize)
    kept = None if residual is None else Memory.of(residual, shift * 4)
    body = Memory(codec.body_size(x.size, dtype))
    status, flag = Memory(4), Memory.of(np.array([skip or 0], np.uint32))
    count = Memory.of(np.array([step], np.uint32))
    key = Memory.of(np.zeros(1, np.uint32) if last_key is None else last_key)
    work = Memory(EMULATED.workspace_bytes(form, x.size, code))
    EMULATED.encode(
        form,
        given.address,
        code,
        x.size,
        0 if kept is None else kept.address,
        code,
        123 if step_on_device else step,
        count.address if step_on_device else 0,
        status.address,
        0 if skip is None else flag.address,
        body.address,
        checked,
        0 if last_key is None else key.address,
        work.address,
        work.bytes.size,
        0,
    )
    work.check()
    if last_key is not None:
        last_key[:] = key.check().view(np.uint32)
        CANDIDATES.append(EMULATED.candidates(work.address))
    assert given.check().tobytes() == x.tobytes()
    left = None if kept is None else kept.check().view(np.float32)
    return body.check().tobytes(), left, int(status.check().view(np.uint32)[0])


def decode(
    codec: tg.Codec,
    body: bytes,
    out: np.ndarray,
    dtype: str = "float32",
    *,
    accumulate: bool = False,
    scale: float = 1.0,
    step: int = 0,
    shift: int = 0,
) -> np.ndarray:
    form, code = EMULATED.form_of(codec), DTYPE_CODES[dtype]
    given = Memory.of(np.frombuffer(body, np.uint8))
    target = Memory.of(out, shift * out.itemsize)
    work = Memory(EMULATED.workspace_bytes(form, out.size, code))
    EMULATED.decode(
        form,
        given.address,
        code,
        out.size,
        step,
        0,
        target.address,
        DTYPE_CODES[ref.dtype_of(out)],
        accumulate,
        scale,
        work.address,
        work.bytes.size,
        0,
    )
    work.check()
    return target.check().view(out.dtype)


def on_the_host(
    codec: tg.Codec, x: np.ndarray, residual: np.ndarray | None = None, step: int = 0
) -> tuple[bytes, np.ndarray | None]:
    r = None if residual is None else as_torch(residual)
    payload = tg.compress(as_torch(x), codec, residual=r, step=step)
    return np.asarray(payload.body).tobytes(), None if r is None else stored_of(r)


def assert_equal_to_the_host(
    codec: tg.Codec, x: np.ndarray, residual: np.ndarray | None = None, **options: Any
) -> None:
    body, left, status = encode(codec, x, residual, **options)
    expected, expected_left = on_the_host(codec, x, residual, options.get("step", 0))
    assert status == 0
    assert body == expected, name_of(codec)
    if left is not None:
        assert expected_left is not None
        assert_same_bits(left, expected_left, name_of(codec))


def awkward(n: int) -> dict[str, np.ndarray]:
    """Inputs that mislead a sample, overflow a buffer or are all ties."""
    rng = np.random.default_rng(n)
    hill = np.zeros(n, np.float32)
    hill[n // 3 : n // 3 + n // 5] = rng.standard_normal(n // 5)
    spikes = np.full(n, 1e-3, np.float32)
    spikes[7::16] = 1  # a period that samples could share
    return {
        "zeros": np.zeros(n, np.float32),
        "all equal": np.full(n, -2.5, np.float32),
        "two values": np.where(rng.random(n) < 0.02, 1, -1e-20).astype(np.float32),
        "crowded": hill,
        "spikes": spikes,
        "ascending": np.arange(n, dtype=np.float32),
        "denormals": (rng.integers(0, 100, n) * 2.0**-149).astype(np.float32),
    }


# --- Equal to the bit. ---


@pytest.mark.parametrize("codec", CODECS, ids=name_of)
def test_the_order_of_threads_changes_nothing(codec: tg.Codec) -> None:
    for dtype in DTYPES:
        x, residual = ref.store(mixture(9001), dtype), gradient(9001, seed=4)
        for order in ORDERS:
            EMULATED.configure(order)
            assert_equal_to_the_host(codec, x, residual, step=9)
            body, _ = on_the_host(codec, x, None, 9)
            out = ref.store(gradient(9001, seed=5), dtype)
            expected = as_torch(out)
            payload = tg.compress(as_torch(x), codec, step=9)
            tg.decompress(payload, out=expected, accumulate=True, scale=0.3)
            got = decode(codec, body, out, dtype, accumulate=True, scale=0.3, step=9)
            assert_same_bits(got, expected)


@pytest.mark.parametrize("n", [16_384, 16_385, 70_000])
@pytest.mark.parametrize("what", list(awkward(100)))
def test_topk_is_exact_on_inputs_made_to_mislead_it(what: str, n: int) -> None:
    x = awkward(n)[what]
    for k in (1, n // 100, n // 2, n):
        assert_equal_to_the_host(tg.TopK(k=k), x)
    assert_equal_to_the_host(tg.TopK(k=n // 50), x, gradient(n) * np.float32(1e-3))


# --- A head start from the last call. ---


def key_of(x: np.ndarray, k: int) -> int:
    """The k-th largest key."""
    keys = np.sort(x.view(np.uint32) & 0x7FFFFFFF)
    return int(keys[-k])


@pytest.mark.parametrize("n", [100, 16_385, 60_000])
@pytest.mark.parametrize("density", [0.001, 0.01, 0.3])
def test_whatever_the_last_key_is_the_bytes_are_the_same(n: int, density: float) -> None:
    codec, x, residual = tg.TopK(density=density), gradient(n), gradient(n, seed=1)
    k = max(1, round(density * n))
    expected = key_of(x + residual, k)
    rubbish = [0, 1, 2**19, 2**19 + 1, 0x7F7FFFFF, 0x7F800000, 0x7FFFFFFF, 2**31, 2**32 - 1]
    for last in (*rubbish, expected, expected + 2**19, expected - 2**22, expected + 2**23):
        key = np.array([last], np.uint32)
        assert_equal_to_the_host(codec, x, residual, last_key=key)
        assert key[0] == expected


@pytest.mark.parametrize("what", list(awkward(100)))
def test_the_last_key_of_awkward_entries_changes_nothing(what: str) -> None:
    n = 20_000
    x, key = awkward(n)[what], np.zeros(1, np.uint32)
    for number, input_ in enumerate((x, x, gradient(n), x * np.float32(0.5))):
        assert_equal_to_the_host(tg.TopK(k=n // 50), input_, step=number, last_key=key)


def test_one_pass_is_enough_from_step_to_step() -> None:
    """And the threshold is a sixteenth of an octave below the last key, which no sample would give."""
    n, density = 60_000, 0.01
    k, codec, key = round(density * n), tg.TopK(density=density), np.zeros(1, np.uint32)
    capacity = GEOMETRY.candidate_capacity(n, k)
    residual = np.zeros(n, np.float32)
    for step in range(6):
        threshold = int(key[0]) - 2**19
        x = gradient(n, seed=step)
        sums = x + residual
        CANDIDATES.clear()
        _, residual, _ = encode(codec, x, residual, step=step, last_key=key)
        assert k <= CANDIDATES[0] <= capacity
        assert key[0] == key_of(sums, k)
        if step > 0:
            assert CANDIDATES[0] == ((sums.view(np.uint32) & 0x7FFFFFFF) >= threshold).sum()


def test_what_is_not_sent_leaves_the_last_key() -> None:
    codec, x = tg.TopK(k=30), gradient(3000)
    for case, options in ((x, {"skip": 1}), (np.full(3000, np.nan, np.float32), {})):
        key = np.array([123], np.uint32)
        encode(codec, case, **options, last_key=key)
        assert key[0] == 123


# --- Several bodies at once. ---


def add_many(
    codec: tg.Codec,
    bodies: list[bytes],
    out: np.ndarray,
    dtype: str = "float32",
    *,
    scale: float = 1.0,
    start: float | None = None,
    step: int = 0,
) -> np.ndarray:
    form, code = EMULATED.form_of(codec), DTYPE_CODES[dtype]
    given = [Memory.of(np.frombuffer(body, np.uint8)) for body in bodies]
    target, begin = Memory.of(out), Memory.of(np.array([start or 0], np.float32))
    work = Memory(EMULATED.workspace_bytes(form, out.size, code, len(bodies)))
    EMULATED.add_many(
        form,
        [memory.address for memory in given],
        code,
        out.size,
        step,
        0,
        0 if start is None else begin.address,
        target.address,
        scale,
        work.address,
        work.bytes.size,
        0,
    )
    work.check()
    return target.check().view(np.float32)


@pytest.mark.parametrize("codec", CODECS, ids=name_of)
def test_several_bodies_add_up_in_their_order(codec: tg.Codec) -> None:
    n = 17_001
    for dtype, count in (("float32", 3), ("bfloat16", 1), ("float32", 19)):
        xs = [ref.store(mixture(n) + gradient(n, seed=rank), dtype) for rank in range(count)]
        bodies = [on_the_host(codec, x, None, 5)[0] for x in xs]
        for start in (None, 0.0, float("nan")):
            out = gradient(n, seed=99)
            expected = out.copy() if start is None else np.full(n, start, np.float32)
            for x in xs:
                payload = tg.compress(as_torch(x), codec, step=5)
                tg.decompress(payload, out=expected, accumulate=True, scale=0.3)
            got = add_many(codec, bodies, out, dtype, scale=0.3, start=start, step=5)
            if start is not None and start != start:
                assert np.isnan(got).all()
            else:
                assert_same_bits(got, expected)
        if count > 3:
            break


# --- Index streams. ---


@pytest.mark.parametrize("indices", ["elias-fano", "bitmap", "u16"])
@pytest.mark.parametrize("n", [1, 31, 32, 33, 8192, 65_536, 65_537, 140_000])
def test_index_streams_at_the_edges_of_their_words(indices: str, n: int) -> None:
    x = gradient(n)
    for k in sorted({1, n // 3 + 1, n}):
        codec = tg.TopK(k=k, indices=indices)
        assert_equal_to_the_host(codec, x)
        body, _ = on_the_host(codec, x)
        expected = tg.decompress(tg.compress(x, codec))
        assert_same_bits(decode(codec, body, np.ones(n, np.float32)), expected)


@pytest.mark.parametrize("block_size", [64, 192, 256, 1024, 2048, 4096, 65_536])
def test_blocks_of_any_size(block_size: int) -> None:
    for n in (1, block_size - 1, block_size, block_size + 1, 3 * block_size + 65):
        x, residual = mixture(n), gradient(n, seed=2)
        for bits in (8, 4, 2):
            for rounding in ("nearest", "stochastic"):
                codec = tg.Quantize(bits=bits, block_size=block_size, rounding=rounding, seed=11)
                assert_equal_to_the_host(codec, x, residual, step=3)
                if n > 5000:
                    break
        assert_equal_to_the_host(tg.Sign(block_size=block_size), x, residual)


@pytest.mark.parametrize("block_size", [64, 256, 320, 2048, 2112])
def test_values_of_any_family_at_the_edges_of_blocks(block_size: int) -> None:
    """And of teams of warps, and of runs of entries that share noise."""
    for n in (1, block_size - 1, block_size, block_size + 1, 3 * block_size + 65):
        x, residual = mixture(n), gradient(n, seed=2)
        for codec in (
            *(tg.Magnitudes(bits=bits, block_size=block_size) for bits in (2, 5, 8)),
            *(tg.Quantize(bits=bits, block_size=block_size, scale="l2") for bits in (8, 2)),
            tg.Natural(block_size=block_size, seed=1),
            tg.Float8(block_size=block_size, rounding="stochastic"),
            tg.NF4(block_size=block_size),
            tg.Ternary(block_size=block_size, threshold=0.7),
            tg.Integers(bits=16, scale=2.0**-9, rounding="stochastic"),
        ):
            assert_equal_to_the_host(codec, x, residual, step=3)


def rotated_codecs(block: int) -> list[tg.Codec]:
    return [
        tg.Rotated(1, block=block),
        tg.Rotated(2, block=block, scale="mmse", seed=9),
        tg.Rotated(3, block=block),
        tg.Rotated(4, block=block, seed=2**64 - 1),
        tg.Rotated(0.3125, block=block, scale="mmse", seed=1),
    ]


def assert_decodes_as_on_the_host(codec: tg.Codec, x: np.ndarray, step: int) -> None:
    payload = tg.compress(x, codec, step=step)
    got = decode(codec, payload.body.tobytes(), np.ones(x.size, np.float32), step=step)
    assert_same_bits(got, tg.decompress(payload), name_of(codec))


@pytest.mark.parametrize("log2", range(6, 17))
def test_rotated_blocks_of_any_size(log2: int) -> None:
    n = max(5000, 3 << log2) + 77 if log2 < 14 else (1 << log2) + 77
    for codec in rotated_codecs(1 << log2):
        assert_equal_to_the_host(codec, mixture(n), gradient(n, seed=2), step=5)
        assert_decodes_as_on_the_host(codec, mixture(n), 5)


@pytest.mark.parametrize("block", [256, 8192])
def test_last_rotated_blocks_of_any_length(block: int) -> None:
    for n in [*range(1, 18), 63, 64, 65, 127, 129, 191, 255, 256, 257, 300, 511]:
        for codec in rotated_codecs(block)[n % 2 :: 2]:
            assert_equal_to_the_host(codec, mixture(n, seed=n), gradient(n, seed=1), step=n)
            assert_decodes_as_on_the_host(codec, mixture(n, seed=n), n)


def test_extreme_entries_of_rotated_blocks() -> None:
    n = 900
    largest = np.full(n, np.finfo(np.float32).max) * np.where(np.arange(n) % 3, 1, -1)
    inputs = {
        **awkward(n),
        "negative zeros": np.full(n, -0.0, np.float32),
        "largest": largest.astype(np.float32),
        "two powers": np.where(np.arange(n) % 2, 2.0**120, -(2.0**-126)).astype(np.float32),
    }
    for x in inputs.values():
        for codec in rotated_codecs(64) + rotated_codecs(512):
            assert_equal_to_the_host(codec, x)
            assert_decodes_as_on_the_host(codec, x, 0)


@pytest.mark.parametrize("codec", CODECS, ids=name_of)
def test_slices_of_a_bucket_need_no_alignment_but_their_entries(codec: tg.Codec) -> None:
    for dtype in DTYPES:
        for shift in (1, 2, 3):
            x, residual = ref.store(mixture(1000 + shift), dtype), gradient(1000 + shift)
            assert_equal_to_the_host(codec, x, residual, shift=shift)
            body, _ = on_the_host(codec, x)
            expected = stored_of(tg.decompress(tg.compress(as_torch(x), codec)))
            assert_same_bits(decode(codec, body, x, dtype, shift=shift), expected)


def test_a_step_on_the_device_is_what_counts() -> None:
    for codec in (tg.Quantize(4, rounding="stochastic"), tg.RandomK(k=50), tg.Rotated(0.5)):
        assert_equal_to_the_host(codec, mixture(3000), step=77, step_on_device=True)


@pytest.mark.parametrize("order", ORDERS)
def test_a_part_adds_up_what_the_parts_before_it_have_told(order: str) -> None:
    """They have told their own sums, but for some that know the sum of all before."""
    EMULATED.configure(order)
    own, so_far = 1 << 32, 2 << 32
    counts = np.random.default_rng(0).integers(0, 2**24, 200).astype(np.uint64)
    sums = np.cumsum(counts)
    for part in (0, 1, 2, 31, 32, 33, 63, 64, 65, 150):
        for done in {0, part - 1, part - 32, part - 33, part - 64, part // 2}:
            links = counts | np.uint64(own)
            links[: max(1, done)] = sums[: max(1, done)] | np.uint64(so_far)
            links[part:] = 0
            memory = Memory.of(links)
            before = EMULATED.sum_of_parts_before(memory.address, part, int(counts[part]))
            assert before == (sums[part - 1] if part else 0)
            told = memory.check().view(np.uint64)
            assert told[part] == sums[part] | np.uint64(so_far)
            assert (np.delete(told, part) == np.delete(links, part)).all()


@pytest.mark.parametrize("order", ORDERS)
def test_a_stream_of_many_parts_is_read_in_any_order(order: str) -> None:
    EMULATED.configure(order)
    n, codec = 300_000, tg.TopK(k=500, indices="bitmap")
    x = gradient(n)
    body, _ = on_the_host(codec, x)
    expected = tg.decompress(tg.compress(x, codec))
    assert_same_bits(decode(codec, body, np.ones(n, np.float32)), expected)


# --- How much is sent. ---


def count(x: np.ndarray, residual: np.ndarray | None, threshold: float, skip: int) -> list[int]:
    """How many entries reach a threshold, and the status."""
    given, flag, told = Memory.of(x), Memory.of(np.array([skip], np.uint32)), Memory(8)
    kept = None if residual is None else Memory.of(residual)
    work = Memory(EMULATED.count_workspace_bytes())
    EMULATED.count_reaching(
        given.address,
        DTYPE_CODES[ref.dtype_of(x)],
        x.size,
        0 if kept is None else kept.address,
        threshold,
        flag.address,
        told.address + 4,
        told.address,
        work.address,
        work.bytes.size,
        0,
    )
    work.check()
    assert kept is None or kept.check().tobytes() == residual.tobytes()  # type: ignore[union-attr]
    return told.check().view(np.uint32).tolist()


@pytest.mark.parametrize("order", ORDERS)
def test_entries_that_reach_a_threshold_are_counted(order: str) -> None:
    EMULATED.configure(order)
    for dtype in DTYPES:
        for n in (0, 1, 3, 1025, 4099):
            x, residual = ref.store(mixture(n), dtype), gradient(n, seed=3)
            a = ref.widen(x, dtype)
            for threshold in (0.0, 2.0**-149, 0.25, 1e30):
                limit = np.float32(threshold)
                assert count(x, None, threshold, 0) == [int((np.abs(a) >= limit).sum()), 0]
                sums = int((np.abs(a + residual) >= limit).sum())
                assert count(x, residual, threshold, 0) == [sums, 0]
    bad = residual.copy()
    bad[-1] = np.inf
    assert count(x, bad, 0.1, 0) == [0, 3]
    assert count(bad, residual, 0.1, 0) == [0, 2]
    assert count(x, residual, 0.1, 1) == [0, 1]


# --- What is not sent. ---


@pytest.mark.parametrize("codec", CODECS, ids=name_of)
def test_what_is_not_sent_is_a_body_of_zeros(codec: tg.Codec) -> None:
    n = 3001
    zeros, _ = on_the_host(codec, np.zeros(n, np.float32))
    x, residual = gradient(n), gradient(n, seed=1)
    bad, bad_residual = x.copy(), residual.copy()
    bad[n - 1], bad_residual[17] = np.nan, np.inf
    for case, r, options, expected in (
        (x, residual, {"skip": 1}, 1),
        (bad, residual, {}, 2),
        (x, bad_residual, {}, 3),
        (bad, None, {}, 2),
        (bad, residual, {"checked": True}, 2),
    ):
        body, left, status = encode(codec, case, r, **options)
        assert status == expected
        assert body == zeros
        if r is not None and not options.get("checked"):
            assert_same_bits(left, r)
    assert encode(codec, x, residual, skip=0)[2] == 0


# --- Bodies that nobody encoded. ---


@pytest.mark.parametrize("indices", ["elias-fano", "bitmap", "u16"])
def test_a_forged_body_writes_nowhere_else(indices: str) -> None:
    codec = tg.TopK(k=700, values=tg.Quantize(4), indices=indices)
    rng = np.random.default_rng(3)
    for n in (9000, 70_000):
        body = bytearray(on_the_host(codec, gradient(n))[0])
        for bits in (0, 255, None):
            for begin, end in ((0, len(body)), (0, 40), (len(body) // 2, len(body))):
                forged = np.frombuffer(body, np.uint8).copy()
                forged[begin:end] = (
                    rng.integers(0, 256, end - begin, np.uint8) if bits is None else bits
                )
                decode(codec, forged.tobytes(), np.zeros(n, np.float32))  # the guards tell
                add_many(codec, [forged.tobytes(), bytes(body)], np.zeros(n, np.float32))


# --- What the emulation itself is worth. ---


@pytest.mark.parametrize(
    ("codec", "barrier"),
    [
        (tg.Quantize(4, block_size=256), 0),  # of a warp that packs codes
        (tg.Quantize(4, block_size=4096), 0),  # before all know the largest magnitude
        (tg.Magnitudes(), 0),
        (tg.Ternary(), 0),
        (tg.Rotated(4), 3),  # between stages of a transform
    ],
    ids=str,
)
def test_a_missing_barrier_is_found(codec: tg.Codec, barrier: int) -> None:
    x = gradient(20_000)
    expected, _ = on_the_host(codec, x)
    changed = False
    for order in ORDERS:
        EMULATED.configure(order, barrier)
        changed |= encode(codec, x)[0] != expected
    assert changed


# --- Arithmetic. ---

LAUNCHES = {
    # Of a sparse codec: begin, the pass, three digits, places, indices, values, residual.
    tg.TopK(density=0.01, values=tg.Quantize(bits=4)): (9, 3, 3),
    tg.TopK(density=0.01, indices="u16"): (9, 3, 3),
    tg.ChunkTopK(values=tg.Quantize(bits=4)): (6, 3, 3),
    tg.RandomK(density=0.01): (5, 2, 2),
    tg.Quantize(bits=4): (3, 1, 1),
    tg.Sign(): (3, 1, 1),
}


@pytest.mark.parametrize("codec", LAUNCHES, ids=name_of)
def test_no_kernel_is_launched_that_need_not_be(codec: tg.Codec) -> None:
    """With a residual, and with bodies of seven ranks."""
    x, residual = gradient(9001), gradient(9001, seed=1)
    counts = [EMULATED.launches()]
    body, _, _ = encode(codec, x, residual, checked=True)
    counts.append(EMULATED.launches())
    decode(codec, body, np.zeros(9001, np.float32), accumulate=True)
    counts.append(EMULATED.launches())
    add_many(codec, [body] * 7, np.zeros(9001, np.float32), start=0.0)
    counts.append(EMULATED.launches())
    assert tuple(np.diff(counts)) == LAUNCHES[codec]


SIZES = (0, 1, 255, 256, 257, 8191, 8192, 8193, 10**6, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1)


@pytest.mark.parametrize("n", SIZES)
def test_grids_cover_what_there_is_and_are_not_too_large(n: int) -> None:
    for size in (1, 3, 256, GEOMETRY.TILE, 2**31):
        assert GEOMETRY.parts_of(n, size) == -(-n // size)
    assert GEOMETRY.tiles_of(n) * GEOMETRY.TILE >= n
    assert GEOMETRY.place_grid(n) * 8 >= GEOMETRY.tiles_of(n)
    grids = [GEOMETRY.grid_of(n), GEOMETRY.dense_grid(n), GEOMETRY.look_grid(n)]
    assert all(1 <= grid <= 2**16 for grid in grids)
    if n <= 2**24:
        assert grids[0] * GEOMETRY.THREADS >= n
        assert grids[1] * GEOMETRY.THREADS * 4 >= n
    for grid in (
        GEOMETRY.tiles_of(n),
        GEOMETRY.digit_grid(n),
        GEOMETRY.place_grid(n),
        GEOMETRY.chunk_grid(n, 1),
        GEOMETRY.chunk_grid(n, 4096),
    ):
        assert grid <= GEOMETRY.LARGEST_GRID
        assert (grid == 0) == (n == 0)


@pytest.mark.parametrize("n", SIZES[1:])
def test_candidates_have_room_for_twice_what_is_expected(n: int) -> None:
    for k in sorted({1, max(1, n // 1000), max(1, n // 100), max(1, n // 2), n}):
        rank, capacity = GEOMETRY.sample_rank(n, k), GEOMETRY.candidate_capacity(n, k)
        assert min(k, n) <= capacity <= n
        if n <= GEOMETRY.SAMPLES:
            assert rank == k
        else:
            mean = GEOMETRY.SAMPLES * k / n
            assert mean < rank <= mean + 5 * mean**0.5 + 9
            assert capacity == n or capacity >= 2 * k


@pytest.mark.parametrize("codec", CODECS, ids=name_of)
def test_the_workspace_is_arithmetic_up_to_the_largest_tensor(codec: tg.Codec) -> None:
    form = EMULATED.form_of(codec)
    sizes = [EMULATED.workspace_bytes(form, n, FLOAT32) for n in (0, 1, 10**6, 2**31, 2**32 - 1)]
    assert sizes == sorted(sizes)
    assert all(size % 16 == 0 for size in sizes)
    several = [EMULATED.workspace_bytes(form, 2**32 - 1, FLOAT32, bodies) for bodies in (1, 3, 16)]
    assert several == sorted(several)
    assert EMULATED.workspace_bytes(form, 2**32 - 1, FLOAT32, 1000) == several[-1]
    if getattr(codec, "density", None) is not None or not codec.is_sparse:
        # For 1 %: candidates and survivors at 8 bytes each, tiles at 16; dense codecs need the header alone.
        share = getattr(codec, "density", None) or 0
        assert sizes[-1] < 2**32 * (8 * min(1.1, 3 * share) + 8 * share + 0.01) + 200_000


def test_a_workspace_that_is_too_small_is_refused() -> None:
    form = EMULATED.form_of(tg.TopK(k=3))
    memory = Memory(64)
    with pytest.raises(ValueError, match="workspace"):
        EMULATED.encode(
            form,
            memory.address,
            FLOAT32,
            10,
            0,
            FLOAT32,
            0,
            0,
            memory.address,
            0,
            memory.address,
            True,
            0,
            memory.address,
            64,
            0,
        )


def test_what_has_no_form_on_the_device_says_so() -> None:
    for codec in (
        tg.TopK(k=3, indices="rice"),
        tg.TopK(k=3, indices="runs"),
        tg.TopK(k=3, values=Grid()),
        Grid(),
    ):
        with pytest.raises(tg.CodecError, match=r"no form on the device.*cpu"):
            EMULATED.form_of(codec)


# --- Heads of messages between ranks. ---

STATUSES = (0, 1, 2, 3)  # sent, absent, not finite, the sum is not


def heads_of(marks: np.ndarray, head: bytes, stride: int) -> Memory:
    """Messages of all ranks, a row of `marks` each."""
    messages = np.full((len(marks), stride), 0x77, np.uint8)
    messages[:, :16] = np.frombuffer(head, np.uint8)
    messages[:, 16 : 16 + marks.shape[1]] = marks
    return Memory.of(messages)


def judged(template: Memory, step: int, messages: Memory, shape: Any, before: Any) -> Any:
    """Whether a head is wrong; of each slot what is lost, what no rank sent, the float that its sum begins with."""
    ranks, slots, stride = shape
    verdict = Memory(4 * (1 + 3 * slots))
    EMULATED.judge(
        template.address,
        step,
        slots,
        messages.address,
        stride,
        ranks,
        0 if before is None else before.address,
        verdict.address,
        0,
    )
    words = verdict.check().view(np.uint32)
    lost, absent, start = np.split(words[1:], 3)
    return verdict, (bool(words[0]), lost, absent, start.view(np.float32))


@pytest.mark.parametrize("slots", [1, 255, 256, 700])
def test_heads_are_written_judged_and_counted(slots: int) -> None:
    rng = np.random.default_rng(slots)
    step, ranks, stride = 0xFEDCBA98, 3, 16 * (slots // 16 + 3)
    template = Memory.of(np.frombuffer(b"TGB\x02abcd" + bytes(8), np.uint8))
    head = b"TGB\x02abcd" + step.to_bytes(4, "little") + bytes(4)

    pieces = rng.integers(1, 4, slots)
    first = np.concatenate([[0], np.cumsum(pieces)]).astype(np.uint32)
    status = rng.choice(STATUSES, first[-1]).astype(np.uint32)
    worst = np.maximum.reduceat(status, first[:-1])
    for expected, parts, failed in ((worst, first, False), (status[:slots], None, True)):
        message, given = Memory(16 + slots), Memory.of(status)
        where = None if parts is None else Memory.of(parts)
        address = 0 if where is None else where.address
        arguments = (given.address, address, failed, message.address, 0)
        EMULATED.write_head(template.address, step, slots, *arguments)
        written = message.check()
        assert bytes(written[:16]) == head[:12] + bytes([failed]) + head[13:]
        assert (written[16:] == expected).all()

    marks = rng.choice(STATUSES, (ranks, slots), p=[0.4, 0.5, 0.05, 0.05]).astype(np.uint8)
    lost, absent = (marks >= 2).any(0), (marks == 1).all(0)
    shape = (ranks, slots, stride)
    first_verdict, found = judged(template, step, heads_of(marks, head, stride), shape, None)
    assert found[0] is False
    assert (found[1] == lost).all()
    assert (found[2] == absent).all()
    assert (np.isnan(found[3]) == lost).all()
    assert not found[3][~lost].any()
    counts = Memory.of(np.array([1, 2, 3, 4], np.uint32))
    EMULATED.note(first_verdict.address, slots, counts.address, 0)
    n = int(lost.sum())
    assert counts.check().view(np.uint32).tolist() == [1 + n, 2 + n, 3, 4]
    EMULATED.close_step(counts.address, False, 0)
    EMULATED.close_step(counts.address, False, 0)  # nothing was lost in this one
    assert counts.check().view(np.uint32).tolist() == [0, 2 + n, 3, 5]

    # What was lost stays lost in the verdict on the means, and one wrong byte of one rank is enough.
    sent = heads_of(np.zeros_like(marks), head, stride)
    assert (judged(template, step, sent, shape, first_verdict)[1][1] == lost).all()
    for at in (0, 7, 8, 11, 12, 15, 2 * stride + 15):
        wrong = heads_of(np.zeros_like(marks), head, stride)
        wrong.bytes[at] ^= 1
        verdict, found = judged(template, step, wrong, shape, None)
        assert found[0] is True
        assert found[1].all()
        assert np.isnan(found[3]).all()
        assert judged(template, step, sent, shape, verdict)[1][0] is True
