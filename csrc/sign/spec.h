// One bit per entry and the mean magnitude of each block: docs/format.md, codec 4. A floating-point sum depends on its
// order, so the order is part of the definition: 64 lanes, then a fixed tree.
#pragma once

#include "../bits.h"

namespace tersegrad {

constexpr size_t kSumLanes = 64;

TG_SPEC float sum_lanes(float* lane) {
  for (size_t half = kSumLanes / 2; half > 0; half /= 2) {
    for (size_t j = 0; j < half; ++j) lane[j] = lane[j] + lane[j + half];
  }
  return lane[0];
}

TG_SPEC float sign_scale(float sum, size_t count) { return saturate(sum / static_cast<float>(count)); }

TG_SPEC uint32_t sign_bit(float value) { return bits_of(value) >> 31; }

TG_SPEC float sign_entry(uint32_t bit, float scale) { return float_of(bits_of(scale) | bit << 31); }

}  // namespace tersegrad
