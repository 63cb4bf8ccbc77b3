"""What the hook costs and saves: sums, log lines, TensorBoard scalars, and a warning."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

logger = logging.getLogger("tersegrad.ddp")

SUMS = (
    *("steps", "dense_bytes", "sent_bytes", "received_bytes", "dense_received_bytes", "nonfinite"),
    *("compress_seconds", "wait_seconds", "decode_seconds"),
)
SCALARS = ("ratio", "sent_bytes", *SUMS[-3:], "residual_norm", "skipped_steps")
#: Steps before it is judged whether compression loses time.
TRIAL_STEPS = 50
#: What a step may lose without a word.
WORTH_SECONDS = 1e-3


class Counters:
    """Sums that the hook and the worker add to; what is added here is added to `total` too."""

    def __init__(self, total: Counters | None = None) -> None:
        self._lock = threading.Lock()
        self._total = total
        self._begun: tuple[float, int] = (0.0, 0)
        self.reset()

    def reset(self) -> None:
        with self._lock:
            self._sums: dict[str, float] = dict.fromkeys(SUMS, 0)
            self._bandwidth = 0.0

    def add(self, **amounts: float) -> None:
        with self._lock:
            for name, amount in amounts.items():
                self._sums[name] += amount
        if self._total is not None:
            self._total.add(**amounts)

    def begin(self, sent: int, received: int) -> None:
        """A collective starts."""
        self.add(sent_bytes=sent, received_bytes=received)
        self._begun = (time.perf_counter(), received)

    def waited(self, seconds: float) -> None:
        """It is done, and the worker stood still for so long."""
        self.add(wait_seconds=seconds)
        start, received = self._begun
        self.observe(received / max(time.perf_counter() - start, 1e-9))

    def observe(self, bandwidth: float) -> None:
        with self._lock:
            self._bandwidth = max(self._bandwidth, bandwidth)
        if self._total is not None:
            self._total.observe(bandwidth)

    def read(self) -> dict[str, float]:
        with self._lock:
            return {**self._sums, "bandwidth": self._bandwidth}

    def summary(self) -> dict[str, float]:
        """What `CompressionState.stats` tells of them."""
        sums = self.read()
        sums["ratio"] = sums["dense_bytes"] / sums["sent_bytes"] if sums["sent_bytes"] else 1.0
        sums["time_lost"] = time_lost(sums)
        return sums


def time_lost(sums: dict[str, float]) -> float:
    """Seconds per step that compression costs more than a dense all-reduce would; an estimate.

    A dense all-reduce receives 2 (W - 1) / W times the gradient. How long that takes is told by the
    bandwidth: the bytes that arrived in the fastest collective, by the time from its start to its
    end. That time holds latency, and waiting for slower ranks, so the true bandwidth is higher and
    the true dense time lower: when this is positive, compression loses time for certain; when it
    is negative, it may still do. Dense warm-up steps make the estimate sharp.
    """
    if not (sums["steps"] and sums["bandwidth"]):
        return 0.0
    spent = sums["compress_seconds"] + sums["wait_seconds"] + sums["decode_seconds"]
    return (spent - sums["dense_received_bytes"] / sums["bandwidth"]) / sums["steps"]


class Reporter:
    """Log lines and scalars every so many steps, and one warning."""

    def __init__(self, log_every: int, writer: Any) -> None:
        self.log_every = log_every
        self.writer = writer
        self._warned = False

    def due(self, step: int) -> bool:
        return bool(self.log_every) and step > 0 and step % self.log_every == 0

    def report(self, step: int, stats: dict[str, Any]) -> None:
        logger.info(
            "step %d: %.1fx fewer bytes (%.0f a step), compress %.2f ms, wait %.2f ms, decode %.2f ms, "
            "residual %.3g, %d steps skipped",
            step,
            stats["ratio"],
            stats["sent_bytes_per_step"],
            *(1000 * stats[name] / max(stats["steps"], 1) for name in SUMS[-3:]),
            stats["residual_norm"],
            stats["skipped_steps"],
        )
        if self.writer is not None:
            for name in SCALARS:
                self.writer.add_scalar(f"tersegrad/{name}", stats[name], step)

    def warn_of_lost_time(self, sums: dict[str, float]) -> None:
        """Once, after a trial."""
        if self._warned or sums["steps"] < TRIAL_STEPS:
            return
        lost = time_lost(sums)
        if lost > WORTH_SECONDS:
            self._warned = True
            logger.warning(
                "compression loses about %.1f ms a step here: compressing, waiting and decoding take longer "
                "than a dense all-reduce would at the %.0f MB/s that were measured. Use a cheaper codec, "
                'or measure with exchange="noop" what a free network would gain',
                1000 * lost,
                sums["bandwidth"] / 1e6,
            )
