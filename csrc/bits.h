// Views of floats as integers, and the conversions of docs/format.md section 2. Host and device; internal linkage,
// so that an object compiled for one instruction set never lends its code to another.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define TG_SPEC static __host__ __device__ inline
#else
#define TG_SPEC static inline
#endif

namespace tersegrad {

// The wire codes of docs/format.md.
enum class DType : uint8_t { float32 = 1, float16 = 2, bfloat16 = 3 };

TG_SPEC size_t item_bytes(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

constexpr uint32_t kMagnitude = 0x7fffffffu;  // all bits of a float but its sign
constexpr uint32_t kInfinity = 0x7f800000u;   // keys from here on are infinities and NaNs
constexpr uint32_t kLargest = 0x7f7fffffu;    // the largest finite float32
constexpr float kLargestHalf = 65504.0f;
constexpr uint32_t kLargestBrainKey = 0x7f7f0000u;  // the largest finite bfloat16, as float32

TG_SPEC uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

TG_SPEC float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Orders magnitudes as integers: |a| < |b| exactly when key(a) < key(b), and NaN above all.
TG_SPEC uint32_t key_of(float value) { return bits_of(value) & kMagnitude; }

TG_SPEC bool is_finite_key(uint32_t key) { return key < kInfinity; }

// A float32 infinity becomes the largest finite value (so would a NaN, but none gets here).
TG_SPEC float saturate(float value) {
  uint32_t key = key_of(value);
  return float_of((bits_of(value) & ~kMagnitude) | (is_finite_key(key) ? key : kLargest));
}

TG_SPEC float from_brain(uint16_t brain) { return float_of(static_cast<uint32_t>(brain) << 16); }

// Round to nearest even, saturating. Keys stay below the NaNs, so adding the rounding bias cannot wrap.
TG_SPEC uint16_t to_brain(float value) {
  uint32_t sign = bits_of(value) & ~kMagnitude;
  uint32_t key = key_of(value);
  key += 0x7fffu + ((key >> 16) & 1u);
  if (key > kLargestBrainKey) key = kLargestBrainKey;
  return static_cast<uint16_t>((sign | key) >> 16);
}

TG_SPEC float from_half(uint16_t half) {
  uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity or NaN; a NaN comes out quiet, as from every conversion instruction
    uint32_t payload = (magnitude & 0x3ffu) << 13;
    return float_of(sign | kInfinity | payload | (payload ? 0x400000u : 0u));
  }
  if (magnitude >= 0x0400u) return float_of(sign | ((magnitude << 13) + (112u << 23)));
  // Subnormal: magnitude * 2^-24, exact in float32.
  return float_of(sign | bits_of(static_cast<float>(magnitude) * 5.9604644775390625e-8f));
}

// Round to nearest even, saturating.
TG_SPEC uint16_t to_half(float value) {
  uint32_t sign = (bits_of(value) & ~kMagnitude) >> 16;
  uint32_t key = key_of(value);
  if (key >= bits_of(kLargestHalf)) return static_cast<uint16_t>(sign | 0x7bffu);
  if (key < 0x38800000u) {  // below 2^-14: adding 0.5 rounds to a multiple of 2^-24, nearest even
    float rounded = float_of(key) + 0.5f;
    return static_cast<uint16_t>(sign | (bits_of(rounded) - bits_of(0.5f)));
  }
  key += 0xfffu + ((key >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((key - (112u << 23)) >> 13));
}

// Entries inside a body may lie at any address, so they are copied, not dereferenced.
TG_SPEC float load_entry(const void* x, DType dtype, size_t i) {
  auto at = static_cast<const char*>(x) + i * item_bytes(dtype);
  if (dtype == DType::float32) {
    float value;
    memcpy(&value, at, sizeof value);
    return value;
  }
  uint16_t bits;
  memcpy(&bits, at, sizeof bits);
  return dtype == DType::float16 ? from_half(bits) : from_brain(bits);
}

// Two, four, six or eight bytes as the low ones of a word. Six take two: going through memory would stall.
template <int bytes>
static inline uint64_t load_bytes(const uint8_t* p) {
  if constexpr (bytes == 2) {
    uint16_t word;
    memcpy(&word, p, sizeof word);
    return word;
  } else if constexpr (bytes == 4) {
    uint32_t word;
    memcpy(&word, p, sizeof word);
    return word;
  } else if constexpr (bytes == 6) {
    return load_bytes<4>(p) | load_bytes<2>(p + 4) << 32;
  } else {
    uint64_t word;
    memcpy(&word, p, sizeof word);
    return word;
  }
}
template <int bytes>
static inline void store_bytes(uint8_t* p, uint64_t word) {
  const uint32_t low = static_cast<uint32_t>(word);
  memcpy(p, &low, sizeof low);
  if constexpr (bytes == 6) {
    const uint16_t high = static_cast<uint16_t>(word >> 32);
    memcpy(p + 4, &high, sizeof high);
  }
}

// Scales open the body of a blockwise codec, at any address.
TG_SPEC void put_scale(uint8_t* scales, size_t block, float scale) {
  memcpy(scales + block * sizeof scale, &scale, sizeof scale);
}

TG_SPEC float get_scale(const uint8_t* scales, size_t block) {
  float scale;
  memcpy(&scale, scales + block * sizeof scale, sizeof scale);
  return scale;
}

// round(dtype, value) of docs/format.md, as a float32.
TG_SPEC float round_to(DType dtype, float value) {
  switch (dtype) {
    case DType::float16:
      return from_half(to_half(value));
    case DType::bfloat16:
      return from_brain(to_brain(value));
    default:
      return saturate(value);
  }
}

TG_SPEC void store_entry(void* out, DType dtype, size_t i, float value) {
  auto at = static_cast<char*>(out) + i * item_bytes(dtype);
  if (dtype == DType::float32) {
    memcpy(at, &value, sizeof value);
    return;
  }
  uint16_t bits = dtype == DType::float16 ? to_half(value) : to_brain(value);
  memcpy(at, &bits, sizeof bits);
}

}  // namespace tersegrad
