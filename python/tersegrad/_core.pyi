"""Native kernels on contiguous arrays; use them through the tersegrad package.

Entries (`x`, `out`) are float32, float16, or uint16 holding the bits of bfloat16; `dtype`, `wire` and
`form` are numbers of docs/format.md. A returned bool is False when an entry is not finite.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer, CapsuleType

_Entries = npt.NDArray[Any]
_Floats = npt.NDArray[np.float32]
_Indices = npt.NDArray[np.uint32]
_Bytes = npt.NDArray[np.uint8]

def select_topk(
    x: _Entries, residual: _Floats | None, k: int, last_key: int = 0
) -> tuple[_Indices, _Floats, bool, int]: ...
def select_chunks(
    x: _Entries, residual: _Floats | None, k: int, chunk: int
) -> tuple[_Indices, _Floats, bool]: ...

class ValueCodec:
    """What becomes of every value: `kind` is identity, cast, quantize, sign, ternary, integers or rotated.

    A seed asks for stochastic rounding; it is always there for rotated.
    """

    def __init__(
        self,
        kind: str,
        wire: int = 1,
        bits: int = 8,
        block_size: int = 256,
        seed: int | None = None,
        threshold: float = 0.0,
        scale: float = 1.0,
        limit: float = 1.0,
        kept: int = 0,
        unbiased: bool = True,
    ) -> None: ...

class Codec:
    """A codec as one native call: `selection` is all, topk, chunks, random or threshold."""

    def __init__(
        self,
        selection: str,
        values: ValueCodec,
        density: float = 0.0,
        k: int = 0,
        chunk: int = 0,
        form: int = 0,
        mask_seed: int = 0,
        threshold: float = 0.0,
    ) -> None: ...
    def survivors(self, n: int) -> int: ...
    def form(self, n: int) -> int: ...
    def body_bytes(self, n: int, dtype: int) -> int: ...
    def encode(
        self,
        x: _Entries,
        residual: _Floats | None,
        dtype: int,
        step: int,
        last_key: int,
        body: _Bytes,
    ) -> tuple[bool, int, int]: ...
    def measure_stream(self, body: _Bytes, n: int) -> int: ...
    def check(self, body: _Bytes, dtype: int, n: int) -> None: ...
    def decode(
        self,
        body: _Bytes,
        dtype: int,
        step: int,
        out: _Entries,
        accumulate: bool,
        scale: float,
        blank: bool,
    ) -> None: ...
    def examine(self, body: _Bytes, dtype: int, n: int, step: int) -> tuple[float, float]: ...
    def add(self, body: _Bytes, dtype: int, step: int, out: _Entries, scale: float) -> None: ...

def address(x: npt.NDArray[Any]) -> int: ...
def locate_tensors(
    exchange: CapsuleType, tensors: list[Any], max_rank: int
) -> tuple[list[int], list[int], list[int], list[tuple[int, ...]]] | None: ...
def encode_many(
    codecs: Sequence[Codec],
    tensors: list[tuple[int, int, int, int, int, int]],
    step: int,
    checked: bool,
    all_or_none: bool,
) -> tuple[_Bytes, list[int], list[bool], list[int]]: ...
def encode_index(form: int, index: _Indices, n: int, stream: _Bytes) -> int: ...
def decode_index(form: int, stream: _Bytes, n: int, k: int) -> _Indices: ...
def draw_index(n: int, k: int, seed: int, step: int) -> _Indices: ...
def index_bytes(form: int, n: int, k: int) -> int: ...
def smallest_index_form(n: int, k: int) -> int: ...
def settle(residual: _Floats, index: _Indices, value: _Floats, decoded: _Floats) -> None: ...
def all_finite(x: _Entries) -> bool: ...
def accumulate(x: _Entries, residual: _Floats) -> bool: ...
def subtract(residual: _Floats, decoded: _Floats) -> None: ...
def widen(x: _Entries, out: _Floats) -> None: ...
def round_values(dtype: int, values: _Floats) -> None: ...
def emit(values: _Floats, out: _Entries, accumulate: bool, scale: float) -> None: ...
def crc32c(data: Buffer | _Bytes, crc: int = 0) -> int: ...
def kernels_available() -> list[str]: ...
def kernels_active() -> str: ...
def kernels_use(name: str) -> bool: ...
def thread_count() -> int: ...
def set_thread_count(count: int) -> None: ...
