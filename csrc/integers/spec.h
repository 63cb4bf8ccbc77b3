// Integers on a grid that all senders share, so that the codes of many senders add: docs/format.md, codec 15.
#pragma once

#include "../philox.h"
#include "../quantize/spec.h"

namespace tersegrad {

struct IntegerGrid {
  float scale;    // between neighbours
  float inverse;  // 1 / scale
  float limit;    // the largest code of one sender, a whole number
};

// In units of the grid, cut to the limit; infinities and NaNs too, since their keys are above all.
TG_SPEC float to_grid(float value, const IntegerGrid& grid) {
  float units = value * grid.inverse;
  uint32_t key = key_of(units), limit = bits_of(grid.limit);
  return float_of((bits_of(units) & ~kMagnitude) | (key < limit ? key : limit));
}

TG_SPEC int32_t nearest_integer(float units) { return static_cast<int32_t>(lrintf(units)); }

// To the neighbour above with the probability of the distance to the one below, in steps of 2^-16. `units - nearest` is
// exact: units is whole from 2^23 on, and below that the two are within a factor of two, or nearest is zero.
TG_SPEC int32_t stochastic_integer(float units, uint32_t noise) {
  int32_t nearest = nearest_integer(units);
  float rest = (units - static_cast<float>(nearest)) * 65536.0f;
  return nearest + ((nearest_integer(rest) + static_cast<int32_t>(noise)) >> 16);
}

TG_SPEC float integer_entry(int32_t code, float scale) { return saturate(static_cast<float>(code) * scale); }

// Two's complement codes at any address.
TG_SPEC void put_integer(uint8_t* codes, int bits, size_t i, int32_t code) {
  uint8_t* at = codes + i * static_cast<size_t>(bits) / 8;
  for (int bit = 0; bit < bits; bit += 8) *at++ = static_cast<uint8_t>(static_cast<uint32_t>(code) >> bit);
}

// What the low `bits` bits of a word stand for; the others are zero.
TG_SPEC int32_t signed_integer(uint32_t code, int bits) {
  const uint32_t sign = 1u << (bits - 1);
  return static_cast<int32_t>((code ^ sign) - sign);
}

TG_SPEC int32_t get_integer(const uint8_t* codes, int bits, size_t i) {
  const uint8_t* at = codes + i * static_cast<size_t>(bits) / 8;
  uint32_t code = 0;
  for (int bit = 0; bit < bits; bit += 8) code |= static_cast<uint32_t>(*at++) << bit;
  return signed_integer(code, bits);
}

}  // namespace tersegrad
