#pragma once

#include "../simd.h"
#include "spec.h"

namespace tersegrad {
namespace {

float sum_magnitude(const float* a, size_t n) {
  size_t i = 0;
  float lane[kSumLanes] = {};
#if TERSEGRAD_SIMD
  F sum[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  for (; i + kSumLanes <= n; i += kSumLanes) {
    for (size_t j = 0; j < 4; ++j) sum[j] = sum[j] + floats(key_of(load(a + i + j * kLanes)));
  }
  for (size_t j = 0; j < 4; ++j) store(lane + j * kLanes, sum[j]);
#endif
  for (; i < n; ++i) lane[i % kSumLanes] = lane[i % kSumLanes] + float_of(key_of(a[i]));
  return sum_lanes(lane);
}

void pack_signs(const float* a, size_t n, uint8_t* bits) {
  size_t i = 0;
#if TERSEGRAD_SIMD
  for (; i + kLanes <= n; i += kLanes) {
    uint32_t mask = sign_mask(load(a + i));
    bits[i / 8] = static_cast<uint8_t>(mask);
    bits[i / 8 + 1] = static_cast<uint8_t>(mask >> 8);
  }
#endif
  if (i < n) memset(bits + i / 8, 0, (n - i + 7) / 8);
  for (; i < n; ++i) bits[i / 8] = static_cast<uint8_t>(bits[i / 8] | sign_bit(a[i]) << (i % 8));
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
