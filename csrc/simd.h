// A vector of sixteen 32-bit lanes on every instruction set: one AVX-512 register, two of AVX2, four of NEON. The
// kernels are written once on these names. The scalar variant has no vectors: there the spec functions do every entry.
//
//   F sixteen floats   U sixteen 32-bit integers (two's complement where signed)   B sixteen bytes
//   load store splat    bits floats    operators + - * & | ^    shift_left<c> shift_right<c> shift_right_signed<c>
//   larger smaller (integers below 2^31)    at_least (16-bit mask; integers below 2^31)    nearest_int to_float    root
//   shift_left (by a variable)    table8 lookup lookup16    butterfly<step>    R load_register (one register)
//   load_limits add_limits_below (keys)
//   split_lanes join_lanes multiply high_xor (64-bit products)    compress    stream_store
//   sign_mask spread_signs    narrow_bytes widen_bytes    store_codes<bits> load_codes<bits> unpack_codes<bits>
#pragma once

#include "bits.h"

#if defined(TERSEGRAD_AVX512)
#include "simd/avx512.h"
#elif defined(TERSEGRAD_AVX2)
#include "simd/avx2.h"
#elif defined(TERSEGRAD_NEON)
#include "simd/neon.h"
#endif

#if defined(TERSEGRAD_AVX512) || defined(TERSEGRAD_AVX2) || defined(TERSEGRAD_NEON)
#define TERSEGRAD_SIMD 1
#else
#define TERSEGRAD_SIMD 0
#endif

// For functions of lanes: a call would take them through memory.
#define TG_INLINE __attribute__((always_inline)) inline

namespace tersegrad {
namespace {

// 4 KiB ahead: far enough for DRAM, near enough to stay in L1. Never faults, so running past the end is harmless.
constexpr size_t kPrefetchBytes = 4096;
[[maybe_unused]] inline void prefetch(const void* p) {
  __builtin_prefetch(static_cast<const char*>(p) + kPrefetchBytes);
}

#if TERSEGRAD_SIMD
constexpr size_t kLanes = 16;

// The same names for vectors and for single entries.
using tersegrad::key_of;
using tersegrad::saturate;
using tersegrad::to_brain;

#if !defined(TERSEGRAD_AVX2)  // which has shorter ways of its own
// The limits between 2^(width - 1) levels, ascending, as keys.
template <int width>
struct Limits {
  U limit[7];
};
template <int width>
inline Limits<width> load_limits(const uint32_t* p) {
  Limits<width> out;
  for (int t = 0; t + 1 < 1 << (width - 1); ++t) out.limit[t] = splat(p[t]);
  return out;
}
// `code` plus the number of limits below the key.
template <int width>
inline U add_limits_below(U code, U key, const Limits<width>& limits) {
  for (int t = 0; t + 1 < 1 << (width - 1); ++t) code = count_above(code, key, limits.limit[t]);
  return code;
}

// Packs 32 codes of 2 to 4 bits. What is above them must be zero.
template <int width>
inline void store_codes(uint8_t* p, U a, U b) {
  store_codes<width>(p, narrow_bytes(a));
  store_codes<width>(p + 2 * width, narrow_bytes(b));
}
#endif

inline U key_of(F v) { return bits(v) & splat(kMagnitude); }

// Sixteen entries of any dtype as float32.
template <DType dtype>
inline F load_entries(const void* x, size_t i) {
  if constexpr (dtype == DType::float32) {
    return load(static_cast<const float*>(x) + i);
  } else if constexpr (dtype == DType::float16) {
    return load_half(static_cast<const uint16_t*>(x) + i);
  } else {
    return floats(shift_left<16>(load_u16(static_cast<const uint16_t*>(x) + i)));
  }
}

inline F saturate(F v) {
  U magnitude = smaller(key_of(v), splat(kLargest));
  return floats((bits(v) & splat(~kMagnitude)) | magnitude);
}

inline U to_brain(F v) {
  U key = key_of(v);
  key = key + splat(0x7fffu) + (shift_right<16>(key) & splat(1u));
  key = smaller(key, splat(kLargestBrainKey));
  return shift_right<16>((bits(v) & splat(~kMagnitude)) | key);
}

// Clamped first, so that the conversion instruction, which would give an infinity, saturates.
inline F clamp_to_half(F v) {
  U magnitude = smaller(key_of(v), splat(bits_of(kLargestHalf)));
  return floats((bits(v) & splat(~kMagnitude)) | magnitude);
}
#endif

}  // namespace
}  // namespace tersegrad
