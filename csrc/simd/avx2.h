// Sixteen lanes as two AVX2 registers.
#pragma once

#include "x86.h"

namespace tersegrad {
namespace {

struct F {
  __m256 r[2];
};
struct U {
  __m256i r[2];
};

inline F load(const float* p) { return {{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}}; }
inline U load(const uint32_t* p) {
  auto q = reinterpret_cast<const __m256i*>(p);
  return {{_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)}};
}
inline void store(float* p, F v) {
  _mm256_storeu_ps(p, v.r[0]);
  _mm256_storeu_ps(p + 8, v.r[1]);
}
inline void store(uint32_t* p, U v) {
  auto q = reinterpret_cast<__m256i*>(p);
  _mm256_storeu_si256(q, v.r[0]);
  _mm256_storeu_si256(q + 1, v.r[1]);
}
// Past the caches; p is a multiple of 64.
inline void stream_store(float* p, F v) {
  _mm256_stream_ps(p, v.r[0]);
  _mm256_stream_ps(p + 8, v.r[1]);
}
inline void stream_end() { _mm_sfence(); }
inline F splat(float v) { return {{_mm256_set1_ps(v), _mm256_set1_ps(v)}}; }
inline U splat(uint32_t v) {
  __m256i r = _mm256_set1_epi32(static_cast<int>(v));
  return {{r, r}};
}
inline U lane_numbers() {
  return {{_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)}};
}

inline F load_half(const uint16_t* p) {
  auto q = reinterpret_cast<const __m128i*>(p);
  return {{_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))}};
}
inline void store_half(uint16_t* p, F v) {
  auto q = reinterpret_cast<__m128i*>(p);
  _mm_storeu_si128(q, _mm256_cvtps_ph(v.r[0], _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(q + 1, _mm256_cvtps_ph(v.r[1], _MM_FROUND_TO_NEAREST_INT));
}
inline U load_u16(const uint16_t* p) {
  auto q = reinterpret_cast<const __m128i*>(p);
  return {{_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), _mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1))}};
}
inline void store_u16(uint16_t* p, U v) {
  __m256i packed = _mm256_packus_epi32(v.r[0], v.r[1]);  // packs within 128-bit halves: put them in order
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}

// Lane j of the mask: whether the magnitude of p[j], as an integer, is at least `limit`; both below 2^15.
inline uint32_t magnitudes_at_least(const uint16_t* p, uint16_t limit) {
  __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  v = _mm256_and_si256(v, _mm256_set1_epi16(0x7fff));
  __m256i below = _mm256_cmpgt_epi16(_mm256_set1_epi16(static_cast<short>(limit)), v);
  __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(below), _mm256_extracti128_si256(below, 1));
  return ~static_cast<uint32_t>(_mm_movemask_epi8(bytes)) & 0xffffu;
}

// One register, where sixteen lanes would take too many of them.
struct R {
  __m256 r;
};
constexpr size_t kRegister = 8;
inline R load_register(const float* p) { return {_mm256_loadu_ps(p)}; }
inline void store(float* p, R v) { _mm256_storeu_ps(p, v.r); }
inline R operator+(R a, R b) { return {_mm256_add_ps(a.r, b.r)}; }
inline R operator-(R a, R b) { return {_mm256_sub_ps(a.r, b.r)}; }

#define TG_LANES(type, expression)                   \
  type out;                                          \
  for (int h = 0; h < 2; ++h) out.r[h] = expression; \
  return out

