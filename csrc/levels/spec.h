// Sign and magnitude on a grid that is fitted to each block: docs/format.md, codec 11. The levels are evenly spaced in
// a coordinate of the magnitude: the magnitude itself, its square root, or its bits as an integer, which is its
// logarithm drawn with straight lines between the powers of two.
#pragma once

#include "../bits.h"

namespace tersegrad {

enum class Spacing : uint32_t { uniform = 0, square = 1, logarithmic = 2 };

namespace levels {
enum class Choice : uint8_t { automatic, uniform, square, logarithmic };  // of an encoder
}

constexpr float kLeastStep = 0x1p-100f;      // levels that lie closer than this are one
constexpr uint32_t kLargestBrain = 0x7f7fu;  // the largest finite bfloat16
constexpr int32_t kLevelBias = 32768 + 65536;

// What four bytes before the codes say of a block: the smallest magnitude, cut to bfloat16, in the low half, the
// largest, raised to bfloat16, in the high half, and the spacing in their sign bits, which magnitudes leave free.
TG_SPEC uint32_t pack_bounds(uint32_t least_key, uint32_t largest_key, Spacing spacing) {
  uint32_t low = least_key >> 16, high = (largest_key + 0xffffu) >> 16, form = static_cast<uint32_t>(spacing);
  if (high > kLargestBrain) high = kLargestBrain;
  return low | high << 16 | (form & 1u) << 15 | (form >> 1) << 31;
}
TG_SPEC bool bounds_are_valid(uint32_t bounds) {
  uint32_t low = bounds & 0x7fffu, high = bounds >> 16 & 0x7fffu;
  return low <= high && high <= kLargestBrain && (bounds & 0x80008000u) != 0x80008000u;
}

// The spacings that an encoder tries on a block; the first of the least error wins. A logarithm does not reach down to
// zero.
struct TriedSpacings {
  Spacing spacing[2];
  size_t count;
};
TG_SPEC TriedSpacings tried_spacings(levels::Choice choice, uint32_t least_key) {
  using levels::Choice;
  if (choice == Choice::uniform) return {{Spacing::uniform}, 1};
  if (choice == Choice::square || least_key >> 16 == 0) return {{Spacing::square}, 1};
  if (choice == Choice::logarithmic) return {{Spacing::logarithmic}, 1};
  return {{Spacing::square, Spacing::logarithmic}, 2};
}

struct LevelGrid {
  Spacing spacing;
  uint32_t levels;   // 2^(bits - 1)
  uint32_t low_key;  // where the logarithmic coordinate begins
  float base, step, inverse;
};

TG_SPEC float level_coordinate(uint32_t key, Spacing spacing, uint32_t low_key) {
  if (spacing == Spacing::uniform) return float_of(key);
  if (spacing == Spacing::square) return sqrtf(float_of(key));
  return static_cast<float>(static_cast<int32_t>(key - low_key));
}

// Levels are the middles of equal cells. Where the block reaches down to zero they begin with zero, so that entries of
// zero stay what they are.
TG_SPEC LevelGrid level_grid(uint32_t bounds, int bits) {
  const auto spacing = static_cast<Spacing>((bounds >> 15 & 1u) | (bounds >> 31) << 1);
  const uint32_t low_key = (bounds & 0x7fffu) << 16, high_key = (bounds >> 16 & 0x7fffu) << 16;
  const uint32_t levels = 1u << (bits - 1);
  const float begin = level_coordinate(low_key, spacing, low_key);
  const float range = level_coordinate(high_key, spacing, low_key) - begin;
  const float step = range / static_cast<float>(low_key == 0 ? levels - 1 : levels);
  const float base = low_key == 0 ? begin : begin + 0.5f * step;
  return {spacing, levels, low_key, base, step, step < kLeastStep ? 0.0f : 65536.0f / step};
}

// The number of the nearest level; one more than it before it is cut, so that no integer is negative.
TG_SPEC uint32_t level_of(float value, const LevelGrid& grid) {
  float distance = level_coordinate(key_of(value), grid.spacing, grid.low_key) - grid.base;
  int32_t above = (static_cast<int32_t>(lrintf(distance * grid.inverse)) + kLevelBias) >> 16;
  int32_t most = static_cast<int32_t>(grid.levels);
  return static_cast<uint32_t>(above < 1 ? 0 : above > most ? most - 1 : above - 1);
}

TG_SPEC float level_value(uint32_t level, const LevelGrid& grid) {
  float at = grid.base + static_cast<float>(static_cast<int32_t>(level)) * grid.step;
  if (grid.spacing == Spacing::uniform) return at;
  if (grid.spacing == Spacing::square) return at * at;
  return float_of(grid.low_key + static_cast<uint32_t>(lrintf(at)));
}

TG_SPEC float level_error(float value, uint32_t level, const LevelGrid& grid) {
  return float_of(key_of(value)) - level_value(level, grid);
}

// A code is the level, and above it the sign.
TG_SPEC uint32_t level_code(float value, uint32_t level, const LevelGrid& grid) {
  return level | (bits_of(value) >> 31) * grid.levels;
}
TG_SPEC float level_entry(uint32_t code, const LevelGrid& grid) {
  float magnitude = level_value(code & (grid.levels - 1), grid);
  return float_of(bits_of(magnitude) | (code & grid.levels ? ~kMagnitude : 0u));
}

}  // namespace tersegrad
