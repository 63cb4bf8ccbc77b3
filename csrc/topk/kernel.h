#pragma once

#include "../simd.h"
#include "spec.h"

namespace tersegrad {
namespace {

#if TERSEGRAD_SIMD
// The lowest `count` set bits of `mask`.
inline uint32_t lowest_bits(uint32_t mask, size_t count) {
  uint32_t kept = 0;
  for (; count > 0 && mask != 0; --count, mask &= mask - 1) kept |= mask & (0u - mask);
  return kept;
}
#endif

#if TERSEGRAD_SIMD
// The smallest magnitude of a 2-byte dtype whose key is at least `threshold`: keys grow with the bits, so bisection
// finds it.
template <DType dtype>
inline uint16_t narrow_threshold(uint32_t threshold) {
  uint16_t below = 0;  // the largest magnitude known to be too small, plus one
  for (uint16_t bit = 1 << 14; bit != 0; bit = static_cast<uint16_t>(bit >> 1)) {
    auto tried = static_cast<uint16_t>(below | bit), last = static_cast<uint16_t>(tried - 1);
    if (key_of(load_entry(&last, dtype, 0)) < threshold) below = tried;
  }
  return below;
}
#endif

// Collects the indices, without a branch, over a stretch that stays in cache; then the values of the few that were
// found.
constexpr size_t kStretch = 4096;

template <DType dtype, bool accumulating>
size_t collect_entries(const void* x, float* residual, size_t n, uint32_t base, uint32_t threshold, uint32_t* index,
                       float* value) {
  size_t i = 0, count = 0;
#if TERSEGRAD_SIMD
  constexpr bool kNarrow = !accumulating && dtype != DType::float32;  // compared as they are, in 2 bytes
  const U limit = splat(threshold);
  uint16_t narrow_limit = 0;
  if constexpr (kNarrow) narrow_limit = narrow_threshold<dtype>(threshold);
  U lanes = lane_numbers() + splat(base);
  while (i + kLanes <= n) {
    size_t first = count, end = i + kStretch < n ? i + kStretch : n;
    for (; i + kLanes <= end; i += kLanes) {
      uint32_t mask;
      prefetch(static_cast<const char*>(x) + i * item_bytes(dtype));
      if constexpr (kNarrow) {
        mask = magnitudes_at_least(static_cast<const uint16_t*>(x) + i, narrow_limit);
      } else {
        F v = load_entries<dtype>(x, i);
        if constexpr (accumulating) {
          prefetch(residual + i);
          v = v + load(residual + i);
          store(residual + i, v);
        }
        mask = at_least(key_of(v), limit);
      }
      compress(index + count, mask, lanes);
      count += static_cast<size_t>(__builtin_popcount(mask));
      lanes = lanes + splat(static_cast<uint32_t>(kLanes));
    }
    const void* source = accumulating ? residual : x;
    for (size_t j = first; j < count; ++j) {
      value[j] = load_entry(source, accumulating ? DType::float32 : dtype, index[j] - base);
    }
  }
#endif
  for (; i < n; ++i) {
    float entry = load_entry(x, dtype, i);
    if constexpr (accumulating) entry = residual[i] = entry + residual[i];
    index[count] = base + static_cast<uint32_t>(i);
    value[count] = entry;
    count += is_candidate(entry, threshold);
  }
  return count;
}

template <DType dtype>
size_t collect(const void* x, size_t n, uint32_t base, uint32_t threshold, uint32_t* index, float* value) {
  return collect_entries<dtype, false>(x, nullptr, n, base, threshold, index, value);
}

template <DType dtype>
size_t accumulate_collect(const void* x, float* residual, size_t n, uint32_t base, uint32_t threshold, uint32_t* index,
                          float* value) {
  return collect_entries<dtype, true>(x, residual, n, base, threshold, index, value);
}

size_t band(const float* value, size_t n, uint32_t low, uint32_t high, uint32_t* key, size_t* above) {
  size_t i = 0, count = 0, over = 0;
#if TERSEGRAD_SIMD
  for (; i + kLanes <= n; i += kLanes) {
    U keys = key_of(load(value + i));
    uint32_t large = at_least(keys, splat(high)), inside = at_least(keys, splat(low)) & ~large;
    compress(key + count, inside, keys);
    count += static_cast<size_t>(__builtin_popcount(inside));
    over += static_cast<size_t>(__builtin_popcount(large));
  }
#endif
  for (; i < n; ++i) {
    uint32_t own = key_of(value[i]);
    key[count] = own;
    count += own >= low && own < high;
    over += own >= high;
  }
  *above = over;
  return count;
}

size_t count_at_least(const uint32_t* key, size_t n, uint32_t limit) {
  size_t i = 0, count = 0;
#if TERSEGRAD_SIMD
  for (; i + kLanes <= n; i += kLanes) {
    count += static_cast<size_t>(__builtin_popcount(at_least(load(key + i), splat(limit))));
  }
#endif
  for (; i < n; ++i) count += key[i] >= limit;
  return count;
}

size_t compact(uint32_t* index, float* value, size_t n, uint32_t kth, size_t ties) {
  size_t i = 0, count = 0;
#if TERSEGRAD_SIMD
  // In place: a store of sixteen lanes at count <= i touches only entries that are loaded already.
  for (; i + kLanes <= n; i += kLanes) {
    U indices = load(index + i);
    F values = load(value + i);
    uint32_t mask = at_least(key_of(values), splat(kth));
    uint32_t above = at_least(key_of(values), splat(kth + 1));
    if (uint32_t equal = mask & ~above) {
      uint32_t kept = lowest_bits(equal, ties);
      ties -= static_cast<size_t>(__builtin_popcount(kept));
      mask = above | kept;
    }
    compress(index + count, mask, indices);
    compress(value + count, mask, values);
    count += static_cast<size_t>(__builtin_popcount(mask));
  }
#endif
  for (; i < n; ++i) {
    index[count] = index[i];
    value[count] = value[i];
    count += is_survivor(value[i], kth, ties);
  }
  return count;
}

}  // namespace
}  // namespace tersegrad
