#pragma once

#include "../kernels.h"
#include "../simd.h"
#include "spec.h"

namespace tersegrad {
namespace {

#if TERSEGRAD_SIMD
// philox() of sixteen consecutive counters below 2^32.
inline void philox_lanes(const Noise& noise, uint32_t first_counter, U words[4]) {
  U c0 = lane_numbers() + splat(first_counter), c1 = splat(0u);
  U c2 = splat(noise.step), c3 = splat(static_cast<uint32_t>(kRoundingNoise));
  uint32_t k0 = static_cast<uint32_t>(noise.seed), k1 = static_cast<uint32_t>(noise.seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    Product p0 = multiply(c0, splat(kPhiloxMultiplier0));
    Product p1 = multiply(c2, splat(kPhiloxMultiplier1));
    c0 = p1.high ^ c1 ^ splat(k0);
    c1 = p1.low;
    c2 = p0.high ^ c3 ^ splat(k1);
    c3 = p0.low;
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

template <int width>
inline void quantize_lanes(const float* a, F inverse, U noise, uint8_t* codes) {
  U fixed = nearest_int(load(a) * inverse);
  store_codes<width>(codes, narrow_bytes(shift_right_signed<16>(fixed + noise)));
}
#endif

template <int width>
void quantize(const float* a, size_t n, float inverse, const Noise* noise, uint64_t first, uint8_t* codes) {
  size_t i = 0;
#if TERSEGRAD_SIMD
  constexpr size_t kLaneBytes = kLanes * width / 8;
  if (noise == nullptr) {
    for (; i + kLanes <= n; i += kLanes) {
      prefetch(a + i);
      quantize_lanes<width>(a + i, splat(inverse), splat(kRoundToNearest), codes + i / kLanes * kLaneBytes);
    }
  } else {
    U words[4];
    for (; i + kLanes <= n; i += kLanes) {
      uint64_t entry = first + i;
      if (i == 0 || entry % 128 == 0) philox_lanes(*noise, static_cast<uint32_t>(entry / 128 * 16), words);
      U word = words[entry / 16 % 4];
      U half = entry / 64 % 2 ? shift_right<16>(word) : word & splat(0xffffu);
      quantize_lanes<width>(a + i, splat(inverse), half, codes + i / kLanes * kLaneBytes);
    }
  }
#endif
  if (i < n) memset(codes + i * width / 8, 0, ((n - i) * width + 7) / 8);
  for (; i < n; ++i) {
    uint32_t bits = noise ? rounding_noise(noise->seed, noise->step, first + i) : kRoundToNearest;
    set_code(codes, width, i, quantize_entry(a[i], inverse, bits));
  }
}

template <int width>
void dequantize(const uint8_t* codes, float scale, float* out, size_t n) {
  size_t i = 0;
#if TERSEGRAD_SIMD
  constexpr size_t kLaneBytes = kLanes * width / 8;
  for (; i + kLanes <= n; i += kLanes) {
    U code = widen_bytes(load_codes<width>(codes + i / kLanes * kLaneBytes));
    store(out + i, to_float(code) * splat(scale));
  }
#endif
  for (; i < n; ++i) out[i] = dequantize_entry(get_code(codes, width, i), scale);
}

}  // namespace
}  // namespace tersegrad
