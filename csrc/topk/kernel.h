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

// Most groups of 64 entries hold no candidate when k << n, so a group is tested as a whole before anything is compressed.
template <DType dtype, bool accumulating>
size_t collect_entries(const void* x, float* residual, size_t n, uint32_t base, uint32_t threshold,
                       uint32_t* index, float* value) {
  size_t i = 0, count = 0;
#if TERSEGRAD_SIMD
  constexpr size_t kGroup = 4 * kLanes;
  const U limit = splat(threshold), lanes = lane_numbers();
  for (; i + kGroup <= n; i += kGroup) {
    F v[4];
    uint32_t mask[4];
    for (int j = 0; j < 4; ++j) {
      size_t at = i + static_cast<size_t>(j) * kLanes;
      prefetch(static_cast<const char*>(x) + at * item_bytes(dtype));
      v[j] = load_entries<dtype>(x, at);
      if constexpr (accumulating) {
        prefetch(residual + at);
        v[j] = v[j] + load(residual + at);
        store(residual + at, v[j]);
      }
      mask[j] = at_least(key_of(v[j]), limit);
    }
    if ((mask[0] | mask[1] | mask[2] | mask[3]) == 0) continue;
    for (int j = 0; j < 4; ++j) {
      uint32_t first = base + static_cast<uint32_t>(i + static_cast<size_t>(j) * kLanes);
      compress(index + count, mask[j], lanes + splat(first));
      compress(value + count, mask[j], v[j]);
      count += static_cast<size_t>(__builtin_popcount(mask[j]));
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
size_t accumulate_collect(const void* x, float* residual, size_t n, uint32_t base, uint32_t threshold,
                          uint32_t* index, float* value) {
  return collect_entries<dtype, true>(x, residual, n, base, threshold, index, value);
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
