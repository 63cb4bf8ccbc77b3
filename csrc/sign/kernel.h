#pragma once

#include "../kernels.h"
#include "../simd.h"
#include "spec.h"

namespace tersegrad {
namespace {

SignSummary pack_signs(const float* a, size_t n, uint8_t* bits) {
  size_t i = 0;
  float lane[kSumLanes] = {};
  uint32_t max_key = 0;
#if TERSEGRAD_SIMD
  F sum[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  U keys = splat(0u);
  for (; i + kSumLanes <= n; i += kSumLanes) {
    uint64_t word = 0;
    for (size_t j = 0; j < 4; ++j) {
      prefetch(a + i + j * kLanes);
      F v = load(a + i + j * kLanes);
      U key = key_of(v);
      sum[j] = sum[j] + floats(key);
      keys = larger(keys, key);
      word |= static_cast<uint64_t>(sign_mask(v)) << (j * kLanes);
    }
    memcpy(bits + i / 8, &word, sizeof word);
  }
  for (size_t j = 0; j < 4; ++j) store(lane + j * kLanes, sum[j]);
  max_key = largest_lane(keys);
#endif
  if (i < n) memset(bits + i / 8, 0, (n - i + 7) / 8);
  for (; i < n; ++i) {
    uint32_t key = key_of(a[i]);
    lane[i % kSumLanes] = lane[i % kSumLanes] + float_of(key);
    max_key = key > max_key ? key : max_key;
    bits[i / 8] = static_cast<uint8_t>(bits[i / 8] | sign_bit(a[i]) << (i % 8));
  }
  return {sum_lanes(lane), max_key};
}

void unpack_signs(const uint8_t* bits, float scale, float* out, size_t n) {
  size_t i = 0;
#if TERSEGRAD_SIMD
  const U magnitude = splat(bits_of(scale));
  for (; i + kLanes <= n; i += kLanes) {
    uint32_t mask = bits[i / 8] | static_cast<uint32_t>(bits[i / 8 + 1]) << 8;
    store(out + i, floats(magnitude | spread_signs(mask)));
  }
#endif
  for (; i < n; ++i) out[i] = sign_entry(bits[i / 8] >> (i % 8) & 1u, scale);
}

}  // namespace
}  // namespace tersegrad
