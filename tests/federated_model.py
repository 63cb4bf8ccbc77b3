"""A small model, updates of it, and a codec with a mistake: for the tests of tersegrad.federated."""

from __future__ import annotations

from typing import Any

import numpy as np
from contract import CODECS, Grid

import tersegrad as tg
from tersegrad.federated import Limits

MODEL: dict[str, Any] = {
    "conv": np.zeros((8, 3, 5, 5), np.float32),
    "batches": np.zeros((), np.int64),
    "bias": np.zeros(33, np.float32),
    "mask": np.zeros((2, 3), bool),
    "dense": np.zeros((70, 61), np.float32),
    "none": np.zeros((0, 4), np.float32),
}
FLOATS = [name for name, x in MODEL.items() if x.dtype == np.float32]
ANY = Limits(
    codecs=tuple(
        {type(codec) for codec in CODECS} | {Grid, tg.Quantize, tg.Cast, tg.Sign, tg.Ternary}
    )
)
TOP = tg.TopK(density=0.1, values=tg.Quantize(bits=8))


def update(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = {name: rng.standard_normal(MODEL[name].shape).astype(np.float32) for name in FLOATS}
    return made | {"batches": np.array(seed), "mask": rng.random((2, 3)) < 0.5}


def assert_same(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert sorted(got) == sorted(wanted)
    for name, x in wanted.items():
        assert got[name].dtype == x.dtype, name
        assert got[name].shape == x.shape, name
        assert got[name].tobytes() == x.tobytes(), name


class Bomb(tg.Codec, id=231):
    """A codec whose author made a mistake."""

    def body_size(self, n: int, dtype: str = "float32") -> int:
        return n

    def _encode(self, values: Any, body: Any, dtype: str, step: int) -> None:
        raise ZeroDivisionError

    def _decode(self, body: Any, values: Any, dtype: str, step: int) -> None:
        raise IndexError("out of luck")
