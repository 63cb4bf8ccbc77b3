// A matrix as the product of two thin factors: docs/format.md, codec 17.
#pragma once

#include "../philox.h"

namespace tersegrad {

constexpr size_t kLargestRank = 128;

// A sum of products of one fixed order: lane j of sixteen adds the products j, j + 16, ... in order, then lane j < h
// adds lane j + h for h = 8, 4, 2, 1.
TG_SPEC float fold_lanes(float* lanes) {
  for (int h = 8; h > 0; h /= 2) {
    for (int j = 0; j < h; ++j) lanes[j] = lanes[j] + lanes[j + h];
  }
  return lanes[0];
}

// The first guess of Q, uniform in [-1, 1).
TG_SPEC float cold_entry(uint32_t word) { return static_cast<float>(static_cast<int32_t>(word)) * 0x1p-31f; }

// Below this key a column counts as zero: the smallest normal number.
constexpr uint32_t kSmallestNormal = 0x00800000u;

// The power of two that brings a magnitude with this key, not below kSmallestNormal, to 2 or more and below 4.
TG_SPEC float column_scale(uint32_t key) { return float_of((255u - (key >> 23)) << 23); }

// Then this one makes a column of Q so small that no sum of up to 2^32 products with it overflows.
constexpr float kHeadroom = 0x1p-34f;

// What is left of a column after the earlier ones are taken out of it is rounding error when it is below this.
constexpr float kNothingLeft = 0x1p-12f;

// An entry of P: at most one, so that products with finite numbers are finite.
TG_SPEC float unit_entry(float value) {
  uint32_t key = key_of(value);
  return float_of((bits_of(value) & ~kMagnitude) | (key < 0x3f800000u ? key : 0x3f800000u));
}

}  // namespace tersegrad
