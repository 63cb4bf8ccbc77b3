// What the operations share: views of a caller's tensors, and how a tensor is cut into chunks for the pool.
#pragma once

#include <algorithm>
#include <atomic>

#include "kernels.h"
#include "pool.h"

namespace tersegrad {

// Entries that are read: x of docs/format.md.
struct Entries {
  const void* data;
  DType dtype;
  size_t count;

  const void* at(size_t i) const { return static_cast<const char*>(data) + i * item_bytes(dtype); }
  const float* floats() const { return static_cast<const float*>(data); }
};

constexpr size_t kStreamFrom = 8 * 1024 * 1024;

// Where decoded values go: stored, or added after multiplying by `scale`.
struct Output {
  void* data;
  DType dtype;
  size_t count;
  bool accumulate;
  float scale;

  void* at(size_t i) const { return static_cast<char*>(data) + i * item_bytes(dtype); }
  // Whether decoded values can be written where they belong. Large outputs are better streamed there from a piece in
  // cache: their lines need not be read first, and would be evicted before their next use.
  bool is_direct() const { return dtype == DType::float32 && !accumulate && scale == 1.0f && count < kStreamFrom; }

  // Takes `n` decoded values for entries from `i` on; may change them.
  void emit(size_t i, float* values, size_t n) const;
};

// A piece stays in L1 while several kernels run over it; a chunk is what a thread takes at a time.
constexpr size_t kPiece = 1024;
constexpr size_t kChunk = 64 * 1024;

// Below this many entries one thread is faster than waking a second.
constexpr size_t kParallelFrom = 256 * 1024;

// Calls body(begin, end) over [0, n) in chunks that are multiples of `unit`, on the pool when n is large.
template <class Body>
void for_each_chunk(size_t n, size_t unit, Body&& body) {
  if (n == 0) return;
  size_t chunk = n < kParallelFrom ? n : std::max(unit, kChunk / unit * unit);
  parallel_for((n + chunk - 1) / chunk, [&](size_t task) {
    size_t begin = task * chunk;
    body(begin, std::min(n, begin + chunk));
    active().end_stream();
  });
}

// Calls body(begin, length) over [begin, end) in pieces.
template <class Body>
void for_each_piece(size_t begin, size_t end, Body&& body) {
  for (size_t i = begin; i < end; i += kPiece) body(i, std::min(kPiece, end - i));
}

// The maximum of what threads report.
class LargestKey {
 public:
  void add(uint32_t key) {
    uint32_t seen = key_.load(std::memory_order_relaxed);
    while (key > seen && !key_.compare_exchange_weak(seen, key, std::memory_order_relaxed)) {
    }
  }
  bool is_finite() const { return is_finite_key(key_.load()); }

 private:
  std::atomic<uint32_t> key_{0};
};

// Whether the bits after the last of `bits` used bits of a section are zero.
inline bool padding_is_zero(const uint8_t* section, uint64_t bits) {
  return bits % 8 == 0 || section[bits / 8] >> (bits % 8) == 0;
}

// A decoder returns null, or what is wrong with the payload; it has then written nothing.
using Fault = const char*;

}  // namespace tersegrad
