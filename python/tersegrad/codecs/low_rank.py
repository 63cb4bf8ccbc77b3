"""A matrix as the product of two thin ones."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .. import _core
from ..buffers import DTYPE_CODES, DTYPES, ITEM_BYTES, Bytes, Floats
from ..codec import Call, Codec
from ..errors import CodecError, InputError
from .cast import Identity
from .check import check_choice, check_integer
from .once import Once

_PARAMS = struct.Struct("<BBHI")  # rank, dtype of the factors, zeros, columns
_IDENTITY = Identity()


@dataclass(frozen=True)
class LowRank(Codec, id=17):
    """PowerSGD (Vogels et al. 2019, "PowerSGD: practical low-rank gradient compression"): one step of power iteration.

    A tensor of shape ``(a, b, c...)`` is a matrix M of `a` rows and ``b * c * ...`` columns. Two factors travel,
    ``rank * (rows + columns)`` numbers: P, an orthonormal basis of ``M @ Q``, and a new ``Q = M.T @ P``; ``P @ Q.T`` is decoded.
    The Q of a call is where the next call on the same stream begins (`ErrorFeedback` and the DDP hook keep it), so that
    over a few steps P turns towards the largest singular vectors. Biased: use it with error feedback. Vectors, scalars
    and matrices that two factors do not make smaller travel as they are.

    Parameters
    ----------
    rank : int
        Columns of P and Q, 1 to 128.
    factors : {"float32", "bfloat16"}
        What the entries of P and Q travel as. bfloat16 halves the bytes; error feedback sends later what it loses.
    columns : int, optional
        Of the matrix that a flat tensor holds row by row. By default the tensor's shape says it, see `for_shape`.
    seed : int
        Of the random Q that begins a stream. It does not travel.

    Examples
    --------
    >>> import numpy as np, tersegrad as tg
    >>> matrix = np.outer(np.arange(8), np.ones(100)).astype(np.float32)
    >>> payload = tg.compress(matrix, tg.LowRank(rank=1))
    >>> payload.body.nbytes
    432
    >>> bool(np.allclose(tg.decompress(payload), matrix, atol=1e-5))
    True
    """

    rank: int = 4
    factors: Literal["float32", "bfloat16"] = "float32"
    columns: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("LowRank", "rank", self.rank, 1, 128)
        check_choice("LowRank", "factors", self.factors, ("float32", "bfloat16"))
        if self.columns is not None:
            check_integer("LowRank", "columns", self.columns, 1, 2**32 - 1)
        check_integer("LowRank", "seed", self.seed, 0, 2**64 - 1)

    def for_shape(self, shape: Sequence[int]) -> LowRank:
        if self.columns is not None or len(shape) < 2:
            return self
        columns = math.prod(shape[1:])
        return replace(self, columns=columns) if 0 < columns < 2**32 else self

    def rows(self, n: int, dtype: str = "float32") -> int:
        """Rows of the matrix that `n` entries are, or 0 where they travel as they are."""
        columns = self.columns
        if columns is None or n % columns:
            return 0
        rows = n // columns
        smaller = self._factor_bytes(rows) < n * ITEM_BYTES[dtype]
        return rows if smaller and self.rank <= min(rows, columns) else 0

    def _factor_bytes(self, rows: int) -> int:
        return self.rank * (rows + (self.columns or 0)) * ITEM_BYTES[self.factors]

    def body_size(self, n: int, dtype: str = "float32") -> int:
        if dtype not in DTYPE_CODES or not isinstance(n, (int, np.integer)) or n < 0:
            raise InputError(
                f"body_size takes a count of entries and one of {', '.join(DTYPE_CODES)}, not {n!r} and {dtype!r}"
            )
        rows = self.rows(int(n), dtype)
        return self._factor_bytes(rows) if rows else int(n) * ITEM_BYTES[dtype]

    def _params(self) -> bytes:
        return _PARAMS.pack(self.rank, DTYPE_CODES[self.factors], 0, self.columns or 0)

    @classmethod
    def _from_params(cls, params: bytes) -> LowRank:
        rank, factors, _, columns = _PARAMS.unpack_from(params)
        if factors not in DTYPES:
            raise CodecError(f"LowRank: dtype code {factors} is unknown")
        kind: Any = DTYPES[factors]
        return cls(rank=rank, factors=kind, columns=columns or None)

    @Once
    def _factor_code(self) -> int:
        return DTYPE_CODES[self.factors]

    def _new_factors(self, rows: int) -> tuple[Floats, Floats]:
        columns = self.columns or 0
        return np.empty(rows * self.rank, np.float32), np.empty(columns * self.rank, np.float32)

    def _compress(
        self, x: npt.NDArray[Any], dtype: str, body: Bytes, residual: Floats | None, call: Call
    ) -> bool:
        rows = self.rows(x.size, dtype)
        if rows == 0:
            return _IDENTITY._compress(x, dtype, body, residual, call)
        if residual is None and x.dtype != np.float32:
            wide = np.empty(x.size, np.float32)
            _core.widen(x, wide)
            x = wide
        matrix = x if residual is None else residual
        assert self.columns is not None
        columns, ranks = [self.columns], [self.rank]
        p, q = self._new_factors(rows)
        memory = call.memory
        if memory is not None and memory.size != q.size:
            memory = None
        if not all(
            _core.lowrank_first([x], [residual], columns, ranks, [self.seed], [memory], [p], [q])
        ):
            return False
        _core.lowrank_second([matrix], columns, ranks, self._factor_code, [p], [q])
        _core.lowrank_write(p, q, self._factor_code, body)
        if residual is not None:
            _core.lowrank_subtract([residual], columns, ranks, [p], [q], DTYPE_CODES[dtype])
        call.memory = q
        return True

    def _read(self, body: Bytes, rows: int) -> tuple[Floats, Floats]:
        p, q = self._new_factors(rows)
        _core.lowrank_read(body, self._factor_code, p, q)
        return p, q

    def _decompress(
        self,
        body: Bytes,
        dtype: str,
        step: int,
        out: npt.NDArray[Any],
        accumulate: bool,
        scale: float,
        blank: bool,
    ) -> None:
        rows = self.rows(out.size, dtype)
        if rows == 0:
            _IDENTITY._decompress(body, dtype, step, out, accumulate, scale, blank)
            return
        p, q = self._read(body, rows)
        assert self.columns is not None
        code = DTYPE_CODES[dtype]
        _core.lowrank_decode(p, q, self.columns, self.rank, code, out, accumulate, scale)

    def _check(self, body: Bytes, n: int, dtype: str, step: int) -> None:
        rows = self.rows(n, dtype)
        if rows == 0:
            _IDENTITY._check(body, n, dtype, step)
        else:
            self._read(body, rows)

    def _examine(self, body: Bytes, n: int, dtype: str, step: int) -> tuple[float, float]:
        rows = self.rows(n, dtype)
        if rows == 0:
            return _IDENTITY._examine(body, n, dtype, step)
        p, q = self._read(body, rows)
        assert self.columns is not None
        return _core.lowrank_measure(p, q, n, self.columns, self.rank, DTYPE_CODES[dtype])
