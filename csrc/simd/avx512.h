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
inline F splat(float v) { return {_mm512_set1_ps(v)}; }
inline U splat(uint32_t v) { return {_mm512_set1_epi32(static_cast<int>(v))}; }
inline U lane_numbers() {
  return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)};
}

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
inline U larger(U a, U b) { return {_mm512_max_epu32(a.r, b.r)}; }
inline U smaller(U a, U b) { return {_mm512_min_epu32(a.r, b.r)}; }
inline uint32_t largest_lane(U v) { return _mm512_reduce_max_epu32(v.r); }
inline uint32_t at_least(U a, U b) { return _mm512_cmpge_epu32_mask(a.r, b.r); }
inline U nearest_int(F v) { return {_mm512_cvtps_epi32(v.r)}; }
inline F to_float(U v) { return {_mm512_cvtepi32_ps(v.r)}; }

inline U multiply_low(U a, U b) { return {_mm512_mullo_epi32(a.r, b.r)}; }
struct Product {
  U high, low;
};
// The 64-bit products of the lanes, as halves; even and odd lanes are multiplied apart.
inline Product multiply(U a, U b) {
  __m512i even = _mm512_mul_epu32(a.r, b.r);
  __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a.r, 32), b.r);
  __m512i high = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
  __m512i low = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
  return {{high}, {low}};
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

}  // namespace
}  // namespace tersegrad
