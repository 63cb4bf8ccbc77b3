"""The oracle's threshold that a share of the entries reaches (docs/format.md, codec 16)."""

from __future__ import annotations

import math

import numpy as np

LARGEST = float(np.finfo(np.float32).max)
LOG2 = 0.6931471805599453


def log_of(x: float) -> float:
    m, exponent = math.frexp(x)
    if m < 0.7071067811865476:
        m, exponent = m * 2, exponent - 1
    s = (m - 1) / (m + 1)
    square, total = s * s, 0.0
    for j in range(21, 0, -2):
        total = total * square + 1.0 / j
    return 2 * s * total + exponent * LOG2


def exp_of(x: float) -> float:
    power = math.floor(x / LOG2 + 0.5)
    rest, total = x - power * LOG2, 1.0
    for j in range(14, 0, -1):
        total = 1 + rest * total / j
    return math.ldexp(total, power)


def pareto_excess(mean: float, variance: float, ratio: float) -> float:
    log_ratio = log_of(ratio)
    if not 0 < variance <= 1e300:
        return mean * log_ratio
    q = mean * mean / variance
    shape, scale = max(-2.0, 0.5 * (1 - q)), 0.5 * mean * (q + 1)
    if abs(shape) < 1e-6:
        return scale * log_ratio
    return scale / shape * (exp_of(shape * log_ratio) - 1)


def lane_sum(table: np.ndarray) -> np.ndarray:
    """Rows of lanes added one after another, then the upper half of the lanes to the lower, until one is left."""
    lanes = np.zeros(table.shape[-1], table.dtype)
    for row in table:
        lanes = lanes + row
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = lanes[:half] + lanes[half:]
    return lanes[0]


def rows_of(values: np.ndarray, lanes: int) -> np.ndarray:
    return np.pad(values, (0, -len(values) % lanes)).reshape(-1, lanes)


def sums_of_all(magnitudes: np.ndarray) -> tuple[float, float]:
    total = squares = 0.0
    with np.errstate(over="ignore"):
        for first in range(0, len(magnitudes), 1024):
            rows = rows_of(magnitudes[first : first + 1024], 64)
            total += float(lane_sum(rows))
            squares += float(lane_sum(rows * rows))
    return total, squares


def sums_above(tail: np.ndarray, level: np.float32) -> tuple[float, float]:
    rows = rows_of(tail.astype(np.float64) - float(level), 8)
    return float(lane_sum(rows)), float(lane_sum(rows * rows))


def threshold_of(a: np.ndarray, k: int) -> np.float32:
    """The threshold that about k entries reach."""
    magnitudes = np.abs(a)
    n = len(magnitudes)
    total, squares = sums_of_all(magnitudes)
    mean = total / n
    variance = squares / n - mean * mean
    low, above, high, beyond = np.float32(0), n, None, 0
    rounds = 0
    while above > k and rounds < (4 if low == 0 else 8):
        ratio = above / k
        if high is not None:
            step = (float(high) - float(low)) * (log_of(ratio) / log_of(above / (beyond or 0.5)))
        else:
            aim = ratio if rounds > 0 and ratio <= 4 else max(ratio / 4, math.sqrt(ratio))
            step = pareto_excess(mean, variance, aim)
        wanted = float(low) + step
        level = np.float32(wanted if wanted < LARGEST else LARGEST)
        rounds += 1
        if not level > low or (high is not None and level >= high):
            break
        reaching = magnitudes[magnitudes >= level]
        count = len(reaching)
        if count >= k:
            low, above = level, count
            total, squares = sums_above(reaching, level)
            mean = total / count
            variance = squares / count - mean * mean
        else:
            high, beyond = level, count
        if 15 * k <= 16 * count <= 17 * k:
            return level
    end = high if high is not None and above * beyond > k * k else low
    return max(end, np.float32(2.0**-149))