inline U bits(F v) { TG_LANES(U, _mm256_castps_si256(v.r[h])); }
inline F floats(U v) { TG_LANES(F, _mm256_castsi256_ps(v.r[h])); }
inline F operator+(F a, F b) { TG_LANES(F, _mm256_add_ps(a.r[h], b.r[h])); }
inline F operator-(F a, F b) { TG_LANES(F, _mm256_sub_ps(a.r[h], b.r[h])); }
inline F operator*(F a, F b) { TG_LANES(F, _mm256_mul_ps(a.r[h], b.r[h])); }
inline U operator+(U a, U b) { TG_LANES(U, _mm256_add_epi32(a.r[h], b.r[h])); }
inline U operator&(U a, U b) { TG_LANES(U, _mm256_and_si256(a.r[h], b.r[h])); }
inline U operator|(U a, U b) { TG_LANES(U, _mm256_or_si256(a.r[h], b.r[h])); }
inline U operator^(U a, U b) { TG_LANES(U, _mm256_xor_si256(a.r[h], b.r[h])); }
template <int count>
inline U shift_left(U v) {
  TG_LANES(U, _mm256_slli_epi32(v.r[h], count));
}
template <int count>
inline U shift_right(U v) {
  TG_LANES(U, _mm256_srli_epi32(v.r[h], count));
}
template <int count>
inline U shift_right_signed(U v) {
  TG_LANES(U, _mm256_srai_epi32(v.r[h], count));
}
inline U shift_left(U v, int count) { TG_LANES(U, _mm256_sll_epi32(v.r[h], _mm_cvtsi32_si128(count))); }
inline U larger(U a, U b) { TG_LANES(U, _mm256_max_epu32(a.r[h], b.r[h])); }
inline U smaller(U a, U b) { TG_LANES(U, _mm256_min_epu32(a.r[h], b.r[h])); }
inline uint32_t largest_lane(U v) {
  __m256i m = _mm256_max_epu32(v.r[0], v.r[1]);
  __m128i q = _mm_max_epu32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
  q = _mm_max_epu32(q, _mm_shuffle_epi32(q, 0x4e));
  q = _mm_max_epu32(q, _mm_shuffle_epi32(q, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(q));
}
// Integers below 2^31: a >= b is not b > a.
inline uint32_t at_least(U a, U b) {
  uint32_t mask[2];
  for (int h = 0; h < 2; ++h) {
    __m256i below = _mm256_cmpgt_epi32(b.r[h], a.r[h]);
    mask[h] = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(below)));
  }
  return ~(mask[0] | mask[1] << 8) & 0xffffu;
}
inline U count_above(U count, U a, U b) {
  TG_LANES(U, _mm256_sub_epi32(count.r[h], _mm256_cmpgt_epi32(a.r[h], b.r[h])));
}
inline U nearest_int(F v) { TG_LANES(U, _mm256_cvtps_epi32(v.r[h])); }
inline F to_float(U v) { TG_LANES(F, _mm256_cvtepi32_ps(v.r[h])); }

// Sixteen lanes with room for 64-bit products: the even ones and the odd ones of each register, each in the low half of
// a 64-bit lane.
struct Halves {
  __m256i r[4];
};
inline Halves split_lanes(U v) {
  return {{v.r[0], _mm256_srli_epi64(v.r[0], 32), v.r[1], _mm256_srli_epi64(v.r[1], 32)}};
}
inline U join_lanes(Halves v) {
  TG_LANES(U, _mm256_blend_epi32(v.r[2 * h], _mm256_slli_epi64(v.r[2 * h + 1], 32), 0xaa));
}
inline Halves multiply(Halves v, uint32_t factor) {
  Halves out;
  for (int q = 0; q < 4; ++q) out.r[q] = _mm256_mul_epu32(v.r[q], _mm256_set1_epi64x(factor));
  return out;
}
// High half of `product`, exclusive-or `b`, exclusive-or `key`.
inline Halves high_xor(Halves product, Halves b, uint32_t key) {
  Halves out;
  for (int q = 0; q < 4; ++q) {
    __m256i high = _mm256_srli_epi64(product.r[q], 32);
    out.r[q] = _mm256_xor_si256(high, _mm256_xor_si256(b.r[q], _mm256_set1_epi64x(key)));
  }
  return out;
}

// Bit j of the mask is the sign bit of lane j.
inline uint32_t sign_mask(F v) {
  return static_cast<uint32_t>(_mm256_movemask_ps(v.r[0]) | _mm256_movemask_ps(v.r[1]) << 8);
}
inline U spread_signs(uint32_t mask) {
  __m256i all = _mm256_set1_epi32(static_cast<int>(mask));
  const __m256i low = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
  const __m256i high = _mm256_setr_epi32(23, 22, 21, 20, 19, 18, 17, 16);
  const __m256i sign = _mm256_set1_epi32(static_cast<int>(~kMagnitude));
  return {{_mm256_and_si256(_mm256_sllv_epi32(all, low), sign), _mm256_and_si256(_mm256_sllv_epi32(all, high), sign)}};
}

