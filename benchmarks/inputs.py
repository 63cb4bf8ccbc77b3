"""What is compressed: synthetic gradients, adversarial tensors, and real gradients where
`gradients.py` has made them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

#: Where gradients.py keeps real gradients; git ignores it.
CACHE = Path(__file__).parent / ".cache"


def gaussian(n: int, seed: int = 0) -> Floats:
    """gaussian x uniform^3: heavy-tailed, as gradients are, and the same everywhere."""
    draw = np.random.default_rng(seed)
    x = draw.standard_normal(n, dtype=np.float32)
    uniform = draw.random(n, dtype=np.float32)
    x *= uniform
    x *= uniform
    x *= uniform
    return x


def _all_equal(n: int) -> Floats:
    return np.full(n, 0.5, np.float32)


def _all_zero(n: int) -> Floats:
    return np.zeros(n, np.float32)


def _sorted_up(n: int) -> Floats:
    return np.sort(np.abs(gaussian(n, 1)))


def _sorted_down(n: int) -> Floats:
    return _sorted_up(n)[::-1].copy()


def _one_spike(n: int) -> Floats:
    x = np.full(n, 1e-3, np.float32)
    x[n // 2] = 1.0
    return x


def _few_values(n: int) -> Floats:
    return np.random.default_rng(2).choice(np.array([0.1, -0.2, 0.4, -0.8], np.float32), n)


def _many_zeros(n: int) -> Floats:
    """99.5 % zeros: at 1 % density the threshold itself is zero."""
    x = np.zeros(n, np.float32)
    kept = np.random.default_rng(3).integers(0, n, max(1, n // 200))
    x[kept] = gaussian(kept.size, 4)
    return x


def _embedding_rows(n: int, width: int = 384) -> Floats:
    """An embedding's gradient: a few whole rows, all others zero, so that neighbours resemble each
    other.
    """
    x = np.zeros(n, np.float32)
    rows = max(1, n // width)
    used = np.unique(np.random.default_rng(5).zipf(1.3, rows // 20 + 1) % rows)
    for row, seed in zip(used.tolist(), range(used.size), strict=True):
        part = x[row * width : (row + 1) * width]
        part[:] = _ROW_NOISE[seed % 64][: part.size]
    return x


def _late_giants(n: int) -> Floats:
    """Small values, then a last percent of large ones: a sample of the start says nothing."""
    x = gaussian(n, 6)
    x[-max(1, n // 100) :] *= 1e6
    return x


_ROW_NOISE = gaussian(64 * 4096, 7).reshape(64, 4096)

ADVERSARIES = {
    "all equal": _all_equal,
    "all zero": _all_zero,
    "sorted up": _sorted_up,
    "sorted down": _sorted_down,
    "one spike": _one_spike,
    "few values": _few_values,
    "many zeros": _many_zeros,
    "zero rows": _embedding_rows,
    "late giants": _late_giants,
}


def cached() -> list[str]:
    """The names of the real gradients that are there."""
    return sorted(path.stem for path in CACHE.glob("*.npy"))


def tensor(name: str, n: int) -> Floats:
    """An adversarial input of n entries, or a real gradient of at most n."""
    if name in ADVERSARIES:
        return ADVERSARIES[name](n)
    gradient: Floats = np.load(CACHE / f"{name}.npy")
    return gradient[:n]


def real() -> tuple[dict[str, Floats], str]:
    """Real gradients by name, and what to do about missing ones (empty when all are there)."""
    found: dict[str, Floats] = {name: np.load(CACHE / f"{name}.npy") for name in cached()}
    names = " and ".join(name for name in ("minilm", "cnn") if name not in found)
    hint = f"no real gradients of {names}: python benchmarks/gradients.py makes them"
    return found, hint if names else ""
