"""What memory itself allows, measured in the same run as everything else.

`read` and `write streaming` are the fastest that plain C reaches here: a vector read with software
prefetch, and stores that go past the caches. They are compiled when a benchmark starts, if there
is a compiler; else NumPy stands in (np.max reads about 6 % slower, np.fill writes 2.7 times slower
where measured) and the table says so.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from harness import Row

_SOURCE = r"""
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

/* ORs all words, so that every one has to arrive; 4 KiB ahead is as far as helps. */
uint64_t read_all(const uint64_t *p, size_t n) {
  uint64_t sum[32] = {0};
  for (size_t i = 0; i + 32 <= n; i += 32) {
    const char *ahead = (const char *)(p + i) + 4096;
    for (int line = 0; line < 4; ++line) __builtin_prefetch(ahead + 64 * line);
    for (int j = 0; j < 32; ++j) sum[j] |= p[i + j];
  }
  uint64_t all = 0;
  for (int j = 0; j < 32; ++j) all |= sum[j];
  return all;
}

/* Writes past the caches where the processor can: no line is read before it is overwritten. */
void write_all(char *p, size_t n) {
  char *end = p + n;
  while (((uintptr_t)p & 63) && p < end) *p++ = 1;
#ifdef __AVX512F__
  __m512i one = _mm512_set1_epi32(1);
  for (; p + 64 <= end; p += 64) _mm512_stream_si512((void *)p, one);
  _mm_sfence();
#elif defined(__SSE2__)
  __m128i one = _mm_set1_epi32(1);
  for (; p + 16 <= end; p += 16) _mm_stream_si128((__m128i *)p, one);
  _mm_sfence();
#endif
  memset(p, 1, (size_t)(end - p));
}
"""


@cache
def _compiled() -> ctypes.CDLL | None:
    """The two loops, or None without a C compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "roofline.c"), Path(folder, "roofline.so")
        source.write_text(_SOURCE)
        command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", str(source)]
        command += ["-o", str(library)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
        loaded = ctypes.CDLL(str(library))
    loaded.read_all.restype = ctypes.c_uint64
    return loaded


def reader(x: npt.NDArray[np.generic]) -> Callable[[], object]:
    """Reads all of x once, with prefetch."""
    c = _compiled()
    if c is None:
        return x.max
    at, words = ctypes.c_void_p(x.ctypes.data), ctypes.c_size_t(x.nbytes // 8)
    return lambda: c.read_all(at, words)


def writer(x: npt.NDArray[np.generic]) -> Callable[[], object]:
    """Overwrites all of x once, past the caches where possible."""
    c = _compiled()
    if c is None:
        return lambda: x.fill(1)
    at, size = ctypes.c_void_p(x.ctypes.data), ctypes.c_size_t(x.nbytes)
    return lambda: c.write_all(at, size)


def how() -> str:
    """What `read` and `write streaming` are in this run."""
    if _compiled() is None:
        return "no C compiler: `read` is np.max and `write streaming` is np.fill"
    return "`read` and `write streaming` are compiled C: prefetch and non-temporal stores"


def rows(
    x: npt.NDArray[np.float32],
    gradient: torch.Tensor,
    residual: torch.Tensor,
    restore: Callable[[], object] | None = None,
) -> list[Row]:
    """The rows that all others are compared with; `restore` puts the residual back."""
    other = np.empty_like(x)
    return [
        Row("read", reader(x), x.nbytes),
        Row("read np.max", x.max, x.nbytes),
        Row("copy", lambda: np.copyto(other, x), x.nbytes),
        Row("write", lambda: other.fill(1), x.nbytes),
        Row("write streaming", writer(other), x.nbytes),
        Row("r += g", lambda: torch.add(residual, gradient, out=residual), x.nbytes, restore),
    ]
