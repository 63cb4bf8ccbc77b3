// Blockwise absmax quantization to two's complement codes of 8, 4 or 2 bits: docs/format.md, codec 3. One
// multiplication and one conversion, then integers, so that no fused multiply-add can change a bit.
#pragma once

#include "../philox.h"

namespace tersegrad {

constexpr uint32_t kQuantizeFloor = 0x0d800000u;  // 2^-100: a block whose largest key is below quantizes to zero
constexpr uint32_t kRoundToNearest = 32768;

TG_SPEC float code_range(int bits) { return static_cast<float>((1 << (bits - 1)) - 1); }

// Both from the largest key of the block; zero for a block that is (almost) zero.
TG_SPEC float quantize_scale(uint32_t max_key, int bits) {
  return max_key < kQuantizeFloor ? 0.0f : float_of(max_key) / code_range(bits);
}
TG_SPEC float quantize_inverse(uint32_t max_key, int bits) {
  return max_key < kQuantizeFloor ? 0.0f : (code_range(bits) * 65536.0f) / float_of(max_key);
}

// The Euclidean norm of a block from its largest magnitude and the sum of (a / largest)^2, which neither overflows nor
// vanishes; never less than the largest magnitude.
TG_SPEC uint32_t norm_key(uint32_t max_key, float sum) {
  const uint32_t key = bits_of(saturate(float_of(max_key) * sqrtf(sum)));
  return key > max_key ? key : max_key;
}

// Sixteen random bits for entry i: words of one Philox call serve entries 16 apart, halves 64 apart, so that sixteen
// lanes with consecutive counters fill 128 consecutive entries.
TG_SPEC uint32_t rounding_noise(uint64_t seed, uint32_t step, uint64_t i) {
  PhiloxWords words = philox(seed, (i / 128) * 16 + i % 16, step, kRoundingNoise);
  return (words.word[(i / 16) % 4] >> (16 * ((i / 64) % 2))) & 0xffffu;
}

TG_SPEC int32_t quantize_entry(float value, float inverse, uint32_t noise) {
  return (static_cast<int32_t>(lrintf(value * inverse)) + static_cast<int32_t>(noise)) >> 16;
}

TG_SPEC void set_code(uint8_t* codes, int bits, size_t i, int32_t code) {
  size_t bit = i * static_cast<size_t>(bits);
  uint32_t mask = (1u << bits) - 1;
  codes[bit / 8] = static_cast<uint8_t>(codes[bit / 8] | (static_cast<uint32_t>(code) & mask) << (bit % 8));
}

TG_SPEC int32_t get_code(const uint8_t* codes, int bits, size_t i) {
  size_t bit = i * static_cast<size_t>(bits);
  uint32_t mask = (1u << bits) - 1, sign = 1u << (bits - 1);
  uint32_t code = static_cast<uint32_t>(codes[bit / 8] >> (bit % 8)) & mask;
  return static_cast<int32_t>((code ^ sign) - sign);
}

TG_SPEC float dequantize_entry(int32_t code, float scale) { return saturate(static_cast<float>(code) * scale); }

}  // namespace tersegrad
