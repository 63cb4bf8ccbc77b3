#pragma once

#include "../kernels.h"
#include "../philox_lanes.h"
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
    // The words of one call serve 128 entries, in two runs of four vectors; a block may begin at the second.
    U words[4];
    bool second = first / 64 % 2 != 0;
    if (second) philox_lanes(*noise, static_cast<uint32_t>(first / 128 * 16), words);
    for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
      if (!second) philox_lanes(*noise, static_cast<uint32_t>((first + i) / 128 * 16), words);
      prefetch(a + i + kLanes);
      prefetch(a + i + 3 * kLanes);
      for (size_t j = 0; j < 4; ++j) {
        lanes(i + j * kLanes, second ? shift_right<16>(words[j]) : words[j] & splat(0xffffu));
      }
      second = !second;
    }
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
uint32_t quantize(const float* a, size_t n, size_t block_size, const Noise* noise, uint64_t first, uint8_t* scales,
                  uint8_t* codes, float* lost) {
  uint32_t largest = 0;
  for (size_t i = 0; i < n; i += block_size) {
    size_t length = n - i < block_size ? n - i : block_size;
    uint32_t key = block_max_key(a + i, length);
    largest = key > largest ? key : largest;
    if (!is_finite_key(key)) key = 0;
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
