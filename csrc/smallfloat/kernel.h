#pragma once

#include "../kernels.h"
#include "../quantize/kernel.h"
#include "../simd.h"
#include "spec.h"

namespace tersegrad {
namespace {

#if TERSEGRAD_SIMD
template <SmallFloat kind>
TG_INLINE U small_lanes(F v, U added) {
  constexpr SmallFormat format = kSmallFormats[static_cast<int>(kind)];
  if constexpr (kind == SmallFloat::nf4) {
    U code = splat(15u);
    for (int j = 0; j < 15; ++j) code = code + shift_right_signed<31>(bits(v - splat(normal_middle(j))));
    return code;
  } else {
    U moved = key_of(v);
    if constexpr (format.offset != 0) {
      constexpr uint32_t one = 1u << 23;
      U aligned = bits(floats(moved) + splat(float_of(format.offset + one))) + splat(0u - one);
      moved = larger(moved, aligned) + splat(0u - format.offset);
    }
    U code = smaller(shift_right<format.dropped>(moved + added), splat(format.most));
    return code | (shift_right<24>(bits(v)) & splat(128u));
  }
}

template <SmallFloat kind>
TG_INLINE F entry_lanes(U code, F scale) {
  constexpr SmallFormat format = kSmallFormats[static_cast<int>(kind)];
  if constexpr (kind == SmallFloat::nf4) {
    return saturate(lookup16(normal_levels(), code) * scale);
  } else {
    F magnitude = floats(shift_left<format.dropped>(code & splat(127u)) + splat(format.offset));
    if constexpr (format.offset != 0) {
      constexpr uint32_t one = 1u << 23;
      F aligned = floats(bits(magnitude) + splat(one)) - splat(float_of(format.offset + one));
      magnitude = floats(smaller(bits(magnitude), bits(aligned)));
    }
    return floats(bits(saturate(magnitude * scale)) | shift_left<24>(code & splat(128u)));
  }
}
#endif

template <SmallFloat kind>
void to_small(const float* a, size_t n, float inverse, const Noise* noise, uint64_t first, uint8_t* codes) {
  constexpr SmallFormat format = kSmallFormats[static_cast<int>(kind)];
  constexpr bool is_float = kind != SmallFloat::nf4;
  size_t i = 0;
#if TERSEGRAD_SIMD
  auto lanes = [&](size_t at, U added) __attribute__((always_inline)) {
    store_codes<8>(codes + at, narrow_bytes(small_lanes<kind>(load(a + at) * splat(inverse), added)));
  };
  if (noise == nullptr || !is_float) {
    const U half = splat(is_float ? small_half(format.dropped) : 0u);
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
      prefetch(a + i + kLanes);
      lanes(i, half);
      lanes(i + kLanes, half);
    }
  } else if constexpr (is_float) {
    const U below = splat(small_noise(0, format.dropped));
    i = for_each_noisy(
        *noise, first, n, [&](size_t at, U random) __attribute__((always_inline)) {
          lanes(at, shift_left<format.dropped - 16>(random) + below);
        });
  }
#endif
  for (; i < n; ++i) {
    if constexpr (is_float) {
      uint32_t added = noise ? small_noise(rounding_noise(noise->seed, noise->step, first + i), format.dropped)
                             : small_half(format.dropped);
      codes[i] = static_cast<uint8_t>(small_code(a[i], inverse, added, format));
    } else {
      codes[i] = static_cast<uint8_t>(normal_code(a[i], inverse));
    }
  }
}

template <SmallFloat kind>
void from_small(const uint8_t* codes, size_t n, float scale, float* out) {
  constexpr SmallFormat format = kSmallFormats[static_cast<int>(kind)];
  size_t i = 0;
#if TERSEGRAD_SIMD
  for (; i + kLanes <= n; i += kLanes) {
    U code = widen_bytes(load_codes<8>(codes + i)) & splat(0xffu);
    store(out + i, entry_lanes<kind>(code, splat(scale)));
  }
#endif
  for (; i < n; ++i) {
    if constexpr (kind == SmallFloat::nf4) {
      out[i] = normal_entry(codes[i], scale);
    } else {
      out[i] = small_entry(codes[i], scale, format);
    }
  }
}

}  // namespace
}  // namespace tersegrad
