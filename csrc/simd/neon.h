// Sixteen lanes as four NEON registers (aarch64).
#pragma once

#include <arm_neon.h>

#include "../bits.h"

namespace tersegrad {
namespace {

struct F {
  float32x4_t r[4];
};
struct U {
  uint32x4_t r[4];
};
struct B {
  uint8x16_t r;
};

#define TG_LANES(type, expression)                   \
  type out;                                          \
  for (int q = 0; q < 4; ++q) out.r[q] = expression; \
  return out

inline F load(const float* p) { TG_LANES(F, vld1q_f32(p + 4 * q)); }
inline U load(const uint32_t* p) { TG_LANES(U, vld1q_u32(p + 4 * q)); }
inline void store(float* p, F v) {
  for (int q = 0; q < 4; ++q) vst1q_f32(p + 4 * q, v.r[q]);
}
inline void store(uint32_t* p, U v) {
  for (int q = 0; q < 4; ++q) vst1q_u32(p + 4 * q, v.r[q]);
}
// The baseline has no store past the caches that pays.
inline void stream_store(float* p, F v) { store(p, v); }
inline void stream_end() {}
inline F splat(float v) { TG_LANES(F, vdupq_n_f32(v)); }
inline U splat(uint32_t v) { TG_LANES(U, vdupq_n_u32(v)); }
inline U lane_numbers() {
  const uint32_t first[4] = {0, 1, 2, 3};
  TG_LANES(U, vaddq_u32(vld1q_u32(first), vdupq_n_u32(4u * static_cast<uint32_t>(q))));
}

inline F load_half(const uint16_t* p) { TG_LANES(F, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * q)))); }
inline void store_half(uint16_t* p, F v) {
  for (int q = 0; q < 4; ++q) vst1_u16(p + 4 * q, vreinterpret_u16_f16(vcvt_f16_f32(v.r[q])));
}
inline U load_u16(const uint16_t* p) { TG_LANES(U, vmovl_u16(vld1_u16(p + 4 * q))); }
inline void store_u16(uint16_t* p, U v) {
  for (int q = 0; q < 4; ++q) vst1_u16(p + 4 * q, vmovn_u32(v.r[q]));
}

// One register, where sixteen lanes would take too many of them.
struct R {
  float32x4_t r;
};
constexpr size_t kRegister = 4;
inline R load_register(const float* p) { return {vld1q_f32(p)}; }
inline void store(float* p, R v) { vst1q_f32(p, v.r); }
inline R operator+(R a, R b) { return {vaddq_f32(a.r, b.r)}; }
inline R operator-(R a, R b) { return {vsubq_f32(a.r, b.r)}; }

