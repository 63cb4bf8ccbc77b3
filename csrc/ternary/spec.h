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

// 0 for zero, 1 for plus, 2 for minus.
TG_SPEC uint8_t ternary_digit(float value, uint32_t limit) {
  return key_of(value) < limit ? uint8_t{0} : static_cast<uint8_t>(1 + sign_bit(value));
}

TG_SPEC float ternary_entry(uint8_t digit, float scale) { return digit == 0 ? 0.0f : sign_entry(digit - 1u, scale); }

}  // namespace tersegrad
