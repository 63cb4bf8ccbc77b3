// A block scale and a small float for every entry: docs/format.md, codecs 12 to 14. A small float is the leading bits
// of a float32 whose exponent has been moved down: its own smallest exponent comes to lie at zero, where entries are
// evenly spaced. With three bits of fraction (e4m3):
//   0 0000010 1|01...    bits after the move; those before the bar are the code, those behind are rounded away
#pragma once

#include "../quantize/spec.h"

namespace tersegrad {

enum class SmallFloat : uint32_t { natural = 0, e4m3 = 1, e5m2 = 2, nf4 = 3 };
constexpr int kSmallFloats = 4;  // kSmallFloatKinds
TG_SPEC int small_slot(SmallFloat format) { return static_cast<int>(format); }

// Natural keeps no fraction and all exponents up to that of one, so that nothing is moved.
struct SmallFormat {
  int dropped;      // bits of a float32's fraction that are rounded away
  uint32_t offset;  // how far exponents move down
  uint32_t most;    // the largest code without its sign
  float largest;    // what it stands for
};
constexpr SmallFormat kSmallFormats[kSmallFloats] = {
    {23, 0, 127, 1.0f}, {20, 120u << 23, 0x7e, 448.0f}, {21, 112u << 23, 0x7b, 57344.0f}, {0, 0, 15, 1.0f}};

TG_SPEC constexpr int small_bits(SmallFloat format) { return format == SmallFloat::nf4 ? 4 : 8; }

// The scale of a block, from its largest key. That of natural is the power of two that is not below it, at most 2^127,
// so that dividing by it is exact.
TG_SPEC float small_scale(uint32_t max_key, SmallFloat format, float largest) {
  if (format != SmallFloat::natural) return max_key < kQuantizeFloor ? 0.0f : float_of(max_key) / largest;
  const uint32_t exponent = (max_key + 0x7fffffu) >> 23;
  return float_of((exponent > 254 ? 254 : exponent) << 23);
}
TG_SPEC float small_inverse(uint32_t max_key, float scale, SmallFloat format, float largest) {
  if (scale == 0.0f) return 0.0f;
  return format == SmallFloat::natural ? 1.0f / scale : largest / float_of(max_key);
}

// What is added before the lower bits are dropped: half of a code's last bit, or sixteen random bits in its place and
// then half of what is below them.
TG_SPEC uint32_t small_noise(uint32_t noise, int dropped) {
  return (noise << (dropped - 16)) + (dropped > 16 ? 1u << (dropped - 17) : 0u);
}
TG_SPEC uint32_t small_half(int dropped) { return 1u << (dropped - 1); }

// Below the smallest exponent a sum with it aligns the bits, as it does for float32's own denormals; the larger of the
// two forms is the right one on either side, and the smaller one on the way back.
TG_SPEC uint32_t small_move(uint32_t key, uint32_t offset) {
  if (offset == 0) return key;
  const uint32_t one = 1u << 23, aligned = bits_of(float_of(key) + float_of(offset + one)) - one;
  return (key > aligned ? key : aligned) - offset;
}
TG_SPEC float small_move_back(uint32_t moved, uint32_t offset) {
  if (offset == 0) return float_of(moved);
  const uint32_t one = 1u << 23, plain = moved + offset;
  const uint32_t aligned = bits_of(float_of(plain + one) - float_of(offset + one));
  return float_of(plain < aligned ? plain : aligned);
}

// `added` is small_half or small_noise.
TG_SPEC uint32_t small_code(float value, float inverse, uint32_t added, const SmallFormat& format) {
  const float v = value * inverse;
  const uint32_t code = (small_move(key_of(v), format.offset) + added) >> format.dropped;
  return (code < format.most ? code : format.most) | (bits_of(v) >> 31) << 7;
}
TG_SPEC float small_entry(uint32_t code, float scale, const SmallFormat& format) {
  const float magnitude = saturate(small_move_back((code & 127u) << format.dropped, format.offset) * scale);
  return float_of(bits_of(magnitude) | (code & 128u) << 24);
}

// NF4 (Dettmers et al. 2023, appendix E): sixteen quantiles of the normal distribution, zero among them, and the
// middles between them. In a function, since code of a device reads no array of a namespace.
TG_SPEC const float* normal_levels() {
  static constexpr float levels[16] = {-1.0f,
                                       -0.6961928009986877f,
                                       -0.5250730514526367f,
                                       -0.39491748809814453f,
                                       -0.28444138169288635f,
                                       -0.18477343022823334f,
                                       -0.09105003625154495f,
                                       0.0f,
                                       0.07958029955625534f,
                                       0.16093020141124725f,
                                       0.24611230194568634f,
                                       0.33791524171829224f,
                                       0.44070982933044434f,
                                       0.5626170039176941f,
                                       0.7229568362236023f,
                                       1.0f};
  return levels;
}
TG_SPEC float normal_middle(int j) { return (normal_levels()[j] + normal_levels()[j + 1]) * 0.5f; }

// The number of middles that an entry reaches.
TG_SPEC uint32_t normal_code(float value, float inverse) {
  const float v = value * inverse;
  uint32_t code = 15;
  for (int j = 0; j < 15; ++j) code -= bits_of(v - normal_middle(j)) >> 31;
  return code;
}
TG_SPEC float normal_entry(uint32_t code, float scale) { return saturate(normal_levels()[code] * scale); }

}  // namespace tersegrad
