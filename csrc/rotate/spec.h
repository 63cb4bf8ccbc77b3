// A random rotation and the codes of a normal distribution: docs/format.md, codec 10. After a Hadamard transform with
// random signs the entries of any block look normal, so one grid, the best for the normal distribution, fits all.
#pragma once

#include "../kernels.h"
#include "../philox.h"
#include "../sign/spec.h"

namespace tersegrad {

// Signs come from Philox in groups: one call of sixteen lanes gives 2048 of them. Entry i finds its sign in lane i mod
// 16, so that sixteen consecutive entries take one bit from each of sixteen consecutive words; high bits first.
constexpr size_t kSignGroup = 2048;
constexpr size_t kSignWords = 64;              // of a group: word w of lane j lies at 16 w + j
constexpr uint32_t kSecondPass = 0x80000000u;  // added to the counters of a second pass

TG_SPEC uint32_t first_sign_counter(uint64_t group, uint32_t pass) { return static_cast<uint32_t>(16 * group) + pass; }

// Lane j of a group, of the sixteen from `counter` on.
TG_SPEC void put_sign_words(uint64_t seed, uint32_t step, uint32_t counter, uint32_t j, uint32_t* words) {
  const PhiloxWords own = philox(seed, counter + j, step, kRotationSigns);
  for (size_t w = 0; w < 4; ++w) words[w * 16 + j] = own.word[w];
}

TG_SPEC uint32_t sign_at(const uint32_t* words, size_t i) {
  const size_t row = i % kSignGroup / 16;
  return words[i / kSignGroup * kSignWords + row / 32 * 16 + i % 16] << (row % 32) & ~kMagnitude;
}

// The magnitudes that codes stand for, ascending, and the limits between them: Lloyd and Max's quantizer of the
// standard normal distribution. Each level is the mean of the distribution between its limits, each limit lies halfway
// between two levels; tests/test_rotated.py iterates to that fixed point in float64 and rounds to float32.
constexpr size_t kMostLevels = 8;
struct RotationGrid {
  float level[kMostLevels];
  float limit[kMostLevels - 1];
};

TG_SPEC constexpr int rotation_levels(int bits) { return 1 << (bits - 1); }

TG_SPEC constexpr RotationGrid rotation_grid(int bits) {
  if (bits == 1) return {{0.797884583f}, {}};
  if (bits == 2) return {{0.452780038f, 1.51041758f}, {0.981598794f}};
  if (bits == 3)
    return {{0.24509418f, 0.756005287f, 1.34390926f, 2.15194559f}, {0.500549734f, 1.04995728f, 1.74792755f}};
  return {{0.128395036f, 0.388048291f, 0.656759143f, 0.942340434f, 1.25623119f, 1.6180464f, 2.06901717f, 2.73258948f},
          {0.258221656f, 0.522403717f, 0.799549758f, 1.09928584f, 1.4371388f, 1.84353185f, 2.40080333f}};
}

// The sign above the number of the level: how many limits, multiplied by the deviation of the block, lie below |z|.
TG_SPEC uint32_t rotation_code(float z, const float* limit, int bits) {
  uint32_t level = 0;
  for (int t = 0; t + 1 < rotation_levels(bits); ++t) level += key_of(z) > key_of(limit[t]) ? 1u : 0u;
  return sign_bit(z) << (bits - 1) | level;
}

TG_SPEC float rotation_level(uint32_t code, int bits, const RotationGrid& grid) {
  const uint32_t sign = code >> (bits - 1);
  return float_of(bits_of(grid.level[code & ((1u << (bits - 1)) - 1)]) | sign << 31);
}

// Codes lie at bit offsets of any kind.
template <int width>
TG_SPEC uint32_t get_rotated(const uint8_t* codes, size_t i) {
  const size_t bit = i * width, byte = bit / 8, shift = bit % 8;
  const uint32_t high = shift + width > 8 ? codes[byte + 1] : 0u;
  return (codes[byte] | high << 8) >> shift & ((1u << width) - 1);
}

// Powers of two that keep what follows in range: the exponent of the largest magnitude, so that it becomes about one.
TG_SPEC int rotation_exponent(uint32_t max_key) {
  const int exponent = static_cast<int>(max_key >> 23) - 127;
  return exponent < -100 ? -100 : exponent > 100 ? 100 : exponent;
}
TG_SPEC float power_of_two(int exponent) { return float_of(static_cast<uint32_t>(127 + exponent) << 23); }

// 1 / sqrt(n) for a power of two.
TG_SPEC float rotation_norm(size_t n) {
  int log2 = 0;
  while (n >> 1 >> log2 != 0) ++log2;
  return (log2 % 2 == 0 ? 1.0f : 0.70710678f) * power_of_two(-(log2 / 2));
}

TG_SPEC size_t largest_power_of_two(size_t n) {
  size_t power = 1;
  while (power <= n / 2) power *= 2;
  return power;
}

// A block's length as a power of two, or two of them that overlap: the second pass ends where the block ends.
struct RotationPasses {
  size_t power, offset;  // of the second pass; 0: there is none
  float norm;
};
TG_SPEC RotationPasses rotation_passes(size_t n) {
  const size_t power = largest_power_of_two(n);
  return {power, n - power, rotation_norm(power)};
}

// What a transform begins with.
TG_SPEC float rotated_entry(float a, uint32_t sign, float factor) { return float_of(bits_of(a * factor) ^ sign); }

// Either of the two scales. `share` is the number of entries divided by the number of those that are sent; `levels` is
// the sum of the squares of their levels.
TG_SPEC float unbiased_scale(const RotationSums& sums, float share, int exponent) {
  if (!(sums.products > 0.0f)) return 0.0f;
  return saturate(sums.squares / sums.products * share * power_of_two(exponent));
}
TG_SPEC float least_error_scale(const RotationSums& sums, float levels, int exponent) {
  return saturate(sums.products / levels * power_of_two(exponent));
}

// Entry j of the `kept` that are drawn from a block of n: one from each of equal strata.
TG_SPEC size_t stratum_start(size_t j, size_t n, size_t kept) { return j * n / kept; }
TG_SPEC size_t drawn_entry(uint32_t word, size_t j, size_t n, size_t kept) {
  const uint64_t start = stratum_start(j, n, kept), width = stratum_start(j + 1, n, kept) - start;
  return static_cast<size_t>(start + (word * width >> 32));
}

// Levels are below 3 and a transform makes sums at most sqrt(n) <= 256 times as large, twice in the last block: below
// this scale no product is near the largest float.
constexpr float kNeverSaturates = 0x1p100f;

TG_SPEC float unrotated_entry(float value, uint32_t sign, float norm, float scale) {
  return saturate(float_of(bits_of(value * norm) ^ sign) * scale);
}

}  // namespace tersegrad
