#pragma once

#include "../kernels.h"
#include "../sign/spec.h"
#include "../simd.h"
#include "spec.h"

namespace tersegrad {
namespace {

KeyRange key_range(const float* a, size_t n) {
  size_t i = 0;
  uint32_t largest = 0, complement = 0;  // the smallest key is the largest complement
#if TERSEGRAD_SIMD
  U high = splat(0u), low = splat(0u);
  for (; i + kLanes <= n; i += kLanes) {
    prefetch(a + i);
    U key = key_of(load(a + i));
    high = larger(high, key);
    low = larger(low, key ^ splat(kMagnitude));
  }
  largest = largest_lane(high);
  complement = largest_lane(low);
#endif
  for (; i < n; ++i) {
    uint32_t key = key_of(a[i]);
    largest = key > largest ? key : largest;
    complement = (key ^ kMagnitude) > complement ? key ^ kMagnitude : complement;
  }
  return {complement ^ kMagnitude, largest};
}

#if TERSEGRAD_SIMD
template <Spacing spacing>
TG_INLINE F level_lanes(U level, const LevelGrid& grid) {
  F at = splat(grid.base) + to_float(level) * splat(grid.step);
  if constexpr (spacing == Spacing::uniform) return at;
  if constexpr (spacing == Spacing::square) return at * at;
  return floats(splat(grid.low_key) + nearest_int(at));
}

template <Spacing spacing>
TG_INLINE U nearest_levels(F magnitude, const LevelGrid& grid) {
  F at = magnitude;
  if constexpr (spacing == Spacing::square) at = root(magnitude);
  if constexpr (spacing == Spacing::logarithmic) at = to_float(bits(magnitude) + splat(0u - grid.low_key));
  U above = nearest_int((at - splat(grid.base)) * splat(grid.inverse)) + splat(static_cast<uint32_t>(kLevelBias));
  return smaller(larger(shift_right<16>(above), splat(1u)), splat(grid.levels)) + splat(~0u);
}
#endif

template <Spacing spacing>
float choose_levels(const float* a, size_t n, const LevelGrid& grid, uint8_t* codes) {
  size_t i = 0;
  float lane[kSumLanes] = {};
#if TERSEGRAD_SIMD
  F sum[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  for (; i + kSumLanes <= n; i += kSumLanes) {
    for (size_t j = 0; j < 4; ++j) {
      const size_t at = i + j * kLanes;
      F v = load(a + at), magnitude = floats(key_of(v));
      U level = nearest_levels<spacing>(magnitude, grid);
      F error = magnitude - level_lanes<spacing>(level, grid);
      sum[j] = sum[j] + error * error;
      U code = level | (shift_right_signed<31>(bits(v)) & splat(grid.levels));
      store_codes<8>(codes + at, narrow_bytes(code));
    }
  }
  for (size_t j = 0; j < 4; ++j) store(lane + j * kLanes, sum[j]);
#endif
  for (; i < n; ++i) {
    uint32_t level = level_of(a[i], grid);
    float error = level_error(a[i], level, grid);
    lane[i % kSumLanes] = lane[i % kSumLanes] + error * error;
    codes[i] = static_cast<uint8_t>(level_code(a[i], level, grid));
  }
  return sum_lanes(lane);
}

template <Spacing spacing>
void take_levels(const uint8_t* codes, size_t n, const LevelGrid& grid, float* out) {
  size_t i = 0;
#if TERSEGRAD_SIMD
  for (; i + kLanes <= n; i += kLanes) {
    U code = widen_bytes(load_codes<8>(codes + i)) & splat(0xffu);
    F magnitude = level_lanes<spacing>(code & splat(grid.levels - 1), grid);
    // The bit of the sign moves up to bit 31: what is added carries it there.
    U sign = (code + splat(~kMagnitude - grid.levels)) & splat(~kMagnitude);
    store(out + i, floats(bits(magnitude) | sign));
  }
#endif
  for (; i < n; ++i) out[i] = level_entry(codes[i], grid);
}

float to_levels(const float* a, size_t n, const LevelGrid& grid, uint8_t* codes) {
  if (grid.spacing == Spacing::uniform) return choose_levels<Spacing::uniform>(a, n, grid, codes);
  if (grid.spacing == Spacing::square) return choose_levels<Spacing::square>(a, n, grid, codes);
  return choose_levels<Spacing::logarithmic>(a, n, grid, codes);
}

void from_levels(const uint8_t* codes, size_t n, const LevelGrid& grid, float* out) {
  if (grid.spacing == Spacing::uniform) return take_levels<Spacing::uniform>(codes, n, grid, out);
  if (grid.spacing == Spacing::square) return take_levels<Spacing::square>(codes, n, grid, out);
  take_levels<Spacing::logarithmic>(codes, n, grid, out);
}

}  // namespace
}  // namespace tersegrad
