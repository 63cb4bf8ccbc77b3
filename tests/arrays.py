"""Between the oracle's arrays and those that users have; and inputs worth testing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import reference as ref
import torch

import tersegrad as tg

try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None

DTYPES = ("float32", "float16", "bfloat16")
KINDS = ("numpy", "torch")
VARIANTS = tg.kernels.available()
#: Where `as_torch` makes tensors.
PLACE = torch.device("cpu")


def as_torch(stored: np.ndarray) -> torch.Tensor:
    """A tensor that owns its memory."""
    stored = np.array(stored, order="C")
    if stored.dtype == np.uint16:
        return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16).to(PLACE)
    return torch.from_numpy(stored).to(PLACE)


def as_numpy(stored: np.ndarray) -> Any:
    """A NumPy array that owns its memory; a tensor for bfloat16 when NumPy does not know it."""
    stored = np.array(stored, order="C")
    if stored.dtype != np.uint16:
        return stored
    return as_torch(stored) if ml_dtypes is None else stored.view(ml_dtypes.bfloat16)


def as_kind(stored: np.ndarray, kind: str) -> Any:
    return as_torch(stored) if kind == "torch" else as_numpy(stored)


def stored_of(array: Any) -> np.ndarray:
    """The oracle's view of a tensor or array: float32, float16, or uint16 bits of bfloat16."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu().contiguous()
        if array.dtype == torch.bfloat16:
            return array.view(torch.int16).numpy().view(np.uint16)
        return array.numpy()
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def bits_of(array: Any) -> np.ndarray:
    """The bits, as unsigned integers: what equality means in these tests."""
    stored = np.ascontiguousarray(stored_of(array))
    return stored.view({4: np.uint32, 2: np.uint16, 1: np.uint8}[stored.itemsize])


def assert_same_bits(got: Any, expected: Any, what: str = "") -> None:
    got_bits, expected_bits = bits_of(got), bits_of(expected)
    assert got_bits.dtype == expected_bits.dtype, what
    assert got_bits.shape == expected_bits.shape, what
    if not np.array_equal(got_bits, expected_bits):
        where = np.flatnonzero(got_bits.ravel() != expected_bits.ravel())
        first = int(where[0])
        raise AssertionError(
            f"{what}: {len(where)} of {got_bits.size} differ, first at {first}: "
            f"{got_bits.ravel()[first]:#x} instead of {expected_bits.ravel()[first]:#x}"
        )


def dtype_name(array: Any) -> str:
    return str(array.dtype).removeprefix("torch.")


@contextmanager
def kernels(variant: str, threads: int = 1) -> Iterator[None]:
    """Force a variant and a thread count, and prove that they are in force."""
    before = tg.kernels.get_num_threads()
    with tg.kernels.use(variant):
        tg.kernels.set_num_threads(threads)
        try:
            assert tg.kernels.active() == variant
            assert tg.kernels.get_num_threads() == threads
            yield
        finally:
            tg.kernels.set_num_threads(before)


SPECIAL = np.array(
    [0x0, 0x80000000, 0x1, 0x80000001, 0x7FFFFF, 0x800000, 0x3F800000, 0xBF800000, 0x0D800000,
     0x0D7FFFFF, 0x33000000, 0x477FE000, 0x477FF000, 0x3F808000, 0x3F818000, 0x7F7FFFFF, 0xFF7FFFFF,
     0x7F7F8000],
    dtype=np.uint32,
).view(np.float32)  # fmt: skip


def gradient(n: int, seed: int = 0) -> np.ndarray:
    """Gaussian times a cubed uniform: the long tail of a gradient."""
    generator = np.random.default_rng([seed, n])
    return (generator.standard_normal(n) * generator.random(n) ** 3).astype(np.float32)


def mixture(n: int, seed: int = 0) -> np.ndarray:
    """A gradient with stretches of ties, zeros, denormals and numbers from the edges of float32."""
    generator = np.random.default_rng([seed, n, 1])
    x = gradient(n, seed)
    choice = generator.integers(0, 12, (n + 63) // 64).repeat(64)[:n]
    x = np.where(choice == 0, np.float32(0), x)
    x = np.where(choice == 1, np.copysign(np.float32(0.25), x), x)
    x = np.where(choice == 2, np.round(x * 8) / 8, x).astype(np.float32)
    x = np.where(choice == 3, x * np.float32(1e-39), x)
    x = np.where(choice == 4, generator.choice(SPECIAL[:10], n), x)
    return np.where(generator.random(n) < 0.02, -x, x).astype(np.float32)


def shapes_of_input(n: int) -> dict[str, np.ndarray]:
    """Inputs that a selection by threshold must survive, by name."""
    x = gradient(n)
    spike = np.zeros(n, np.float32)
    spike[n * 2 // 3 : n * 2 // 3 + 1] = -3
    generator = np.random.default_rng(n)
    late = gradient(n)
    late[: n // 2] *= np.float32(1e-3)
    return {
        "all equal": np.full(n, -0.5, np.float32),
        "all zero": np.zeros(n, np.float32),
        "signed zeros": np.copysign(np.zeros(n, np.float32), x),
        "one spike": spike,
        "ascending": np.sort(x),
        "descending": np.sort(x)[::-1].copy(),
        "ascending magnitude": x[np.argsort(np.abs(x))],
        "descending magnitude": x[np.argsort(-np.abs(x))],
        "two values": generator.choice(np.array([1, -2], np.float32), n),
        "few distinct values": generator.choice(np.array([0, 1, -1, 0.5, 3], np.float32), n),
        "ties at the threshold": np.where(
            generator.random(n) < 0.005, np.float32(2), np.float32(1)
        ),
        "denormals": (generator.integers(0, 1000, n).astype(np.uint32)).view(np.float32),
        "neighbouring magnitudes": (0x3F800000 + generator.integers(0, 3, n))
        .astype(np.uint32)
        .view(np.float32),
        "large half late": late,
        "period of a block": np.tile(gradient(4096), n // 4096 + 1)[:n],
        "huge": (gradient(n) * np.float32(1e37)).astype(np.float32),
    }


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    return ref.store(values, dtype)
