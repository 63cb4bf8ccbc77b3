// Sixteen lanes as one AVX-512 register (F, BW, DQ, VL).
#pragma once

#include "x86.h"

namespace tersegrad {
namespace {

struct F {
  __m512 r;
};
struct U {
  __m512i r;
};

inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline U load(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store(float* p, F v) { _mm512_storeu_ps(p, v.r); }
inline void store(uint32_t* p, U v) { _mm512_storeu_si512(p, v.r); }
// Past the caches; p is a multiple of 64.
inline void stream_store(float* p, F v) { _mm512_stream_ps(p, v.r); }
inline void stream_end() { _mm_sfence(); }
inline F splat(float v) { return {_mm512_set1_ps(v)}; }
inline U splat(uint32_t v) { return {_mm512_set1_epi32(static_cast<int>(v))}; }
inline U lane_numbers() { return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)}; }

inline F load_half(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline void store_half(uint16_t* p, F v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(v.r, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline U load_u16(const uint16_t* p) {
  return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline void store_u16(uint16_t* p, U v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(v.r));
}

// Lane j of the mask: whether the magnitude of p[j], as an integer, is at least `limit`; both below 2^15.
inline uint32_t magnitudes_at_least(const uint16_t* p, uint16_t limit) {
  __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  v = _mm256_and_si256(v, _mm256_set1_epi16(0x7fff));
  return _mm256_cmpge_epu16_mask(v, _mm256_set1_epi16(static_cast<short>(limit)));
}

// One register, where others need several for sixteen lanes.
using R = F;
constexpr size_t kRegister = 16;
inline R load_register(const float* p) { return load(p); }

inline U bits(F v) { return {_mm512_castps_si512(v.r)}; }
inline F floats(U v) { return {_mm512_castsi512_ps(v.r)}; }
inline F operator+(F a, F b) { return {_mm512_add_ps(a.r, b.r)}; }
inline F operator-(F a, F b) { return {_mm512_sub_ps(a.r, b.r)}; }
inline F operator*(F a, F b) { return {_mm512_mul_ps(a.r, b.r)}; }
inline U operator+(U a, U b) { return {_mm512_add_epi32(a.r, b.r)}; }
inline U operator&(U a, U b) { return {_mm512_and_si512(a.r, b.r)}; }
inline U operator|(U a, U b) { return {_mm512_or_si512(a.r, b.r)}; }
inline U operator^(U a, U b) { return {_mm512_xor_si512(a.r, b.r)}; }
template <int count>
inline U shift_left(U v) {
  return {_mm512_slli_epi32(v.r, count)};
}
template <int count>
inline U shift_right(U v) {
  return {_mm512_srli_epi32(v.r, count)};
}
template <int count>
inline U shift_right_signed(U v) {
  return {_mm512_srai_epi32(v.r, count)};
}
inline U shift_left(U v, int count) { return {_mm512_sll_epi32(v.r, _mm_cvtsi32_si128(count))}; }
inline U larger(U a, U b) { return {_mm512_max_epu32(a.r, b.r)}; }
inline U smaller(U a, U b) { return {_mm512_min_epu32(a.r, b.r)}; }
inline uint32_t largest_lane(U v) { return _mm512_reduce_max_epu32(v.r); }
inline uint32_t at_least(U a, U b) { return _mm512_cmpge_epu32_mask(a.r, b.r); }
inline U count_above(U count, U a, U b) {
  return {_mm512_mask_add_epi32(count.r, _mm512_cmpgt_epi32_mask(a.r, b.r), count.r, _mm512_set1_epi32(1))};
}
inline U nearest_int(F v) { return {_mm512_cvtps_epi32(v.r)}; }
inline F lookup16(const float* table, U index) { return {_mm512_permutexvar_ps(index.r, _mm512_loadu_ps(table))}; }
inline F root(F v) { return {_mm512_sqrt_ps(v.r)}; }
inline F to_float(U v) { return {_mm512_cvtepi32_ps(v.r)}; }

// Sixteen lanes with room for 64-bit products: the even ones and the odd ones, each in the low half of a 64-bit lane.
struct Halves {
  __m512i even, odd;
};
inline Halves split_lanes(U v) { return {v.r, _mm512_srli_epi64(v.r, 32)}; }
inline U join_lanes(Halves v) { return {_mm512_mask_blend_epi32(0xaaaa, v.even, _mm512_slli_epi64(v.odd, 32))}; }
inline Halves multiply(Halves v, uint32_t factor) {
  __m512i f = _mm512_set1_epi64(factor);
  return {_mm512_mul_epu32(v.even, f), _mm512_mul_epu32(v.odd, f)};
}
// High half of `product`, exclusive-or `b`, exclusive-or `key`.
inline Halves high_xor(Halves product, Halves b, uint32_t key) {
  __m512i k = _mm512_set1_epi64(key);
  return {_mm512_ternarylogic_epi64(_mm512_srli_epi64(product.even, 32), b.even, k, 0x96),
          _mm512_ternarylogic_epi64(_mm512_srli_epi64(product.odd, 32), b.odd, k, 0x96)};
}

// Bit j of the mask is the sign bit of lane j.
inline uint32_t sign_mask(F v) { return _mm512_movepi32_mask(bits(v).r); }
inline U spread_signs(uint32_t mask) {
  return {_mm512_maskz_set1_epi32(static_cast<__mmask16>(mask), static_cast<int>(~kMagnitude))};
}

// Stores all sixteen lanes, the chosen ones first; only those are meaningful.
inline void compress(uint32_t* p, uint32_t mask, U v) {
  _mm512_storeu_si512(p, _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), v.r));
}
inline void compress(float* p, uint32_t mask, F v) {
  _mm512_storeu_ps(p, _mm512_maskz_compress_ps(static_cast<__mmask16>(mask), v.r));
}

inline B narrow_bytes(U v) { return {_mm512_cvtepi32_epi8(v.r)}; }
inline U widen_bytes(B v) { return {_mm512_cvtepi8_epi32(v.r)}; }

// One of eight floats by the low three bits of each lane.
struct Table8 {
  __m512 r;
};
inline Table8 table8(const float* p) { return {_mm512_broadcast_f32x8(_mm256_loadu_ps(p))}; }
inline F lookup(Table8 table, U index) { return {_mm512_permutexvar_ps(index.r, table.r)}; }

// Sixteen packed codes, eight from the low and eight from the high half of their bits, each in the low bits of a lane;
// what is above them is undefined.
template <int width>
inline U unpack_codes(const uint8_t* p) {
  const uint64_t word = load_bytes<2 * width>(p);
  const __m256i shift = _mm256_setr_epi32(0, width, 2 * width, 3 * width, 4 * width, 5 * width, 6 * width, 7 * width);
  __m256i low = _mm256_set1_epi32(static_cast<int>(word)),
          high = _mm256_set1_epi32(static_cast<int>(word >> (8 * width)));
  low = _mm256_srlv_epi32(low, shift);
  high = _mm256_srlv_epi32(high, shift);
  return {_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)};
}

// One stage of a Hadamard transform: lane j becomes v[j] + v[j + step], lane j + step v[j] - v[j + step].
template <int step>
inline F butterfly(F v) {
  constexpr __mmask16 kMinus = step == 1 ? 0xaaaa : step == 2 ? 0xcccc : step == 4 ? 0xf0f0 : 0xff00;
  __m512 other;
  if constexpr (step == 1) other = _mm512_permute_ps(v.r, 0xb1);
  if constexpr (step == 2) other = _mm512_permute_ps(v.r, 0x4e);
  if constexpr (step == 4) other = _mm512_shuffle_f32x4(v.r, v.r, 0xb1);
  if constexpr (step == 8) other = _mm512_shuffle_f32x4(v.r, v.r, 0x4e);
  return {_mm512_mask_sub_ps(_mm512_add_ps(other, v.r), kMinus, other, v.r)};
}

}  // namespace
}  // namespace tersegrad
