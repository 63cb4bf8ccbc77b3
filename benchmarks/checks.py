"""The answers, asserted inside of the benchmarks: a fast wrong row must not appear in a table."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import tersegrad as tg
from tersegrad import _core
from tersegrad.buffers import view

#: One of every kind, for the checks.
CODECS: tuple[tg.Codec, ...] = (
    *(tg.Quantize(bits=bits) for bits in (8, 4, 2)),
    *(tg.Quantize(bits=bits, rounding="stochastic") for bits in (8, 4, 2)),
    tg.Sign(),
    tg.Cast(dtype="float16"),
    tg.Cast(dtype="bfloat16"),
    tg.TopK(0.01),
    tg.TopK(0.01, values=tg.Quantize(bits=4)),
    tg.TopK(0.01, values=4),
    tg.ChunkTopK(k=64, chunk=4096),
    tg.RandomK(0.01),
)


def expected_topk(x: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """The k entries of largest magnitude by NumPy, ties to the lower index, ascending."""
    key = x.view(np.uint32) & np.uint32(0x7FFFFFFF)
    kth = np.partition(key, key.size - k)[key.size - k]
    above = np.flatnonzero(key > kth)
    ties = np.flatnonzero(key == kth)[: k - above.size]
    return np.sort(np.concatenate([above, ties]))


def check_topk(
    x: npt.NDArray[np.float32], index: npt.NDArray[Any], value: npt.NDArray[Any]
) -> None:
    """Assert that these are the exact, ordered top-k of x."""
    expected = expected_topk(x, index.size)
    assert np.array_equal(index, expected), "not the exact top-k set"
    assert np.array_equal(value.view(np.uint32), x[expected].view(np.uint32)), "not the values of x"


def check_operations(gradient: torch.Tensor, part: int = 200_001) -> None:
    """Assert the answers of what the tables time: top-k on all of it, the codecs on a part."""
    flat, wide = view(gradient).array, gradient.float().numpy()
    for density in (0.0001, 0.001, 0.01, 0.1):
        k = max(1, round(density * wide.size))
        check_topk(wide, *_core.select_topk(flat, None, k)[:2])
    if gradient.dtype is not torch.float32:
        return
    for codec in CODECS:
        check_codec(wide[:part], codec)


def nmse(x: npt.NDArray[np.float32], decoded: npt.NDArray[np.float32]) -> float:
    """Normalised mean squared error: |x - decoded|^2 / |x|^2."""
    error = (x - decoded).astype(np.float64)
    power = float(np.square(x, dtype=np.float64).sum())
    return float(np.square(error).sum()) / power if power else float(np.any(error))


def check_codec(x: npt.NDArray[np.float32], codec: tg.Codec) -> tuple[tg.Payload, float]:
    """Compress, check the laws and the error bound of the codec, give the payload and its NMSE."""
    payload = tg.compress(x, codec)
    assert payload.nbytes == 40 + 8 * x.ndim + codec.body_size(x.size), "body_size is not exact"
    decoded: Any = tg.decompress(bytes(payload))
    error = np.abs(x - decoded)
    if isinstance(codec, tg.Quantize) and codec.scale == "max":
        steps = 2 ** (codec.bits - 1) - 1
        blocks = np.pad(np.abs(x), (0, -x.size % codec.block_size)).reshape(-1, codec.block_size)
        step = np.repeat(blocks.max(axis=1) / steps, codec.block_size)[: x.size]
        half = 0.5 if codec.rounding == "nearest" else 1.0
        assert np.all(error <= step * (half * 1.0001) + 1e-30), "quantization error above its bound"
    elif isinstance(codec, tg.Cast):
        unit = 2.0**-11 if codec.dtype == "float16" else 2.0**-8
        assert np.all(error <= np.abs(x) * unit + 2.0**-25), "cast error above its bound"
    elif isinstance(codec, tg.TopK) and codec.values is None:
        kept = np.flatnonzero(decoded)
        exact = expected_topk(x, max(1, round((codec.density or 0) * x.size)))
        assert np.array_equal(decoded[exact], x[exact]), "kept values must be exact"
        assert np.isin(kept, exact, assume_unique=True).all(), (
            "an entry outside of the top-k was kept"
        )
    residual = np.zeros_like(x)
    again = tg.compress(x, codec, residual=residual)
    assert bytes(again) == bytes(payload), "a zero residual must change nothing"
    assert np.array_equal(residual, x - decoded), "the residual is not what was lost"
    return payload, nmse(x, decoded)