// For each 8-bit mask, the positions of its set bits as bytes, lowest first: the shuffle that AVX2 lacks an instruction
// for.
struct CompressTable {
  uint64_t positions[256];
  constexpr CompressTable() : positions() {
    for (int mask = 0; mask < 256; ++mask) {
      int count = 0;
      for (int bit = 0; bit < 8; ++bit) {
        if (mask >> bit & 1) positions[mask] |= static_cast<uint64_t>(bit) << (8 * count++);
      }
    }
  }
};
constexpr CompressTable kCompress;

inline __m256i compress_half(uint32_t mask, __m256i v) {
  __m128i bytes = _mm_cvtsi64_si128(static_cast<long long>(kCompress.positions[mask]));
  return _mm256_permutevar8x32_epi32(v, _mm256_cvtepu8_epi32(bytes));
}
// Stores all sixteen lanes, the chosen ones first; only those are meaningful.
inline void compress(uint32_t* p, uint32_t mask, U v) {
  uint32_t low = mask & 0xffu;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), compress_half(low, v.r[0]));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + _mm_popcnt_u32(low)), compress_half(mask >> 8, v.r[1]));
}
inline void compress(float* p, uint32_t mask, F v) {
  uint32_t low = mask & 0xffu;
  U u = bits(v);
  _mm256_storeu_ps(p, _mm256_castsi256_ps(compress_half(low, u.r[0])));
  _mm256_storeu_ps(p + _mm_popcnt_u32(low), _mm256_castsi256_ps(compress_half(mask >> 8, u.r[1])));
}

inline B narrow_bytes(U v) {
  const __m256i mask = _mm256_set1_epi32(0xff);
  __m256i words = _mm256_packus_epi32(_mm256_and_si256(v.r[0], mask), _mm256_and_si256(v.r[1], mask));
  words = _mm256_permute4x64_epi64(words, 0xd8);
  return {_mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1))};
}
inline U widen_bytes(B v) { return {{_mm256_cvtepi8_epi32(v.r), _mm256_cvtepi8_epi32(_mm_srli_si128(v.r, 8))}}; }

// The limits between 2^(width - 1) levels, ascending, as keys.
template <int width>
struct Limits {
  __m256i top, above, below, last;
};
template <int width>
inline Limits<width> load_limits(const uint32_t* p) {
  auto all = [&](int t) { return _mm256_set1_epi32(static_cast<int>(p[t])); };
  if constexpr (width <= 2) return {all(0), all(0), all(0), all(0)};
  if constexpr (width == 3) return {all(1), all(2), all(0), all(0)};
  // The last of three is chosen by minus the number that is known by then, modulo four.
  const __m128i last =
      _mm_setr_epi32(static_cast<int>(p[0]), static_cast<int>(p[6]), static_cast<int>(p[4]), static_cast<int>(p[2]));
  return {all(3), all(5), all(1), _mm256_broadcastsi128_si256(last)};
}
// `code` plus the number of limits below the key, by halving; a comparison is minus one where it holds.
template <int width>
inline U add_limits_below(U code, U key, const Limits<width>& limits) {
  if constexpr (width == 1) return code;
  U out;
  for (int h = 0; h < 2; ++h) {
    __m256i found = _mm256_cmpgt_epi32(key.r[h], limits.top);
    if constexpr (width >= 3) {
      __m256i next = _mm256_blendv_epi8(limits.below, limits.above, found);
      found = _mm256_add_epi32(_mm256_add_epi32(found, found), _mm256_cmpgt_epi32(key.r[h], next));
    }
    if constexpr (width == 4) {
      __m256 next = _mm256_permutevar_ps(_mm256_castsi256_ps(limits.last), found);
      found = _mm256_add_epi32(_mm256_add_epi32(found, found), _mm256_cmpgt_epi32(key.r[h], _mm256_castps_si256(next)));
    }
    out.r[h] = _mm256_sub_epi32(code.r[h], found);
  }
  return out;
}

