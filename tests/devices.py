"""Where a test runs: on the host, on the host's memory through the device's code, or on a CUDA device.

`emulated` puts a native module in the place of `tersegrad._cuda` that works on memory of the host; tensors of the CPU then go the
way that CUDA tensors go. So all of it but torch's streams runs without a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import arrays
import pytest
import torch
from emulation import EMULATED

import tersegrad as tg
from tersegrad.device import serving

NO_CUDA = "" if torch.cuda.is_available() else "no CUDA device: see docs/cuda.md"
CUDA = pytest.param(
    "cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(bool(NO_CUDA), reason=NO_CUDA)]
)
#: For `pytest.mark.parametrize("device", ...)`.
DEVICES = ("emulated", CUDA)
#: What stands in for `tersegrad._cuda`: its own sources, on the host.
EMULATION: Any = EMULATED

#: One of each kind that has a form on the device.
CODECS: list[tg.Codec] = [
    tg.Identity(),
    tg.Cast(dtype="float16"),
    tg.Cast(dtype="bfloat16"),
    tg.Quantize(bits=8),
    tg.Quantize(bits=4, block_size=64),
    tg.Quantize(bits=2, block_size=1024),
    tg.Quantize(bits=4, block_size=320, rounding="stochastic", seed=7),
    tg.Sign(),
    tg.TopK(density=0.01),
    tg.TopK(k=5, values=tg.Quantize(bits=4), indices="elias-fano"),
    tg.TopK(density=0.3, values=tg.Cast(dtype="float16"), indices="bitmap"),
    tg.TopK(density=0.05, values=tg.Sign(block_size=64), indices="u16"),
    tg.ChunkTopK(),
    tg.ChunkTopK(k=3, chunk=250, values=tg.Quantize(bits=8, block_size=64)),
    tg.RandomK(density=0.02, seed=5),
    tg.RandomK(k=40, seed=2**63, values=tg.Quantize(bits=4)),
    tg.Magnitudes(),
    tg.Magnitudes(bits=7, block_size=64, grid="logarithmic"),
    tg.TopK(density=0.1, values=3),
    tg.Quantize(bits=4, scale="l2", rounding="stochastic", seed=6),
    tg.Natural(seed=3),
    tg.Float8(rounding="stochastic", seed=4),
    tg.Float8(format="e5m2", block_size=64),
    tg.NF4(),
    tg.TopK(density=0.1, values=tg.NF4()),
    tg.Ternary(block_size=64, threshold=0.7),
    tg.RandomK(density=0.3, values=tg.Ternary(block_size=128)),
    tg.Integers(bits=8, scale=2.0**-6),
    tg.Integers(bits=32, scale=1e-7, rounding="stochastic"),
    tg.RandomK(density=0.1, values=tg.Integers(bits=16, clip=4.0, addends=3)),
    tg.Rotated(),
    tg.Rotated(3, block=64, scale="mmse", seed=2**64 - 1),
    tg.Rotated(0.25, block=1024, seed=6),
]
#: And those that wait for the device, once a call, to know how large a body is: some entries are sent, none, or all.
WAITING: list[tg.Codec] = [
    tg.Threshold(value=0.5),
    tg.Threshold(value=1e9, values=tg.Quantize(bits=4)),
    tg.Threshold(value=0.0, values=tg.Sign(), indices="elias-fano"),
]


@contextlib.contextmanager
def on(device: str) -> Iterator[torch.device]:
    """Have `arrays.as_torch`, and torch's constructors, make tensors there."""
    place = torch.device("cuda" if device == "cuda" else "cpu")
    before, arrays.PLACE = arrays.PLACE, place
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(place)
            if device == "emulated":
                stack.enter_context(serving("cpu", EMULATION))
            yield place
    finally:
        arrays.PLACE = before
