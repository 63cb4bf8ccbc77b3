// Philox on vectors: what csrc/philox.h defines, for sixteen counters at a time.
#pragma once

#include "kernels.h"
#include "philox.h"
#include "simd.h"

namespace tersegrad {
namespace {

#if TERSEGRAD_SIMD
// philox() of sixteen consecutive counters below 2^32. The lanes are kept apart as the even and the odd ones, where a
// 64-bit product has room; what is above the low 32 bits of a lane is never looked at.
inline void philox_lanes(const Noise& noise, uint32_t first_counter, U words[4], PhiloxDomain domain = kRoundingNoise) {
  Halves c0 = split_lanes(lane_numbers() + splat(first_counter)), c1 = split_lanes(splat(0u));
  Halves c2 = split_lanes(splat(noise.step)), c3 = split_lanes(splat(static_cast<uint32_t>(domain)));
  uint32_t k0 = static_cast<uint32_t>(noise.seed), k1 = static_cast<uint32_t>(noise.seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    Halves p0 = multiply(c0, kPhiloxMultiplier0);
    Halves p1 = multiply(c2, kPhiloxMultiplier1);
    c0 = high_xor(p1, c1, k0);
    c1 = p1;
    c2 = high_xor(p0, c3, k1);
    c3 = p0;
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  words[0] = join_lanes(c0);
  words[1] = join_lanes(c1);
  words[2] = join_lanes(c2);
  words[3] = join_lanes(c3);
}

// Calls each(i, noise) for every vector of entries among the first of n, with the rounding noise of entries from
// first + i on in its lanes; returns how many entries these were. The words of one call of Philox serve 128 entries, in
// two runs of four vectors; `first`, a multiple of 64, may be where the second run begins.
template <class Each>
TG_INLINE size_t for_each_noisy(const Noise& noise, uint64_t first, size_t n, Each&& each) {
  U words[4];
  size_t i = 0;
  bool second = first / 64 % 2 != 0;
  if (second) philox_lanes(noise, static_cast<uint32_t>(first / 128 * 16), words);
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    if (!second) philox_lanes(noise, static_cast<uint32_t>((first + i) / 128 * 16), words);
    for (size_t j = 0; j < 4; ++j) {
      each(i + j * kLanes, second ? shift_right<16>(words[j]) : words[j] & splat(0xffffu));
    }
    second = !second;
  }
  return i;
}
#endif

}  // namespace
}  // namespace tersegrad
