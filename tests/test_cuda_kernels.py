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
from contract import name_of
from devices import CODECS
from emulation import EMULATED

import tersegrad as tg
from tersegrad.buffers import DTYPE_CODES

ORDERS = ("ascending", "descending", "shuffled")
GUARD = 64
FLOAT32 = DTYPE_CODES["float32"]


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
    shift: int = 0,
) -> tuple[bytes, np.ndarray | None, int]:
    """The body, what the residual became, the status."""
    dtype = ref.dtype_of(x)
    form, code = EMULATED.form_of(codec), DTYPE_CODES[dtype]
    given = Memory.of(x, shift * x.itemsize)
    kept = None if residual is None else Memory.of(residual, shift * 4)
    body = Memory(codec.body_size(x.size, dtype))
    status, flag = Memory(4), Memory.of(np.array([skip or 0], np.uint32))
    count = Memory.of(np.array([step], np.uint32))
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
        work.address,
        work.bytes.size,
        0,
    )
    work.check()
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


# --- What the emulation itself is worth. ---


@pytest.mark.parametrize(
    ("codec", "barrier"),
    [
        (tg.Quantize(4, block_size=256), 0),  # of a warp that packs codes
        (tg.Quantize(4, block_size=4096), 0),  # before all know the largest magnitude
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


@pytest.mark.parametrize("codec", CODECS, ids=name_of)
def test_the_workspace_is_arithmetic_up_to_the_largest_tensor(codec: tg.Codec) -> None:
    form = EMULATED.form_of(codec)
    sizes = [EMULATED.workspace_bytes(form, n, FLOAT32) for n in (0, 1, 10**6, 2**31, 2**32 - 1)]
    assert sizes == sorted(sizes)
    assert sizes[0] % 16 == 0
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
            memory.address,
            64,
            0,
        )


def test_what_has_no_form_on_the_device_says_so() -> None:
    for codec in (
        tg.Ternary(),
        tg.TopK(k=3, indices="rice"),
        tg.TopK(k=3, values=tg.Ternary()),
        tg.TopK(k=3, values=4),
        tg.Quantize(scale="l2"),
    ):
        with pytest.raises(tg.CodecError, match=r"no form on the device.*cpu"):
            EMULATED.form_of(codec)
