"""Try an installed tersegrad where there is nothing but NumPy.

Every codec on every kernel variant, and the import time.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import numpy as np

import tersegrad as tg

CODECS = [
    tg.Identity(),
    tg.Cast(dtype="float16"),
    tg.Quantize(bits=8),
    tg.Quantize(bits=2, rounding="stochastic", seed=1),
    tg.Sign(),
    tg.TopK(density=0.01, values=tg.Quantize(bits=4)),
    tg.ChunkTopK(),
    tg.RandomK(density=0.1, seed=3),
]
IMPORT_SECONDS = 0.2  # beyond NumPy's own


def import_seconds(module: str) -> float:
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    times = [
        float(subprocess.check_output([sys.executable, "-c", f"import numpy; {code}"]))
        for _ in range(5)
    ]
    return min(times)


def main() -> None:
    variants = tg.kernels.available()
    print(f"tersegrad {tg.__version__} at {tg.__file__}, kernels {', '.join(variants)}")
    assert tg.__version__ == importlib.metadata.version("tersegrad")
    assert "torch" not in sys.modules

    x = np.random.default_rng(0).standard_normal(100_000, dtype=np.float32)
    for codec in CODECS:
        messages = set()
        for variant in variants:
            with tg.kernels.use(variant):
                residual = np.zeros_like(x)
                message = bytes(tg.compress(x, codec, residual=residual))
                assert np.array_equal(residual, x - tg.decompress(message)), (codec, variant)
                messages.add(message)
        assert len(messages) == 1, f"{codec}: the variants write different bytes"
        print(f"{4 * x.size / len(message):6.1f}x  {codec}")

    client, server = tg.federated.Client(CODECS[-3]), tg.federated.Server({"x": x})
    server.add(client.encode({"x": x}), weight=2)
    assert np.array_equal(server.mean()["x"], tg.decompress(tg.compress(x, CODECS[-3])))

    seconds = import_seconds("tersegrad")
    print(f"import tersegrad: {1000 * seconds:.0f} ms")
    assert seconds < IMPORT_SECONDS, f"importing takes {seconds:.3f} s"


if __name__ == "__main__":
    main()