inline U bits(F v) { TG_LANES(U, vreinterpretq_u32_f32(v.r[q])); }
inline F floats(U v) { TG_LANES(F, vreinterpretq_f32_u32(v.r[q])); }
inline F operator+(F a, F b) { TG_LANES(F, vaddq_f32(a.r[q], b.r[q])); }
inline F operator-(F a, F b) { TG_LANES(F, vsubq_f32(a.r[q], b.r[q])); }
inline F operator*(F a, F b) { TG_LANES(F, vmulq_f32(a.r[q], b.r[q])); }
inline U operator+(U a, U b) { TG_LANES(U, vaddq_u32(a.r[q], b.r[q])); }
inline U operator&(U a, U b) { TG_LANES(U, vandq_u32(a.r[q], b.r[q])); }
inline U operator|(U a, U b) { TG_LANES(U, vorrq_u32(a.r[q], b.r[q])); }
inline U operator^(U a, U b) { TG_LANES(U, veorq_u32(a.r[q], b.r[q])); }
template <int count>
inline U shift_left(U v) {
  TG_LANES(U, vshlq_n_u32(v.r[q], count));
}
template <int count>
inline U shift_right(U v) {
  TG_LANES(U, vshrq_n_u32(v.r[q], count));
}
template <int count>
inline U shift_right_signed(U v) {
  TG_LANES(U, vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(v.r[q]), count)));
}
inline U shift_left(U v, int count) { TG_LANES(U, vshlq_u32(v.r[q], vdupq_n_s32(count))); }
inline U larger(U a, U b) { TG_LANES(U, vmaxq_u32(a.r[q], b.r[q])); }
inline U smaller(U a, U b) { TG_LANES(U, vminq_u32(a.r[q], b.r[q])); }
inline uint32_t largest_lane(U v) {
  return vmaxvq_u32(vmaxq_u32(vmaxq_u32(v.r[0], v.r[1]), vmaxq_u32(v.r[2], v.r[3])));
}
// One bit per lane from lanes that are all ones or all zeros.
inline uint32_t lane_mask(U chosen) {
  const uint32_t weights[4] = {1, 2, 4, 8};
  uint32_t mask = 0;
  for (int q = 0; q < 4; ++q) mask |= vaddvq_u32(vandq_u32(chosen.r[q], vld1q_u32(weights))) << (4 * q);
  return mask;
}
inline uint32_t at_least(U a, U b) {
  U chosen;
  for (int q = 0; q < 4; ++q) chosen.r[q] = vcgeq_u32(a.r[q], b.r[q]);
  return lane_mask(chosen);
}
inline U count_above(U count, U a, U b) { TG_LANES(U, vsubq_u32(count.r[q], vcgtq_u32(a.r[q], b.r[q]))); }
// Lane j of the mask: whether the magnitude of p[j], as an integer, is at least `limit`; both below 2^15.
inline uint32_t magnitudes_at_least(const uint16_t* p, uint16_t limit) {
  return at_least(load_u16(p) & splat(0x7fffu), splat(static_cast<uint32_t>(limit)));
}
inline U nearest_int(F v) { TG_LANES(U, vreinterpretq_u32_s32(vcvtnq_s32_f32(v.r[q]))); }
inline F lookup16(const float* table, U index) {
  auto bytes = reinterpret_cast<const uint8_t*>(table);
  const uint8x16x4_t all = {{vld1q_u8(bytes), vld1q_u8(bytes + 16), vld1q_u8(bytes + 32), vld1q_u8(bytes + 48)}};
  // The four bytes of entry j are 4j to 4j + 3.
  TG_LANES(F, vreinterpretq_f32_u8(vqtbl4q_u8(all, vreinterpretq_u8_u32(vaddq_u32(vmulq_n_u32(index.r[q], 0x04040404u),
                                                                                  vdupq_n_u32(0x03020100u))))));
}
inline F root(F v) { TG_LANES(F, vsqrtq_f32(v.r[q])); }
inline F to_float(U v) { TG_LANES(F, vcvtq_f32_s32(vreinterpretq_s32_u32(v.r[q]))); }

// Sixteen lanes with room for 64-bit products, each in the low half of a 64-bit lane.
struct Halves {
  uint64x2_t r[8];
};
inline Halves split_lanes(U v) {
  Halves out;
  for (int q = 0; q < 4; ++q) {
    out.r[2 * q] = vmovl_u32(vget_low_u32(v.r[q]));
    out.r[2 * q + 1] = vmovl_high_u32(v.r[q]);
  }
  return out;
}
inline U join_lanes(Halves v) { TG_LANES(U, vcombine_u32(vmovn_u64(v.r[2 * q]), vmovn_u64(v.r[2 * q + 1]))); }
inline Halves multiply(Halves v, uint32_t factor) {
  Halves out;
  for (int q = 0; q < 8; ++q) out.r[q] = vmull_u32(vmovn_u64(v.r[q]), vdup_n_u32(factor));
  return out;
}
// High half of `product`, exclusive-or `b`, exclusive-or `key`.
inline Halves high_xor(Halves product, Halves b, uint32_t key) {
  Halves out;
  for (int q = 0; q < 8; ++q) {
    out.r[q] = veorq_u64(vshrq_n_u64(product.r[q], 32), veorq_u64(b.r[q], vdupq_n_u64(key)));
  }
  return out;
}

