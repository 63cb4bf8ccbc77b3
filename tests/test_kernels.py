"""Every kernel variant against the oracle: the payload and the residual, equal to the bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import pytest
import reference as ref
import torch
from arrays import (
    DTYPES,
    SPECIAL,
    VARIANTS,
    as_torch,
    assert_same_bits,
    gradient,
    kernels,
    mixture,
    shapes_of_input,
    stored_of,
)
from contract import CODECS, is_in_the_document, name_of
from hypothesis import given
from hypothesis import strategies as st

import tersegrad as tg

DOCUMENTED = [codec for codec in CODECS if is_in_the_document(codec)]
LENGTHS = [0, 1, 7, 8, 63, 64, 65, 255, 256, 257, 4095, 4096, 4097, 65535, 65536, 65537, 200_003]
SPARSE = [
    tg.TopK(density=0.01),
    tg.TopK(density=0.3),
    tg.TopK(k=1),
    tg.ChunkTopK(k=64, chunk=4096),
    tg.ChunkTopK(k=7, chunk=1000, indices="u16"),
]


def assert_variants_agree_with_the_oracle(
    x: np.ndarray,
    codec: tg.Codec,
    residual: np.ndarray | None = None,
    step: int = 0,
    threads: tuple[int, ...] = (1,),
) -> None:
    expected, expected_residual = ref.compress(x, codec, residual, step)
    decoded, dtype, _ = ref.decompress(expected)
    for variant in VARIANTS:
        for count in threads:
            what = f"{variant}, {count} threads, {codec!r}, {dtype}, n = {x.size}"
            with kernels(variant, count):
                r = None if residual is None else as_torch(residual)
                payload = tg.compress(as_torch(x), codec, residual=r, step=step)
                restored = tg.decompress(expected, kind="torch")
            raw = bytes(payload)
            if raw != expected:
                where = [
                    i
                    for i, pair in enumerate(zip(raw, expected, strict=False))
                    if pair[0] != pair[1]
                ]
                raise AssertionError(
                    f"{what}: {len(raw)} bytes for {len(expected)}, unequal from {where[:5]}"
                )
            if r is not None:
                assert_same_bits(r, expected_residual, f"residual of {what}")
            assert_same_bits(restored, ref.store(decoded, dtype), f"decoded by {what}")


def test_variants_are_listed_best_first_and_end_with_scalar() -> None:
    assert VARIANTS[-1] == "scalar"
    assert len(set(VARIANTS)) == len(VARIANTS)
    assert tg.kernels.active() in VARIANTS


def test_use_takes_effect_at_once_and_restores_as_a_context_manager() -> None:
    before = tg.kernels.active()
    for variant in VARIANTS:
        tg.kernels.use(variant)
        assert tg.kernels.active() == variant
        with tg.kernels.use("scalar"):
            assert tg.kernels.active() == "scalar"
        assert tg.kernels.active() == variant
    tg.kernels.use(before)


@pytest.mark.parametrize("name", ["sse9", "", "AVX2 "])
def test_an_unknown_variant_is_a_backend_error_that_names_it(name: str) -> None:
    before = tg.kernels.active()
    with pytest.raises(tg.BackendError, match=f"'{name}'"):
        tg.kernels.use(name)
    assert tg.kernels.active() == before


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", 2**40])
def test_a_senseless_thread_count_is_refused(count: object) -> None:
    before = tg.kernels.get_num_threads()
    with pytest.raises((ValueError, TypeError)):
        tg.kernels.set_num_threads(count)  # type: ignore[arg-type]
    assert tg.kernels.get_num_threads() == before


# --- Lengths, dtypes, threads. ---


@pytest.mark.parametrize("codec", DOCUMENTED, ids=name_of)
@pytest.mark.parametrize("n", LENGTHS)
def test_every_variant_gives_the_bytes_of_the_oracle(n: int, codec: tg.Codec) -> None:
    for dtype in DTYPES:
        x = ref.store(mixture(n), dtype)
        assert_variants_agree_with_the_oracle(x, codec, gradient(n, seed=1), step=2**32 - 1)
        assert_variants_agree_with_the_oracle(x, codec)


@pytest.mark.parametrize("codec", DOCUMENTED, ids=name_of)
def test_thread_counts_do_not_change_the_bytes(codec: tg.Codec) -> None:
    x = mixture(200_003, seed=3)
    assert_variants_agree_with_the_oracle(x, codec, gradient(len(x), seed=1), threads=(2, 3, 5))


@pytest.mark.parametrize("codec", DOCUMENTED, ids=name_of)
def test_memory_that_is_not_aligned_gives_the_same_bytes(codec: tg.Codec) -> None:
    x, residual = mixture(5001), gradient(5001, seed=1)
    for offset in (1, 3, 15):
        for dtype in DTYPES:
            part = ref.store(x, dtype)[offset:]
            expected, expected_residual = ref.compress(part, codec, residual[offset:])
            r, given_x = as_torch(residual)[offset:], as_torch(ref.store(x, dtype))[offset:]
            assert bytes(tg.compress(given_x, codec, residual=r)) == expected
            assert_same_bits(r, expected_residual)


def test_step_and_seed_reach_the_random_stream() -> None:
    x = gradient(3000)
    for codec in (
        tg.Quantize(bits=2, rounding="stochastic", seed=2**32),
        tg.RandomK(density=0.05, seed=2**32),
        tg.TopK(density=0.5, values=tg.Quantize(bits=4, rounding="stochastic", seed=1)),
    ):
        answers = set()
        for step in (0, 1, 2**31, 2**32 - 1):
            assert_variants_agree_with_the_oracle(x, codec, step=step)
            answers.add(bytes(tg.compress(x, codec, step=step)))
        assert len(answers) == 4


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("block_size", [64, 128, 192, 256, 4096, 65536])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_every_block_size_quantizes_as_the_oracle(
    bits: int, block_size: int, rounding: str
) -> None:
    codec = tg.Quantize(bits=bits, block_size=block_size, rounding=rounding, seed=12345)
    for n in (block_size - 1, block_size, block_size + 1, 70_001):
        assert_variants_agree_with_the_oracle(
            mixture(n, seed=6), codec, gradient(n, seed=7), threads=(1, 2)
        )


@pytest.mark.parametrize("block_size", [64, 128, 192, 1024, 65536])
def test_every_block_size_signs_as_the_oracle(block_size: int) -> None:
    for n in (block_size - 1, block_size, block_size + 1, 70_001):
        x = mixture(n, seed=6)
        assert_variants_agree_with_the_oracle(
            x, tg.Sign(block_size=block_size), gradient(n, seed=7), threads=(1, 2)
        )


def test_a_sum_of_magnitudes_that_overflows_saturates() -> None:
    x = np.full(1000, np.finfo(np.float32).max, np.float32)
    x[::3] *= -1
    for codec in (tg.Sign(block_size=64), tg.Sign(), tg.TopK(k=900, values=tg.Sign(block_size=64))):
        assert_variants_agree_with_the_oracle(x, codec)


def test_narrow_dtypes_saturate_when_the_residual_lifts_an_entry_beyond_them() -> None:
    for dtype, big in (("float16", 65504.0), ("bfloat16", 3.3895e38)):
        x = ref.store(np.tile(np.array([big, -big, 1], np.float32), 100), dtype)
        residual = np.tile(np.array([big * 0.003, -big * 0.003, 0.1], np.float32), 100)
        for codec in DOCUMENTED:
            assert_variants_agree_with_the_oracle(x, codec, residual)


def test_every_float16_and_bfloat16_travels_through_every_cast() -> None:
    bits = np.arange(65536, dtype=np.uint16)
    for dtype, limit in (("float16", 0x7C00), ("bfloat16", 0x7F80)):
        x = bits[(bits & 0x7FFF) < limit]
        x = x.view(np.float16) if dtype == "float16" else x
        for codec in (tg.Identity(), *(tg.Cast(dtype=name) for name in DTYPES)):
            assert_variants_agree_with_the_oracle(x, codec)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_to_narrow_dtypes_is_right_around_every_tie(dtype: str) -> None:
    bits = np.arange(0, 65536, 3, dtype=np.uint16)
    bits = bits[(bits & 0x7FFF) < (0x7C00 if dtype == "float16" else 0x7F80)]
    exact = ref.widen(bits.view(np.float16) if dtype == "float16" else bits, dtype)
    half_step = 1 << (12 if dtype == "float16" else 15)
    around = exact.view(np.uint32).astype(np.int64) + half_step
    near = [(around + d).astype(np.uint32).view(np.float32) for d in (-1, 0, 1)]
    x = np.concatenate(near)
    denormal = np.arange(0, 0x38800000, 0x3A17, dtype=np.uint32).view(np.float32)
    x = np.concatenate([x[np.isfinite(x)], denormal, -denormal])
    assert_variants_agree_with_the_oracle(x, tg.Cast(dtype=dtype))


# --- Hypothesis. ---

finite_bits = st.integers(0, 2**32 - 1).map(
    lambda bits: bits if bits & 0x7F800000 != 0x7F800000 else bits & ~(1 << 30)
)
moderate = st.floats(-1, 1, width=32)


@st.composite
def float32_arrays(draw: st.DrawFn) -> np.ndarray:
    """Any finite bits, special numbers, few distinct values, sorted, of any magnitude."""
    n = draw(
        st.one_of(
            st.integers(0, 20), st.sampled_from([63, 64, 65, 127, 129, 255, 256, 257, 321, 1000])
        )
    )
    element = draw(st.sampled_from(["bits", "special", "moderate"]))
    if element == "bits":
        pool = np.array(draw(st.lists(finite_bits, min_size=1, max_size=24)), np.uint32).view(
            np.float32
        )
    elif element == "special":
        pool = np.array(
            draw(st.lists(st.sampled_from(SPECIAL.tolist()), min_size=1, max_size=8)), np.float32
        )
    else:
        pool = np.array(draw(st.lists(moderate, min_size=1, max_size=24)), np.float32)
    generator = np.random.default_rng(draw(st.integers(0, 2**16)))
    x = generator.choice(pool, n)
    style = draw(st.sampled_from(["as drawn", "nudged", "ascending", "descending", "one sign"]))
    if style == "nudged":  # neighbours of the drawn numbers: near ties of every kind
        key = (x.view(np.uint32) & 0x7FFFFFFF).astype(np.int64) + generator.integers(-2, 3, n)
        key = np.clip(key, 0, 0x7F7FFFFF).astype(np.uint32)
        x = (key | (x.view(np.uint32) & np.uint32(0x80000000))).view(np.float32)
    elif style == "ascending":
        x = np.sort(x)
    elif style == "descending":
        x = np.sort(x)[::-1].copy()
    elif style == "one sign":
        x = np.abs(x)
    return x


@pytest.mark.parametrize("codec", DOCUMENTED, ids=name_of)
@given(
    x=float32_arrays(),
    dtype=st.sampled_from(DTYPES),
    with_residual=st.booleans(),
    step=st.integers(0, 2**32 - 1),
)
def test_every_variant_agrees_with_the_oracle_on_any_finite_input(
    codec: tg.Codec, x: np.ndarray, dtype: str, with_residual: bool, step: int
) -> None:
    residual = None
    if with_residual:
        residual = (x[::-1] * np.float32(0.37)).astype(np.float32)
    assert_variants_agree_with_the_oracle(
        ref.store(x * np.float32(0.5), dtype), codec, residual, step
    )


@given(
    x=float32_arrays(),
    bits=st.sampled_from([8, 4, 2]),
    units=st.integers(1, 5),
    rounding=st.sampled_from(["nearest", "stochastic"]),
    seed=st.integers(0, 2**64 - 1),
)
def test_any_quantization_agrees_with_the_oracle(
    x: np.ndarray, bits: int, units: int, rounding: str, seed: int
) -> None:
    codec = tg.Quantize(bits=bits, block_size=64 * units, rounding=rounding, seed=seed)
    assert_variants_agree_with_the_oracle(x, codec)


@given(
    x=float32_arrays(),
    share=st.floats(0, 1),
    chunk=st.integers(1, 300),
    form=st.sampled_from(["auto", "elias-fano", "bitmap", "u16", "rice", "runs"]),
)
def test_any_selection_agrees_with_the_oracle(
    x: np.ndarray, share: float, chunk: int, form: str
) -> None:
    k = max(1, round(share * len(x)))
    assert_variants_agree_with_the_oracle(x, tg.TopK(k=k, indices=form))
    assert_variants_agree_with_the_oracle(
        x, tg.ChunkTopK(k=max(1, round(share * chunk)), chunk=chunk, indices=form)
    )


@given(
    n=st.integers(0, 3000),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**32 - 1),
)
def test_any_random_mask_agrees_with_the_oracle(n: int, share: float, seed: int, step: int) -> None:
    codec = tg.RandomK(k=max(1, round(share * n)), seed=seed)
    assert_variants_agree_with_the_oracle(gradient(n), codec, step=step)


# --- Exact selection on adversarial inputs. ---


@lru_cache(maxsize=1)
def adversaries() -> dict[str, np.ndarray]:
    return shapes_of_input(300_001)


@pytest.mark.parametrize("name", shapes_of_input(8))
def test_selection_is_exact_on_adversarial_input(name: str) -> None:
    x = adversaries()[name]
    for codec in SPARSE:
        assert_variants_agree_with_the_oracle(x, codec, threads=(1, 2))


@pytest.mark.parametrize("name", shapes_of_input(8))
def test_selection_with_residual_is_exact_on_adversarial_input(name: str) -> None:
    x = adversaries()[name]
    for codec in (
        tg.TopK(density=0.01),
        tg.TopK(density=0.001, values=tg.Quantize(bits=4)),
        tg.ChunkTopK(),
    ):
        for residual in (np.zeros(len(x), np.float32), x[::-1] * np.float32(0.5), -x):
            assert_variants_agree_with_the_oracle(x, codec, np.ascontiguousarray(residual))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_selection_is_exact_on_narrow_dtypes_full_of_ties(dtype: str) -> None:
    x = ref.store(gradient(300_001), dtype)
    for codec in SPARSE:
        assert_variants_agree_with_the_oracle(x, codec, threads=(1, 3))


@pytest.mark.parametrize("k", [1, 2, 299_999, 300_000, 300_001, 150_000, 3000, 2**32 - 1])
def test_every_k_is_exact(k: int) -> None:
    assert_variants_agree_with_the_oracle(gradient(300_001), tg.TopK(k=k))


def test_selections_one_after_another_do_not_remember_each_other() -> None:
    """A threshold kept from an earlier call may save time, never change bytes."""
    n, codec = 300_001, tg.TopK(density=0.01)
    for scale in (1.0, 1e-6, 1e6, 0.0, 1.0, 1e-38, 1e30):
        assert_variants_agree_with_the_oracle(
            (gradient(n) * np.float32(scale)).astype(np.float32), codec
        )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n", [4000, 300_001])
def test_a_threshold_kept_by_error_feedback_never_changes_bytes(n: int, variant: str) -> None:
    """The k-th key of the last step is a hint; jumps in scale, ties and zeros make it a bad one."""
    codecs = [tg.TopK(density=0.01), tg.TopK(k=3, values=tg.Quantize(bits=4)), tg.ChunkTopK()]
    flat = np.full(n, 0.5, np.float32)
    steps = [gradient(n, seed=1), gradient(n, seed=2), gradient(n) * 1e-6, flat, gradient(n) * 1e6]
    steps += [flat * 0, gradient(n), gradient(n) * 1e-38, flat, gradient(n) * 1e30, flat * 0, flat]
    for codec in codecs:
        feedback = tg.ErrorFeedback(codec)
        residual = np.zeros(n, np.float32)
        for turn, x in enumerate(steps):
            given_x = x.astype(np.float32)
            with kernels(variant, 1 + turn % 3):
                raw = bytes(feedback.compress(given_x, key="w"))
            expected, residual = ref.compress(given_x, codec, residual)
            assert raw == expected, f"{codec!r}, turn {turn}"
            assert_same_bits(feedback.residual("w"), residual, f"{codec!r}, turn {turn}")
            if turn == 6:
                given_x[-1] = np.nan
                with kernels(variant, 2), pytest.raises(tg.NonFiniteError):
                    feedback.compress(given_x, key="w")


# --- NaN and infinity. ---


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("codec", CODECS, ids=name_of)
def test_a_non_finite_entry_anywhere_is_found(codec: tg.Codec, variant: str) -> None:
    n = 9001
    patterns = np.array(
        [0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF], np.uint32
    ).view(np.float32)
    with kernels(variant, 2):
        for position in (0, 1, 17, 63, 64, 4095, 4096, 8191, n - 2, n - 1):
            for bad in patterns:
                x = gradient(n)
                x[position] = bad
                residual = gradient(n, seed=1)
                before = residual.copy()
                with pytest.raises(tg.NonFiniteError):
                    tg.compress(x, codec, residual=residual)
                assert_same_bits(residual, before)
                with pytest.raises(tg.NonFiniteError):
                    tg.compress(x, codec)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_non_finite_entry_of_a_narrow_dtype_is_found(variant: str, dtype: str) -> None:
    infinity = 0x7C00 if dtype == "float16" else 0x7F80
    with kernels(variant):
        for codec in CODECS:
            for bad in (infinity, infinity | 0x8000, infinity | 1, 0xFFFF):
                bits = ref.store(gradient(1001), dtype).view(np.uint16).copy()
                bits[777] = bad
                x = as_torch(bits.view(np.float16) if dtype == "float16" else bits)
                with pytest.raises(tg.NonFiniteError):
                    tg.compress(x, codec)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sum_that_overflows_is_found(variant: str) -> None:
    x, residual = gradient(5000), gradient(5000, seed=1)
    x[4321] = residual[4321] = np.finfo(np.float32).max
    with kernels(variant, 2):
        for codec in CODECS:
            with pytest.raises((tg.NonFiniteError, tg.InputError), match="residual"):
                tg.compress(x, codec, residual=residual.copy())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("codec", CODECS, ids=name_of)
def test_a_late_non_finite_entry_leaves_a_large_residual_untouched(
    codec: tg.Codec, variant: str
) -> None:
    x, residual = gradient(200_003), gradient(200_003, seed=1)
    x[-1] = np.nan
    before = residual.copy()
    for threads in (1, 3):
        with kernels(variant, threads), pytest.raises(tg.NonFiniteError):
            tg.compress(x, codec, residual=residual)
        assert_same_bits(residual, before)


# --- The processor's state and other threads. ---


@pytest.mark.parametrize("codec", DOCUMENTED, ids=name_of)
def test_flush_to_zero_mode_of_the_caller_does_not_change_the_bits(codec: tg.Codec) -> None:
    x = (gradient(5000) * np.float32(1e-38)).astype(np.float32)
    residual = (gradient(5000, seed=1) * np.float32(1e-38)).astype(np.float32)
    start = (gradient(5000, seed=2) * np.float32(1e-38)).astype(np.float32)
    start[start == 0] = np.float32(1e-40)  # a sparse payload may leave -0 where the sum is +0
    expected, expected_residual = ref.compress(x, codec, residual)
    decoded = ref.decompress(expected)[0]
    expected_total = ref.accumulate(start, decoded, 0.3, "float32")
    for variant in VARIANTS:
        for threads in (1, 2):
            with kernels(variant, threads):
                given_x, r, total = as_torch(x), as_torch(residual), as_torch(start)
                if not torch.set_flush_denormal(True):
                    pytest.skip("this processor cannot flush denormals")
                try:
                    raw = bytes(tg.compress(given_x, codec, residual=r))
                    restored = tg.decompress(raw)
                    tg.decompress(raw, out=total, accumulate=True, scale=0.3)
                finally:
                    torch.set_flush_denormal(False)
            assert raw == expected
            assert_same_bits(r, expected_residual)
            assert_same_bits(restored, decoded)
            assert_same_bits(total, expected_total)


def test_flush_to_zero_mode_of_the_caller_is_left_as_it_was() -> None:
    tiny = torch.full((1,), 1e-39)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        tg.compress(torch.ones(100), tg.Quantize())
        flushed = (tiny * 1.0).item() == 0.0
    finally:
        torch.set_flush_denormal(False)
    assert flushed
    tg.compress(torch.ones(100), tg.Quantize())
    assert (tiny * 1.0).item() != 0.0


def test_several_python_threads_compress_at_once() -> None:
    cases = []
    for i, codec in enumerate(DOCUMENTED):
        x, residual = gradient(120_000 + 7 * i, seed=i), gradient(120_000 + 7 * i, seed=i + 99)
        cases.append((codec, x, residual, *ref.compress(x, codec, residual)))

    def work(which: int) -> None:
        for turn in range(3 * len(cases)):
            codec, x, residual, expected, expected_residual = cases[(turn * 5 + which) % len(cases)]
            r = residual.copy()
            assert bytes(tg.compress(x, codec, residual=r)) == expected
            assert_same_bits(r, expected_residual)
            assert tg.decompress(expected).shape == x.shape

    with kernels(VARIANTS[0], 2), ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, which) for which in range(4)]:
            done.result(timeout=120)


def test_decoded_bits_do_not_depend_on_the_number_of_threads_for_any_index_form() -> None:
    x = gradient(300_001)
    for form in ("elias-fano", "bitmap", "u16", "rice", "runs"):
        for density in (0.0001, 0.02, 0.4):
            raw = ref.compress(x, tg.TopK(density=density, indices=form))[0]
            expected = ref.decompress(raw)[0]
            for variant in VARIANTS:
                for threads in (1, 2, 3):
                    with kernels(variant, threads):
                        assert_same_bits(
                            stored_of(tg.decompress(raw)), expected, f"{form} {variant} {threads}"
                        )
