#pragma once

#include "../kernels.h"
#include "../philox_lanes.h"
#include "../simd.h"
#include "spec.h"

namespace tersegrad {
namespace {

#if TERSEGRAD_SIMD
// The same names for vectors and for single entries.
using tersegrad::stochastic_integer;
using tersegrad::to_grid;

template <int bits>
inline void store_integers(uint8_t* codes, size_t i, U code) {
  if constexpr (bits == 8) {
    store_codes<8>(codes + i, narrow_bytes(code));
  } else if constexpr (bits == 16) {
    store_u16(reinterpret_cast<uint16_t*>(codes) + i, code & splat(0xffffu));
  } else {
    store(reinterpret_cast<uint32_t*>(codes) + i, code);
  }
}

template <int bits>
inline U load_integers(const uint8_t* codes, size_t i) {
  if constexpr (bits == 8) {
    return widen_bytes(load_codes<8>(codes + i));
  } else if constexpr (bits == 16) {
    return shift_right_signed<16>(shift_left<16>(load_u16(reinterpret_cast<const uint16_t*>(codes) + i)));
  } else {
    return load(reinterpret_cast<const uint32_t*>(codes) + i);
  }
}

inline F to_grid(F v, F inverse, U limit) {
  F units = v * inverse;
  return floats((bits(units) & splat(~kMagnitude)) | smaller(key_of(units), limit));
}

inline U stochastic_integer(F units, U noise) {
  U nearest = nearest_int(units);
  F rest = (units - to_float(nearest)) * splat(65536.0f);
  return nearest + shift_right_signed<16>(nearest_int(rest) + noise);
}

// Sixteen codes; returns the keys of what they are made from.
template <int width, bool keeping, bool stochastic>
inline U integer_lanes(const float* a, size_t i, F inverse, F scale, U limit, U noise, uint8_t* codes, float* lost) {
  F v = load(a + i);
  F units = to_grid(v, inverse, limit);
  U code;
  if constexpr (stochastic) {
    code = stochastic_integer(units, noise);
  } else {
    code = nearest_int(units);
  }
  store_integers<width>(codes, i, code);
  if constexpr (keeping) store(lost + i, v - saturate(to_float(code) * scale));
  return key_of(v);
}
#endif

template <int width, bool keeping>
inline uint32_t integers_of(const float* a, size_t n, const IntegerGrid& grid, const Noise* noise, uint64_t first,
                            uint8_t* codes, float* lost) {
  size_t i = 0;
  uint32_t key = 0;
#if TERSEGRAD_SIMD
  const F inverse = splat(grid.inverse), scale = splat(grid.scale);
  const U limit = splat(bits_of(grid.limit));
  U keys = splat(0u);
  if (noise == nullptr) {
    for (; i + kLanes <= n; i += kLanes) {
      prefetch(a + i);
      keys = larger(keys, integer_lanes<width, keeping, false>(a, i, inverse, scale, limit, limit, codes, lost));
    }
  } else {
    i = for_each_noisy(
        *noise, first, n, [&](size_t at, U random) __attribute__((always_inline)) {
          prefetch(a + at);
          keys = larger(keys, integer_lanes<width, keeping, true>(a, at, inverse, scale, limit, random, codes, lost));
        });
  }
  key = largest_lane(keys);
#endif
  for (; i < n; ++i) {
    const float units = to_grid(a[i], grid);
    const uint32_t own = key_of(a[i]);
    key = own > key ? own : key;
    int32_t code =
        noise ? stochastic_integer(units, rounding_noise(noise->seed, noise->step, first + i)) : nearest_integer(units);
    put_integer(codes, width, i, code);
    if (keeping) lost[i] = a[i] - integer_entry(code, grid.scale);
  }
  return key;
}

template <int width>
uint32_t to_integers(const float* a, size_t n, const IntegerGrid& grid, const Noise* noise, uint64_t first,
                     uint8_t* codes, float* lost) {
  return lost != nullptr ? integers_of<width, true>(a, n, grid, noise, first, codes, lost)
                         : integers_of<width, false>(a, n, grid, noise, first, codes, nullptr);
}

template <int width>
void from_integers(const uint8_t* codes, float scale, float* out, size_t n) {
  size_t i = 0;
#if TERSEGRAD_SIMD
  for (; i + kLanes <= n; i += kLanes) {
    prefetch(codes + i * width / 8);
    store(out + i, saturate(to_float(load_integers<width>(codes, i)) * splat(scale)));
  }
#endif
  for (; i < n; ++i) out[i] = integer_entry(get_integer(codes, width, i), scale);
}

}  // namespace
}  // namespace tersegrad