// Bit j of the mask is the sign bit of lane j.
inline uint32_t sign_mask(F v) { return lane_mask(shift_right_signed<31>(bits(v))); }
inline U spread_signs(uint32_t mask) {
  const int32_t first[4] = {31, 30, 29, 28};
  TG_LANES(U, vandq_u32(vshlq_u32(vdupq_n_u32(mask), vsubq_s32(vld1q_s32(first), vdupq_n_s32(4 * q))),
                        vdupq_n_u32(~kMagnitude)));
}

// Writes the chosen lanes; may write up to sixteen.
template <class T, class V>
inline void compress_lanes(T* p, uint32_t mask, V v) {
  T lanes[16];
  store(lanes, v);
  for (; mask != 0; mask &= mask - 1) *p++ = lanes[__builtin_ctz(mask)];
}
inline void compress(uint32_t* p, uint32_t mask, U v) { compress_lanes(p, mask, v); }
inline void compress(float* p, uint32_t mask, F v) { compress_lanes(p, mask, v); }

inline B narrow_bytes(U v) {
  uint16x8_t low = vcombine_u16(vmovn_u32(v.r[0]), vmovn_u32(v.r[1]));
  uint16x8_t high = vcombine_u16(vmovn_u32(v.r[2]), vmovn_u32(v.r[3]));
  return {vcombine_u8(vmovn_u16(low), vmovn_u16(high))};
}
inline U widen_bytes(B v) {
  int8x16_t bytes = vreinterpretq_s8_u8(v.r);
  int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
  return {{vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(low))), vreinterpretq_u32_s32(vmovl_high_s16(low)),
           vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(high))), vreinterpretq_u32_s32(vmovl_high_s16(high))}};
}

// Merges neighbours of `width` bits: even | odd << width, in the low half of the result.
template <int width>
inline uint8x16_t merge(uint8x16_t v) {
  v = vandq_u8(v, vdupq_n_u8((1 << width) - 1));
  return vorrq_u8(vuzp1q_u8(v, v), vshlq_n_u8(vuzp2q_u8(v, v), width));
}

template <int width>
inline void store_codes(uint8_t* p, B codes) {
  if constexpr (width == 8) {
    vst1q_u8(p, codes.r);
  } else if constexpr (width == 4) {
    vst1_u8(p, vget_low_u8(merge<4>(codes.r)));
  } else if constexpr (width == 3) {
    // Pairs of 6 bits in words, then four codes of 12 bits in double words, then eight of 24.
    uint16x8_t v = vreinterpretq_u16_u8(vandq_u8(codes.r, vdupq_n_u8(7)));
    uint32x4_t pairs = vreinterpretq_u32_u16(vandq_u16(vorrq_u16(v, vshrq_n_u16(v, 5)), vdupq_n_u16(0x3f)));
    uint64x2_t quads = vreinterpretq_u64_u32(vandq_u32(vorrq_u32(pairs, vshrq_n_u32(pairs, 10)), vdupq_n_u32(0xfff)));
    uint64x2_t eights = vorrq_u64(quads, vshrq_n_u64(quads, 20));
    uint64_t word = (vgetq_lane_u64(eights, 0) & 0xffffffu) | (vgetq_lane_u64(eights, 1) & 0xffffffu) << 24;
    store_bytes<6>(p, word);
  } else {
    uint32_t word = vgetq_lane_u32(vreinterpretq_u32_u8(merge<4>(merge<2>(codes.r))), 0);
    memcpy(p, &word, sizeof word);
  }
}

// 8 bytes of nibbles, or 8 nibbles of crumbs, to 16 bytes: low part first.
template <int width>
inline uint8x16_t split(uint8x16_t v) {
  const uint8x16_t mask = vdupq_n_u8((1 << width) - 1);
  return vzip1q_u8(vandq_u8(v, mask), vandq_u8(vshrq_n_u8(v, width), mask));
}

