"""Write the fuzzer's seeds from the golden files: `python tests/fuzz/make_corpus.py`.

The head that decode.cpp reads, in its words, then a golden body.
"""

from __future__ import annotations

import struct
from pathlib import Path

import tersegrad as tg
from tersegrad.buffers import DTYPE_CODES
from tersegrad.codecs.native import Dense
from tersegrad.codecs.sparse import INDEX_FORMS, Indexed

HERE = Path(__file__).resolve().parent
SELECTIONS = {tg.TopK: 1, tg.ChunkTopK: 2, tg.RandomK: 3}
KINDS = {tg.Identity: 0, tg.Cast: 1, tg.Quantize: 2, tg.Sign: 3, tg.Ternary: 0}
LATER_KINDS = {tg.Integers: 0, tg.Rotated: 1}
# Bits of the shape, before form and kind.
QUARTER, RICE, TERNARY, LATER, DENSITY = 4, 16, 32, 64, 128
THRESHOLD = RICE  # where nothing is selected
BLOCKS = {64: 0, 256: 1, 1024: 2, 4096: 3}


def head_of(payload: tg.Payload) -> bytes:
    codec = payload.codec
    values = codec if isinstance(codec, Dense) else codec._value_codec  # type: ignore[attr-defined]
    n = payload.shape[0] * payload.shape[1]
    form = codec._form() if isinstance(codec, Indexed) else 0
    wire = DTYPE_CODES[values.dtype] - 1 if isinstance(values, tg.Cast) else 0
    rice = form == INDEX_FORMS.index("rice") + 1
    choice = (
        SELECTIONS.get(type(codec), 0)
        | (0 if rice else form) << 2
        | (KINDS | LATER_KINDS)[type(values)] << 4
        | (wire & 3) << 6
    )
    if isinstance(values, tg.Rotated):
        shape = BLOCKS[values.block] | QUARTER * (values.bits == 0.25)
        choice |= 0 if values.bits == 0.25 else int(values.bits) - 1 << 6
    else:
        shape = BLOCKS[getattr(values, "block_size", 64)]
        shape |= {8: 0, 4: 1, 2: 2, 16: 1, 32: 2}[getattr(values, "bits", 8)] << 2
    shape |= RICE * rice | TERNARY * isinstance(values, tg.Ternary)
    shape |= LATER * (type(values) in LATER_KINDS)
    if isinstance(codec, tg.Threshold):
        shape = shape & ~RICE | THRESHOLD | DENSITY * rice
    k = getattr(codec, "k", 1)
    # 605 entries are 151 << 2 and one: the lowest bit of 151, under a mask of one.
    dtype = DTYPE_CODES[payload.dtype] - 1
    head = struct.pack("<BBBBH", dtype << 5 | 1 << 3 | 1 << 2, n // 4, choice, shape, k - 1)
    if isinstance(codec, tg.ChunkTopK):
        head = head[:-2] + struct.pack("<HH", k - 2, codec.chunk - 1)
    return head


def main() -> None:
    for path in sorted((HERE.parent / "golden" / "v1").glob("*.tgrd")):
        payload = tg.Payload.from_bytes(path.read_bytes())
        seed = head_of(payload) + bytes(memoryview(payload._body))
        (HERE / "corpus" / path.stem).write_bytes(seed)


if __name__ == "__main__":
    main()
