"""Write the golden files of format version 1: `python tests/golden/make.py`.

The oracle makes them, from an input made of integers alone, so that no library can change them.
Existing files never change: what differs is reported and nothing is overwritten. A new case is a
new line in CASES and a new file; a new format version is a new folder. SHA256SUMS holds, per file,
the digest of the payload and of the decoded float32 values.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import reference as ref

FOLDER = Path(__file__).resolve().parent / "v1"
SUMS = FOLDER / "SHA256SUMS"
SHAPE = (5, 121)
STEP = 9

# Name -> (class, fields): the same fields make the oracle's codec and tersegrad's.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "identity": ("Identity", {}),
    "cast-float16": ("Cast", {"dtype": "float16"}),
    "cast-bfloat16": ("Cast", {"dtype": "bfloat16"}),
    "cast-float32": ("Cast", {"dtype": "float32"}),
    "quantize-8": ("Quantize", {"bits": 8}),
    "quantize-4-block64": ("Quantize", {"bits": 4, "block_size": 64}),
    "quantize-2": ("Quantize", {"bits": 2}),
    "quantize-4-stochastic": (
        "Quantize",
        {"bits": 4, "rounding": "stochastic", "seed": 0x123456789ABCDEF0},
    ),
    "sign": ("Sign", {}),
    "sign-block64": ("Sign", {"block_size": 64}),
    "topk-elias-fano": ("TopK", {"k": 37, "indices": "elias-fano"}),
    "topk-bitmap-quantize-4": (
        "TopK",
        {"k": 200, "values": ("Quantize", {"bits": 4}), "indices": "bitmap"},
    ),
    "topk-u16-sign": (
        "TopK",
        {"k": 30, "values": ("Sign", {"block_size": 64}), "indices": "u16"},
    ),
    "topk-auto-cast-bfloat16": ("TopK", {"k": 61, "values": ("Cast", {"dtype": "bfloat16"})}),
    "topk-all": ("TopK", {"k": 605, "values": ("Quantize", {"bits": 2})}),
    "chunktopk-auto": ("ChunkTopK", {"k": 7, "chunk": 100}),
    "chunktopk-quantize-8": (
        "ChunkTopK",
        {"k": 3, "chunk": 64, "values": ("Quantize", {"bits": 8})},
    ),
    "randomk": ("RandomK", {"k": 50, "seed": 0xFEDCBA9876543210}),
    "randomk-quantize-4": ("RandomK", {"k": 111, "seed": 5, "values": ("Quantize", {"bits": 4})}),
    "ternary": ("Ternary", {}),
    "ternary-threshold": ("Ternary", {"block_size": 64, "threshold": 0.7}),
    "topk-rice": ("TopK", {"k": 61, "indices": "rice"}),
    "topk-rice-ternary": (
        "TopK",
        {"k": 150, "values": ("Ternary", {"block_size": 64}), "indices": "rice"},
    ),
    "chunktopk-rice": (
        "ChunkTopK",
        {"k": 7, "chunk": 100, "values": ("Quantize", {"bits": 4}), "indices": "rice"},
    ),
    "integers-8": ("Integers", {"bits": 8, "scale": 0.25}),
    "integers-16-stochastic": (
        "Integers",
        {"bits": 16, "scale": 2.0**-10, "addends": 16, "rounding": "stochastic", "seed": 77},
    ),
    "integers-32": ("Integers", {"bits": 32, "scale": 2.0**-24}),
    "randomk-integers-16": (
        "RandomK",
        {"k": 111, "seed": 5, "values": ("Integers", {"bits": 16, "scale": 0.0078125})},
    ),
    "rotated-1-mmse": ("Rotated", {"bits": 1, "block": 256, "scale": "mmse"}),
    "rotated-2": ("Rotated", {"bits": 2, "block": 64, "seed": 0x123456789ABCDEF0}),
    "rotated-3": ("Rotated", {"bits": 3, "block": 256}),
    "rotated-4": ("Rotated", {"bits": 4}),
    "rotated-quarter": ("Rotated", {"bits": 0.25, "block": 256, "seed": 7}),
    "threshold": ("Threshold", {"value": 0.75}),
    "threshold-density": (
        "Threshold",
        {"density": 0.1, "values": ("Quantize", {"bits": 4}), "indices": "elias-fano"},
    ),
    "threshold-rice": ("Threshold", {"density": 0.2, "indices": "rice"}),
    "threshold-none": ("Threshold", {"value": 1e6, "indices": "bitmap"}),
}  # fmt: skip


def build(case: tuple[str, dict[str, Any]], module: Any = ref) -> Any:
    """The codec of a case, from the classes of the oracle or of tersegrad."""
    kind, fields = case
    made = {
        name: build(value, module) if isinstance(value, tuple) else value
        for name, value in fields.items()
    }
    return getattr(module, kind)(**made)


def golden_input(dtype: str) -> np.ndarray:
    """Signed 12-bit integers times 2^-20 to 2^3, with zeros and ties: exact in float32."""
    n = SHAPE[0] * SHAPE[1]
    values = []
    state = 2024
    for _ in range(n):
        state = (state * 1664525 + 1013904223) % 2**32
        integer = (state >> 8) % 4096 - 2048
        exponent = (state >> 24) % 24 - 20
        values.append(0.0 if state >> 20 & 15 == 0 else integer * 2.0**exponent)
    values[100:110] = [2.0, -2.0] * 5
    values[200] = -0.0
    values[300] = 2.0**-149
    values[301] = -(2.0**-126)
    values[302] = 4000.0
    return ref.store(np.array(values, np.float32), dtype).reshape(SHAPE)


def golden_payloads() -> dict[str, bytes]:
    payloads = {}
    for dtype in ref.DTYPE_IDS:
        for name, case in CASES.items():
            payloads[f"{name}.{dtype}.tgrd"] = ref.compress(
                golden_input(dtype), build(case), step=STEP
            )[0]
    return payloads


def line_of(name: str, payload: bytes) -> str:
    decoded = ref.decompress(payload)[0].astype("<f4").tobytes()
    return f"{hashlib.sha256(payload).hexdigest()}  {hashlib.sha256(decoded).hexdigest()}  {name}"


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    differing = []
    known = SUMS.read_text().splitlines() if SUMS.exists() else []
    listed = {line.split()[-1]: line for line in known}
    for name, payload in golden_payloads().items():
        path = FOLDER / name
        line = line_of(name, payload)
        if listed.get(name, line) != line or (path.exists() and path.read_bytes() != payload):
            differing.append(name)
            continue
        path.write_bytes(payload)
        listed[name] = line
    SUMS.write_text("\n".join(listed.values()) + "\n")
    for name in differing:
        print(f"{name}: the oracle gives other bytes; golden files never change, so it errs")
    print(f"{len(listed)} golden files in {FOLDER}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
