"""Scenarios: how messages travel, and what the average is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ddp_oracle import simulate
from ddp_workers import (
    CODEC,
    DDP,
    deep_model,
    descend,
    hooked,
    recorded_collectives,
    residuals_of,
    scenario,
    small_buckets,
    train,
    weights,
    wide_model,
)
from torch import nn

import tersegrad as tg
from tersegrad.ddp import MomentumCorrection, Warmup


@dataclass(frozen=True)
class Halve(tg.Codec, id=211):
    """A codec that the package does not know: every entry as int8, in steps of `unit`."""

    unit: float = 0.01

    def body_size(self, n: int, dtype: str = "float32") -> int:
        return n

    def _encode(self, values: np.ndarray, body: np.ndarray, dtype: str, step: int) -> None:
        body[:] = np.clip(np.rint(values / self.unit), -127, 127).astype(np.int8).view(np.uint8)

    def _decode(self, body: np.ndarray, values: np.ndarray, dtype: str, step: int) -> None:
        values[:] = body.view(np.int8) * np.float32(self.unit)


@scenario()
def sixteen_buckets(rank: int) -> Any:
    model = small_buckets(deep_model())
    state = hooked(model)
    with recorded_collectives() as calls:
        train(model, rank, range(5))
    return {
        "weights": weights(model),
        "simulated": simulate(deep_model(), CODEC, range(5)),
        "calls": calls,
        "stats": state.stats(),
    }


@scenario()
def every_codec(rank: int) -> Any:
    codecs = [
        tg.Identity(),
        tg.Cast(dtype="bfloat16"),
        tg.Quantize(bits=8),
        tg.Quantize(bits=2, rounding="stochastic", seed=5),
        tg.Sign(),
        tg.TopK(density=0.01, values=tg.Sign()),
        tg.TopK(k=3),
        tg.ChunkTopK(k=4, chunk=256, values=tg.Quantize(bits=8)),
        tg.RandomK(density=0.1, seed=3),
        tg.RandomK(density=0.1, values=tg.Quantize(bits=4, rounding="stochastic")),
        Halve(),
    ]
    results = {}
    for codec in codecs:
        for error_feedback in (True, False):
            model = DDP(deep_model())
            hooked(model, codec, error_feedback=error_feedback)
            train(model, rank, range(3))
            results[f"{codec!r}, error_feedback={error_feedback}"] = {
                "weights": weights(model),
                "simulated": simulate(deep_model(), codec, range(3), error_feedback),
            }
    return results


@scenario()
def half_precision(rank: int) -> Any:
    results = {}
    for dtype in (torch.float16, torch.bfloat16):
        model = small_buckets(deep_model(dtype))
        state = hooked(model)
        train(model, rank, range(4))
        results[str(dtype)] = {
            "weights": weights(model),
            "simulated": simulate(deep_model(dtype), CODEC, range(4)),
            "residuals": residuals_of(state),
        }
    return results


@scenario()
def lossless(rank: int) -> Any:
    """Identity against plain DDP: the hook divides by the number of ranks, once."""
    plain, model = small_buckets(deep_model()), small_buckets(deep_model())
    hooked(model, tg.Identity())
    for each in (plain, model):
        train(each, rank, range(3))
    return {"weights": weights(model), "plain": weights(plain)}


@scenario()
def two_step(rank: int) -> Any:
    """A weight of 90,000 entries is cut, and those of 14,400 have one owner or two."""
    results = {}
    for codec in (CODEC, tg.Quantize(bits=4, rounding="stochastic"), tg.RandomK(density=0.1)):
        for error_feedback in (True, False):
            model = small_buckets(wide_model())
            with recorded_collectives() as calls:
                options = {"exchange": "two_step", "error_feedback": error_feedback}
                state = hooked(model, codec, **options)
                train(model, rank, range(4))
            results[f"{codec!r} {error_feedback}"] = {
                "weights": weights(model),
                "simulated": simulate(wide_model(), codec, range(4), **options),
                "calls": calls,
                "forms": [bucket["exchange"] for bucket in state.stats()["buckets"]],
            }
    return results


@scenario()
def half_precision_in_two_steps(rank: int) -> Any:
    results = {}
    for dtype in (torch.float16, torch.bfloat16):
        model = small_buckets(deep_model(dtype))
        hooked(model, exchange="two_step", momentum=MomentumCorrection(0.5))
        train(model, rank, range(4))
        results[str(dtype)] = weights(model)
    return results


@scenario()
def noop(rank: int) -> Any:
    """Every rank goes its own way, and nothing is sent."""
    model = small_buckets(deep_model())
    with recorded_collectives() as calls:
        state = hooked(model, exchange="noop")
        train(model, rank, range(3))
    alone = deep_model()
    train(alone, rank, range(3))
    sent = [call for call in calls if call["name"] != "broadcast"]  # DDP's, of its buckets' sizes
    return {
        "weights": weights(model),
        "alone": weights(alone),
        "calls": sent,
        "stats": state.stats(),
    }


class Tiny(nn.Sequential):
    """Sixteen layers of 8 x 8, each a bucket."""

    def __init__(self, layers: int = 16) -> None:
        torch.manual_seed(7)
        super().__init__(*(nn.Linear(8, 8, bias=False) for _ in range(layers)))


def train_tiny(model: nn.Module, rank: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    for _ in range(steps):
        x = torch.randn(4, 8, generator=generator)
        (model(x) - 0.1).square().mean().backward()
        descend(model)


@scenario()
def two_thousand_steps(rank: int) -> Any:
    """Both collectives of the two-step exchange, of sixteen buckets, 2,000 times."""
    model = DDP(Tiny(), bucket_cap_mb=8 * 8 * 4 / 2**20)
    state = hooked(model, tg.TopK(density=0.1), min_size=1, exchange="two_step")
    train_tiny(model, rank, 2000)
    return {"weights": weights(model), "stats": state.stats(), "step": state.step}


@scenario()
def five_hundred_steps(rank: int) -> Any:
    """Replicas under every option that has to do with numbers."""
    momentum = MomentumCorrection(0.9, nesterov=True, clip_norm=1.0)
    runs: dict[str, dict[str, Any]] = {
        "sign": {"codec": tg.Sign()},
        "stochastic, two_step": {
            "codec": tg.Quantize(bits=2, rounding="stochastic"),
            "exchange": "two_step",
        },
        "warmup, momentum": {
            "codec": tg.TopK(density=0.02),
            "warmup": Warmup(20, (1.0, 0.5, 0.1)),
            "momentum": momentum,
        },
        "chunks, momentum, two_step": {
            "codec": tg.ChunkTopK(k=2, chunk=32, values=tg.Quantize(8)),
            "exchange": "two_step",
            "momentum": momentum,
        },
        "rules, no feedback": {
            "codec": tg.RandomK(density=0.3),
            "rules": {"0.*": tg.Identity(), "2.*": tg.Cast("bfloat16")},
            "error_feedback": False,
        },
        "scratch, careful": {"codec": CODEC, "scratch_bytes": 0, "rollback": False},
    }
    results = {}
    for name, options in runs.items():
        model = DDP(Tiny(4), bucket_cap_mb=8 * 8 * 4 / 2**20)
        hooked(model, options.pop("codec"), min_size=1, **options)
        train_tiny(model, rank, 500)
        results[name] = weights(model)
    return results