// Sign-extends two's complement codes of `sign` = 1 << (width - 1) held in the low bits of bytes.
inline uint8x16_t extend_codes(uint8x16_t codes, uint8_t sign) {
  return vsubq_u8(veorq_u8(codes, vdupq_n_u8(sign)), vdupq_n_u8(sign));
}

template <int width>
inline B load_codes(const uint8_t* p) {
  if constexpr (width == 8) {
    return {vld1q_u8(p)};
  } else if constexpr (width == 4) {
    return {extend_codes(split<4>(vcombine_u8(vld1_u8(p), vdup_n_u8(0))), 8)};
  } else {
    uint32_t word;
    memcpy(&word, p, sizeof word);
    uint8x16_t bytes = vreinterpretq_u8_u32(vdupq_n_u32(word));
    return {extend_codes(split<2>(split<4>(bytes)), 2)};
  }
}

// One of eight floats by the low three bits of each lane.
struct Table8 {
  uint8x16x2_t r;
};
inline Table8 table8(const float* p) {
  return {{{vreinterpretq_u8_f32(vld1q_f32(p)), vreinterpretq_u8_f32(vld1q_f32(p + 4))}}};
}
inline F lookup(Table8 table, U index) {
  // Number i begins at byte 4 i: its four bytes are 4 i to 4 i + 3.
  F out;
  for (int q = 0; q < 4; ++q) {
    uint32x4_t first = vmulq_u32(vandq_u32(index.r[q], vdupq_n_u32(7)), vdupq_n_u32(0x04040404u));
    uint8x16_t at = vreinterpretq_u8_u32(vaddq_u32(first, vdupq_n_u32(0x03020100u)));
    out.r[q] = vreinterpretq_f32_u8(vqtbl2q_u8(table.r, at));
  }
  return out;
}

// Sixteen packed codes, eight from the low and eight from the high half of their bits, each in the low bits of a lane;
// what is above them is undefined.
template <int width>
inline U unpack_codes(const uint8_t* p) {
  const uint64_t word = load_bytes<2 * width>(p);
  const int32_t first[4] = {0, -width, -2 * width, -3 * width};
  const int32x4_t shift = vld1q_s32(first), later = vsubq_s32(shift, vdupq_n_s32(4 * width));
  uint32x4_t low = vdupq_n_u32(static_cast<uint32_t>(word)),
             high = vdupq_n_u32(static_cast<uint32_t>(word >> (8 * width)));
  return {{vshlq_u32(low, shift), vshlq_u32(low, later), vshlq_u32(high, shift), vshlq_u32(high, later)}};
}

// One stage of a Hadamard transform: lane j becomes v[j] + v[j + step], lane j + step v[j] - v[j + step].
template <int step>
inline F butterfly(F v) {
  if constexpr (step == 8) {
    return {
        {vaddq_f32(v.r[0], v.r[2]), vaddq_f32(v.r[1], v.r[3]), vsubq_f32(v.r[0], v.r[2]), vsubq_f32(v.r[1], v.r[3])}};
  } else if constexpr (step == 4) {
    return {
        {vaddq_f32(v.r[0], v.r[1]), vsubq_f32(v.r[0], v.r[1]), vaddq_f32(v.r[2], v.r[3]), vsubq_f32(v.r[2], v.r[3])}};
  } else {
    constexpr uint32_t kSign = ~kMagnitude;
    const uint32_t signs[4] = {0, step == 1 ? kSign : 0, step == 2 ? kSign : 0, kSign};
    const uint32x4_t minus = vld1q_u32(signs);
    F out;
    for (int q = 0; q < 4; ++q) {
      float32x4_t other = step == 1 ? vrev64q_f32(v.r[q]) : vextq_f32(v.r[q], v.r[q], 2);
      out.r[q] = vaddq_f32(other, vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(v.r[q]), minus)));
    }
    return out;
  }
}
#undef TG_LANES

}  // namespace
}  // namespace tersegrad
