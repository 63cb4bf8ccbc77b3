// What AVX2 and AVX-512 share: sixteen bytes in one 128-bit register, and packed codes in and out of it.
#pragma once

#include <immintrin.h>

#include "../bits.h"

namespace tersegrad {
namespace {

struct B {
  __m128i r;
};

// Codes are the low bits of each byte; two or four neighbours are merged by a multiply-add, low bits first.
template <int width>
inline void store_codes(uint8_t* p, B codes) {
  if constexpr (width == 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), codes.r);
  } else if constexpr (width == 4) {
    __m128i nibbles = _mm_and_si128(codes.r, _mm_set1_epi8(0x0f));
    __m128i pairs = _mm_maddubs_epi16(nibbles, _mm_set1_epi16(0x1001));  // even + 16 * odd
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(pairs, pairs));
  } else if constexpr (width == 3) {
    __m128i octals = _mm_and_si128(codes.r, _mm_set1_epi8(0x07));
    __m128i pairs = _mm_maddubs_epi16(octals, _mm_set1_epi16(0x0801));  // even + 8 * odd
    __m128i quads = _mm_madd_epi16(pairs, _mm_set1_epi32(0x00400001));  // even + 64 * odd
    __m128i eights = _mm_or_si128(quads, _mm_srli_epi64(quads, 20));    // in the low 24 bits of each half
    eights = _mm_shuffle_epi8(eights, _mm_setr_epi8(0, 1, 2, 8, 9, 10, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
    store_bytes<6>(p, static_cast<uint64_t>(_mm_cvtsi128_si64(eights)));
  } else {
    __m128i crumbs = _mm_and_si128(codes.r, _mm_set1_epi8(0x03));
    __m128i pairs = _mm_maddubs_epi16(crumbs, _mm_set1_epi16(0x0401));  // even + 4 * odd
    __m128i quads = _mm_madd_epi16(pairs, _mm_set1_epi32(0x00100001));  // even + 16 * odd
    quads = _mm_packus_epi16(_mm_packus_epi32(quads, quads), quads);
    uint32_t word = static_cast<uint32_t>(_mm_cvtsi128_si32(quads));
    memcpy(p, &word, sizeof word);
  }
}

// Sign-extends two's complement codes of `sign` = 1 << (width - 1) held in the low bits of bytes.
inline __m128i extend_codes(__m128i codes, char sign) {
  return _mm_sub_epi8(_mm_xor_si128(codes, _mm_set1_epi8(sign)), _mm_set1_epi8(sign));
}

// 8 bytes of nibbles, or 8 nibbles of crumbs, to 16 bytes: low part first.
template <int width>
inline __m128i split(__m128i v) {
  const __m128i mask = _mm_set1_epi8((1 << width) - 1);
  return _mm_unpacklo_epi8(_mm_and_si128(v, mask), _mm_and_si128(_mm_srli_epi16(v, width), mask));
}

template <int width>
inline B load_codes(const uint8_t* p) {
  if constexpr (width == 8) {
    return {_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))};
  } else if constexpr (width == 4) {
    return {extend_codes(split<4>(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))), 8)};
  } else {
    int word;
    memcpy(&word, p, sizeof word);
    return {extend_codes(split<2>(split<4>(_mm_cvtsi32_si128(word))), 2)};
  }
}

}  // namespace
}  // namespace tersegrad
