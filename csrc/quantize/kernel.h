#pragma once

#include "../kernels.h"
#include "../philox_lanes.h"
#include "../sign/spec.h"
#include "spec.h"

namespace tersegrad {
namespace {

#if TERSEGRAD_SIMD
template <int width>
inline void quantize_lanes(const float* a, F inverse, F scale, U noise, uint8_t* codes, float* lost) {
  F v = load(a);
  U code = shift_right_signed<16>(nearest_int(v * inverse) + noise);
  store_codes<width>(codes, narrow_bytes(code));
  if (lost != nullptr) store(lost, v - saturate(to_float(code) * scale));
}
#endif

inline uint32_t block_max_key(const float* a, size_t n) {
  size_t i = 0;
  uint32_t key = 0;
#if TERSEGRAD_SIMD
  U keys[2] = {splat(0u), splat(0u)};
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    prefetch(a + i);  // every other line; the second pass over the block asks for the rest
    for (size_t j = 0; j < 2; ++j) {
      keys[j] = larger(keys[j], key_of(load(a + i + j * kLanes)));
    }
  }
  key = largest_lane(larger(keys[0], keys[1]));
#endif
  for (; i < n; ++i) {
    uint32_t own = key_of(a[i]);
    key = own > key ? own : key;
  }
  return key;
}

// The key of the norm, of a block that is neither zero nor infinite.
inline uint32_t block_norm_key(const float* a, size_t n, uint32_t max_key) {
  const float inverse = 1.0f / float_of(max_key);
  size_t i = 0;
  float lane[kSumLanes] = {};
#if TERSEGRAD_SIMD
  F sum[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  for (; i + kSumLanes <= n; i += kSumLanes) {
    for (size_t j = 0; j < 4; ++j) {
      F share = load(a + i + j * kLanes) * splat(inverse);
      sum[j] = sum[j] + share * share;
    }
  }
  for (size_t j = 0; j < 4; ++j) store(lane + j * kLanes, sum[j]);
#endif
  for (; i < n; ++i) {
    float share = a[i] * inverse;
    lane[i % kSumLanes] = lane[i % kSumLanes] + share * share;
  }
  return norm_key(max_key, sum_lanes(lane));
}

template <int width, bool keeping>
inline void quantize_block(const float* a, size_t n, uint32_t max_key, const Noise* noise, uint64_t first,
                           uint8_t* codes, float* lost) {
  const float inverse = quantize_inverse(max_key, width), scale = quantize_scale(max_key, width);
  size_t i = 0;
#if TERSEGRAD_SIMD
  constexpr size_t kLaneBytes = kLanes * width / 8;
  auto lanes = [&](size_t at, U bits) {
    quantize_lanes<width>(a + at, splat(inverse), splat(scale), bits, codes + at / kLanes * kLaneBytes,
                          keeping ? lost + at : nullptr);
  };
  if (noise == nullptr) {
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
      prefetch(a + i + kLanes);
      lanes(i, splat(kRoundToNearest));
      lanes(i + kLanes, splat(kRoundToNearest));
    }
  } else {
    i = for_each_noisy(
        *noise, first, n, [&](size_t at, U bits) __attribute__((always_inline)) {
          if (at / kLanes % 2 != 0) prefetch(a + at);
          lanes(at, bits);
        });
  }
#endif
  if (i < n) memset(codes + i * width / 8, 0, ((n - i) * width + 7) / 8);
  for (; i < n; ++i) {
    uint32_t bits = noise ? rounding_noise(noise->seed, noise->step, first + i) : kRoundToNearest;
    int32_t code = quantize_entry(a[i], inverse, bits);
    set_code(codes, width, i, code);
    if (keeping) lost[i] = a[i] - dequantize_entry(code, scale);
  }
}

template <int width>
uint32_t quantize(const float* a, size_t n, size_t block_size, bool by_norm, const Noise* noise, uint64_t first,
                  uint8_t* scales, uint8_t* codes, float* lost) {
  uint32_t largest = 0;
  for (size_t i = 0; i < n; i += block_size) {
    size_t length = n - i < block_size ? n - i : block_size;
    uint32_t key = block_max_key(a + i, length);
    largest = key > largest ? key : largest;
    if (!is_finite_key(key)) key = 0;
    if (by_norm && key >= kQuantizeFloor) key = block_norm_key(a + i, length, key);
    put_scale(scales, i / block_size, quantize_scale(key, width));
    uint8_t* block = codes + i * width / 8;
    if (lost != nullptr) {
      quantize_block<width, true>(a + i, length, key, noise, first + i, block, lost + i);
    } else {
      quantize_block<width, false>(a + i, length, key, noise, first + i, block, nullptr);
    }
  }
  return largest;
}

template <int width>
void dequantize(const uint8_t* codes, const uint8_t* scales, size_t block_size, float* out, size_t n) {
  for (size_t begin = 0; begin < n; begin += block_size) {
    size_t i = begin, end = n - begin < block_size ? n : begin + block_size;
    float scale = get_scale(scales, begin / block_size);
#if TERSEGRAD_SIMD
    constexpr size_t kLaneBytes = kLanes * width / 8;
    for (; i + kLanes <= end; i += kLanes) {
      U code = widen_bytes(load_codes<width>(codes + i / kLanes * kLaneBytes));
      store(out + i, saturate(to_float(code) * splat(scale)));
    }
#endif
    for (; i < end; ++i) out[i] = dequantize_entry(get_code(codes, width, i), scale);
  }
}

}  // namespace
}  // namespace tersegrad
