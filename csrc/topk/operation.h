// Exact top-k of a whole tensor in one pass over memory: docs/format.md, codecs 5 and 6.
#pragma once

#include <cstdlib>
#include <memory>

#include "../tensor.h"

namespace tersegrad::topk {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// Entries that may be survivors, ascending by index. The arrays are malloc'ed, so that a caller can take them over.
struct Candidates {
  std::unique_ptr<uint32_t, Free> index;
  std::unique_ptr<float, Free> value;
  size_t count = 0, capacity = 0;

  // False when memory is out; the contents stay.
  bool reserve(size_t wanted);
  // Drops all but the first k by (key descending, index ascending); returns the k-th key. k <= count, k > 0.
  uint32_t keep_largest(size_t k);
};

enum class Outcome { ok, not_finite, out_of_memory };

// The first k of x + residual. A residual is left holding x + residual. 0 < k <= x.count < 2^32.
Outcome select(const Entries& x, float* residual, size_t k, Candidates& out);

// The first min(k, length) of every chunk of `chunk` entries.
Outcome select_chunks(const Entries& x, float* residual, size_t k, size_t chunk, uint32_t* index, float* value);

}  // namespace tersegrad::topk
