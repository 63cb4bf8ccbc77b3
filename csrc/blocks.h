// The scales that open the body of a blockwise codec: unaligned little-endian float32.
#pragma once

#include "tensor.h"

namespace tersegrad {

inline void put_scale(uint8_t* scales, size_t block, float scale) {
  memcpy(scales + block * sizeof scale, &scale, sizeof scale);
}

inline float get_scale(const uint8_t* scales, size_t block) {
  float scale;
  memcpy(&scale, scales + block * sizeof scale, sizeof scale);
  return scale;
}

// Finite, and with a clear sign bit: as bits, at most the largest finite float.
inline bool scales_are_valid(const uint8_t* scales, size_t blocks) {
  bool valid = true;
  for (size_t block = 0; block < blocks; ++block) valid &= bits_of(get_scale(scales, block)) <= kLargest;
  return valid;
}

// The float32 entries of [i, i + n): x itself where it holds floats, else widened into scratch.
inline const float* float_entries(const Entries& x, size_t i, size_t n, float* scratch) {
  if (x.dtype == DType::float32) return x.floats() + i;
  active().widen[dtype_slot(x.dtype)](x.at(i), scratch, n);
  return scratch;
}

// A float32 product of codes and a scale this small cannot overflow, so that saturating it would change nothing.
inline bool needs_rounding(DType dtype, float scale) {
  return dtype != DType::float32 || key_of(scale) >= 0x70000000u;
}

}  // namespace tersegrad
