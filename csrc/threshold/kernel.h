#pragma once

#include "../kernels.h"
#include "../sign/spec.h"
#include "../simd.h"

namespace tersegrad {
namespace {

Moments moments(const float* a, size_t n) {
  size_t i = 0;
  float sum[kSumLanes] = {}, squares[kSumLanes] = {};
  uint32_t max_key = 0;
#if TERSEGRAD_SIMD
  F sums[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  F square_sums[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  U keys = splat(0u);
  for (; i + kSumLanes <= n; i += kSumLanes) {
    for (size_t j = 0; j < 4; ++j) {
      prefetch(a + i + j * kLanes);
      F v = load(a + i + j * kLanes);
      U key = key_of(v);
      sums[j] = sums[j] + floats(key);
      square_sums[j] = square_sums[j] + v * v;
      keys = larger(keys, key);
    }
  }
  for (size_t j = 0; j < 4; ++j) {
    store(sum + j * kLanes, sums[j]);
    store(squares + j * kLanes, square_sums[j]);
  }
  max_key = largest_lane(keys);
#endif
  for (; i < n; ++i) {
    uint32_t key = key_of(a[i]);
    sum[i % kSumLanes] = sum[i % kSumLanes] + float_of(key);
    squares[i % kSumLanes] = squares[i % kSumLanes] + a[i] * a[i];
    max_key = key > max_key ? key : max_key;
  }
  return {sum_lanes(sum), sum_lanes(squares), max_key};
}

}  // namespace
}  // namespace tersegrad