// Packs 32 codes of 2 to 4 bits. What is above them must be zero.
template <int width>
inline void store_codes(uint8_t* p, U a, U b) {
  // Packing works in halves of 128 bits: groups of four codes 0 2 4 6 | 1 3 5 7 come out, in the order of the input.
  __m256i low = _mm256_packus_epi32(a.r[0], a.r[1]), high = _mm256_packus_epi32(b.r[0], b.r[1]);
  __m256i bytes = _mm256_packus_epi16(low, high);
  bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  __m256i pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi16((1 << (width + 8)) + 1));  // even + odd << width
  if constexpr (width == 4) {
    pairs = _mm256_permute4x64_epi64(_mm256_packus_epi16(pairs, pairs), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(pairs));
  } else {
    __m256i quads = _mm256_madd_epi16(pairs, _mm256_set1_epi32((1 << (2 * width + 16)) + 1));
    __m256i eights = _mm256_or_si256(quads, _mm256_srli_epi64(quads, 32 - 4 * width));  // in the low bits of 64
    const __m256i chosen = width == 2 ? _mm256_setr_epi8(0, 1, 8, 9, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0,
                                                         1, 8, 9, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1)
                                      : _mm256_setr_epi8(0, 1, 2, 8, 9, 10, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0,
                                                         1, 2, 8, 9, 10, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    eights = _mm256_shuffle_epi8(eights, chosen);
    store_bytes<2 * width>(p, static_cast<uint64_t>(_mm256_extract_epi64(eights, 0)));
    store_bytes<2 * width>(p + 2 * width, static_cast<uint64_t>(_mm256_extract_epi64(eights, 2)));
  }
}

// One of eight floats by the low three bits of each lane.
struct Table8 {
  __m256 r;
};
inline Table8 table8(const float* p) { return {_mm256_loadu_ps(p)}; }
inline F lookup(Table8 table, U index) { TG_LANES(F, _mm256_permutevar8x32_ps(table.r, index.r[h])); }

// Sixteen packed codes, eight from the low and eight from the high half of their bits, each in the low bits of a lane;
// what is above them is undefined.
template <int width>
inline U unpack_codes(const uint8_t* p) {
  const uint64_t word = load_bytes<2 * width>(p);
  const __m256i shift = _mm256_setr_epi32(0, width, 2 * width, 3 * width, 4 * width, 5 * width, 6 * width, 7 * width);
  __m256i low = _mm256_set1_epi32(static_cast<int>(word)),
          high = _mm256_set1_epi32(static_cast<int>(word >> (8 * width)));
  return {{_mm256_srlv_epi32(low, shift), _mm256_srlv_epi32(high, shift)}};
}

// One stage of a Hadamard transform: lane j becomes v[j] + v[j + step], lane j + step v[j] - v[j + step].
template <int step>
inline F butterfly(F v) {
  if constexpr (step == 8) {
    return {{_mm256_add_ps(v.r[0], v.r[1]), _mm256_sub_ps(v.r[0], v.r[1])}};
  } else {
    // The sign bit of the lanes that are subtracted: those whose number has the bit `step`.
    constexpr int kSign[2] = {0, static_cast<int>(~kMagnitude)};
    const __m256 minus =
        _mm256_castsi256_ps(_mm256_setr_epi32(0, kSign[step == 1], kSign[step == 2], kSign[step <= 2], kSign[step == 4],
                                              kSign[step == 4 || step == 1], kSign[step == 4 || step == 2], kSign[1]));
    F other;
    for (int h = 0; h < 2; ++h) {
      if constexpr (step == 1) other.r[h] = _mm256_permute_ps(v.r[h], 0xb1);
      if constexpr (step == 2) other.r[h] = _mm256_permute_ps(v.r[h], 0x4e);
      if constexpr (step == 4) other.r[h] = _mm256_permute2f128_ps(v.r[h], v.r[h], 1);
    }
    TG_LANES(F, _mm256_add_ps(other.r[h], _mm256_xor_ps(v.r[h], minus)));
  }
}
#undef TG_LANES

}  // namespace
}  // namespace tersegrad
