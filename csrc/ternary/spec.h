// Minus, zero or plus the mean magnitude of those that are not zero: docs/format.md, codec 8.
#pragma once

#include "../sign/spec.h"

namespace tersegrad {

// Five digits of base 3 fill a byte up to 242: 1.6 bits for each, where log2(3) is 1.585.
constexpr size_t kDigitsPerByte = 5;
constexpr uint8_t kDigitBytes = 243;  // so many values of a byte are in use

TG_SPEC size_t digit_bytes(size_t n) { return (n + kDigitsPerByte - 1) / kDigitsPerByte; }

// The least key that is not rounded to zero.
TG_SPEC uint32_t ternary_limit(float threshold, float mean) {
  uint32_t key = key_of(threshold * mean);
  return key > 0 ? key : 1;
}

// All bits where an entry reaches the limit, none where it becomes zero. Keys and limits lie below 2^31, so the sign of
// their difference tells; a comparison would become a branch that cannot be foreseen.
TG_SPEC uint32_t ternary_mask(float value, uint32_t limit) { return ((key_of(value) - limit) >> 31) - 1; }

// 0 for zero, 1 for plus, 2 for minus.
TG_SPEC uint32_t ternary_digit(float value, uint32_t mask) { return (1 + sign_bit(value)) & mask; }

// Digit `j` of a byte, the lowest first.
TG_SPEC uint32_t digit_of(uint32_t byte, size_t j) {
  for (; j > 0; --j) byte /= 3;
  return byte % 3;
}

TG_SPEC float ternary_entry(uint32_t digit, float scale) { return digit == 0 ? 0.0f : sign_entry(digit - 1, scale); }

}  // namespace tersegrad
