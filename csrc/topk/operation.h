// Exact top-k of a whole tensor in one pass over memory: docs/format.md, codecs 5 and 6.
#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

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

// Puts the candidates of ranges that follow each other side by side. False when memory is out.
bool join(std::vector<Candidates>& found, Candidates& out);

// The first k of x + residual. A residual is left holding x + residual. 0 < k <= x.count < 2^32. `last_key` is the k-th
// key of the last call on similar entries, which saves the sampling, or zero; it becomes the one of this call. False
// when memory is out. If x or the sums hold an infinity or NaN, so do the values that come out, since it outranks every
// number.
bool select(const Entries& x, float* residual, size_t k, uint32_t& last_key, Candidates& out);

// The same for every chunk of `chunk` entries: its first min(k, length).
bool select_chunks(const Entries& x, float* residual, size_t k, size_t chunk, uint32_t* index, float* value);

}  // namespace tersegrad::topk
