"""Scenarios: the options."""

from __future__ import annotations

import logging
from typing import Any

from ddp_oracle import simulate, usual_codec
from ddp_workers import (
    CODEC,
    deep_model,
    hooked,
    scenario,
    small_buckets,
    train,
    weights,
    wide_model,
)

import tersegrad as tg
from tersegrad.ddp import MomentumCorrection, Rule, Warmup


@scenario()
def warmup(rank: int) -> Any:
    plain, model = small_buckets(deep_model()), small_buckets(deep_model())
    state = hooked(model, warmup_steps=2)
    for each in (plain, model):
        train(each, rank, range(2))
    result = {"weights": weights(model), "plain": weights(plain), "warm": state.stats()}
    state.reset_stats()
    train(model, rank, range(2, 4))
    return {**result, "after": state.stats(), "weights after": weights(model)}


@scenario()
def warmup_phases(rank: int) -> Any:
    """Two dense steps, two of a quarter, then the codec's own twentieth, less than the last phase."""
    model = small_buckets(deep_model())
    state = hooked(model, warmup=Warmup(2, (1.0, 0.25, 0.01)))
    sent = []
    for step in range(6):
        state.reset_stats()
        train(model, rank, range(step, step + 1))
        sent.append(state.stats()["sent_bytes"])

    def codec_at(codec: tg.Codec, step: int) -> tg.Codec | None:
        if step < 2:
            return None
        dense = isinstance(codec, tg.Identity)
        return codec if dense or step >= 4 else tg.TopK(density=0.25, values=codec.values)

    simulated = simulate(deep_model(), CODEC, range(6), codec_at=codec_at)
    return {"weights": weights(model), "simulated": simulated, "sent": sent}


@scenario()
def momentum_correction(rank: int) -> Any:
    results = {}
    for name, options in {
        "masking": {},
        "no masking": {"masking": False},
        "nesterov": {"nesterov": True},
    }.items():
        momentum = MomentumCorrection(0.5, **options)
        for exchange in ("all_gather", "two_step"):
            model = small_buckets(wide_model())
            hooked(model, exchange=exchange, momentum=momentum)
            train(model, rank, range(4))
            settings = {"exchange": exchange, "momentum": momentum}
            results[f"{name} {exchange}"] = {
                "weights": weights(model),
                "simulated": simulate(wide_model(), CODEC, range(4), **settings),
            }
    return results


def by_name(name: str, parameter: Any) -> tg.Codec | None:
    return tg.Identity() if name.startswith("0.") else None


@scenario()
def rules(rank: int) -> Any:
    """The first rule that fits decides, whatever the size."""
    small = tg.Quantize(bits=8)
    books = {
        "dict": {"0.weight": tg.Identity(), "*.weight": small},
        "list": [Rule(tg.Identity(), name="0.*"), Rule(small, min_size=50, ndim=2)],
        "function": by_name,
    }
    chosen = {
        "dict": lambda name, p: (
            tg.Identity() if name == "0.weight" or not name.endswith("weight") else small
        ),
        "list": lambda name, p: tg.Identity() if name.startswith("0.") or p.dim() < 2 else small,
        "function": lambda name, p: (
            tg.Identity() if name.startswith("0.") else usual_codec(CODEC)(name, p)
        ),
    }
    results = {}
    for name, book in books.items():
        model = small_buckets(deep_model())
        state = hooked(model, rules=book)
        train(model, rank, range(3))
        (own,) = state.state_dict()["ranks"].values()
        results[name] = {
            "weights": weights(model),
            "simulated": simulate(deep_model(), CODEC, range(3), codec_of=chosen[name]),
            "residuals": list(own["residuals"]),
        }
    return results


@scenario()
def scratch_budget(rank: int) -> Any:
    results = {}
    for budget in (None, 1000, 0):
        for exchange in ("all_gather", "two_step"):
            model = small_buckets(deep_model())
            state = hooked(model, scratch_bytes=budget, exchange=exchange)
            train(model, rank, range(3))
            kept = state.stats()["scratch_bytes"]
            results[f"{exchange} {budget}"] = {"weights": weights(model), "kept": kept}
    return results


class Writer:
    """Like TensorBoard's."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.append((tag, value, step))


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


@scenario()
def telemetry(rank: int) -> Any:
    writer, lines = Writer(), Lines()
    logger = logging.getLogger("tersegrad.ddp")
    logger.setLevel(logging.INFO)
    logger.addHandler(lines)
    model = small_buckets(deep_model())
    state = hooked(model, log_every=2, writer=writer)
    train(model, rank, range(5))
    stats = state.stats()
    logger.removeHandler(lines)
    return {
        "stats": stats,
        "scalars": writer.scalars,
        "lines": lines.lines,
        "norm": state.norm(),
    }
