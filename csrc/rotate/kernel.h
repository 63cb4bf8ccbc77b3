#pragma once

#include "../kernels.h"
#include "../philox_lanes.h"
#include "../simd.h"
#include "spec.h"

namespace tersegrad {
namespace {

void rotation_signs(const Noise& noise, uint32_t first_counter, size_t groups, uint32_t* words) {
  for (size_t g = 0; g < groups; ++g, words += kSignWords) {
    const uint32_t counter = first_counter + static_cast<uint32_t>(16 * g);
#if TERSEGRAD_SIMD
    U lanes[4];
    philox_lanes(noise, counter, lanes, kRotationSigns);
    for (size_t w = 0; w < 4; ++w) store(words + w * kLanes, lanes[w]);
#else
    for (uint32_t j = 0; j < 16; ++j) {
      PhiloxWords own = philox(noise.seed, counter + j, noise.step, kRotationSigns);
      for (size_t w = 0; w < 4; ++w) words[w * 16 + j] = own.word[w];
    }
#endif
  }
}

#if TERSEGRAD_SIMD
constexpr size_t kTile = 4 * kLanes;  // four vectors, six stages: what registers hold
static_assert(kTile == kSumLanes, "the sums run over four vectors");

// The signs of a tile: those of vector j come to the top when the words are shifted by j.
inline U tile_signs(const uint32_t* words, size_t i) {
  const size_t row = i % kSignGroup / kLanes;
  return shift_left(load(words + i / kSignGroup * kSignWords + row / 32 * kLanes), static_cast<int>(row % 32));
}

// Two stages on four vectors that lie h, 2 h and 3 h after the first.
inline void butterflies(F (&v)[4]) {
  F a = v[0] + v[1], b = v[0] - v[1], c = v[2] + v[3], d = v[2] - v[3];
  v[0] = a + c;
  v[1] = b + d;
  v[2] = a - c;
  v[3] = b - d;
}

inline void transform_tile(F (&v)[4]) {
  for (F& lanes : v) lanes = butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(lanes))));
  butterflies(v);
}
#endif

// The stages from h on. Two at a time where vectors allow: whatever is grouped, every sum has the same two terms.
inline void transform_from(size_t h, float* z, size_t n) {
#if TERSEGRAD_SIMD
  if (h >= kLanes) {
    for (; 4 * h <= n; h *= 4) {
      for (size_t begin = 0; begin < n; begin += 4 * h) {
        for (float* p = z + begin; p < z + begin + h; p += kLanes) {
          F v[4] = {load(p), load(p + h), load(p + 2 * h), load(p + 3 * h)};
          butterflies(v);
          for (size_t j = 0; j < 4; ++j) store(p + j * h, v[j]);
        }
      }
    }
    for (; 2 * h <= n; h *= 2) {
      for (size_t begin = 0; begin < n; begin += 2 * h) {
        for (float* p = z + begin; p < z + begin + h; p += kLanes) {
          F a = load(p), b = load(p + h);
          store(p, a + b);
          store(p + h, a - b);
        }
      }
    }
    return;
  }
#endif
  for (; h < n; h *= 2) {
    for (size_t begin = 0; begin < n; begin += 2 * h) {
      for (size_t i = begin; i < begin + h; ++i) {
        float a = z[i], b = z[i + h];
        z[i] = a + b;
        z[i + h] = a - b;
      }
    }
  }
}

void rotate_block(const float* a, size_t n, const uint32_t* words, size_t first, float factor, float* out) {
#if TERSEGRAD_SIMD
  if (n >= kTile) {
    const U top = splat(~kMagnitude);
    for (size_t i = 0; i < n; i += kTile) {
      U signs = tile_signs(words, first + i);
      F v[4];
      for (size_t j = 0; j < 4; ++j) {
        v[j] = floats(bits(load(a + i + j * kLanes) * splat(factor)) ^ (signs & top));
        signs = shift_left<1>(signs);
      }
      transform_tile(v);
      for (size_t j = 0; j < 4; ++j) store(out + i + j * kLanes, v[j]);
    }
    return transform_from(kTile, out, n);
  }
#endif
  for (size_t i = 0; i < n; ++i) out[i] = float_of(bits_of(a[i] * factor) ^ sign_at(words, first + i));
  transform_from(1, out, n);
}

void unrotate_block(float* values, size_t n, const uint32_t* words, size_t first, float norm, float scale) {
  size_t i = 0;
#if TERSEGRAD_SIMD
  if (n >= kTile) {
    for (; i < n; i += kTile) {
      F v[4];
      for (size_t j = 0; j < 4; ++j) v[j] = load(values + i + j * kLanes);
      transform_tile(v);
      for (size_t j = 0; j < 4; ++j) store(values + i + j * kLanes, v[j]);
    }
    transform_from(kTile, values, n);
    const U top = splat(~kMagnitude);
    for (i = 0; i < n; i += kTile) {
      U signs = tile_signs(words, first + i);
      for (size_t j = 0; j < 4; ++j) {
        F v = floats(bits(load(values + i + j * kLanes) * splat(norm)) ^ (signs & top));
        store(values + i + j * kLanes, saturate(v * splat(scale)));
        signs = shift_left<1>(signs);
      }
    }
    return;
  }
#endif
  transform_from(1, values, n);
  for (; i < n; ++i) values[i] = unrotated_entry(values[i], sign_at(words, first + i), norm, scale);
}

// Packs codes at a bit offset of any kind, into bytes that are zero.
template <int width>
inline void put_rotated(uint8_t* codes, size_t i, uint32_t code) {
  const size_t bit = i * width, byte = bit / 8, shift = bit % 8;
  const uint32_t shifted = code << shift;
  codes[byte] = static_cast<uint8_t>(codes[byte] | shifted);
  if (shift + width > 8) codes[byte + 1] = static_cast<uint8_t>(codes[byte + 1] | shifted >> 8);
}

template <int width>
inline uint32_t get_rotated(const uint8_t* codes, size_t i) {
  const size_t bit = i * width, byte = bit / 8, shift = bit % 8;
  const uint32_t high = shift + width > 8 ? codes[byte + 1] : 0u;
  return (codes[byte] | high << 8) >> shift & ((1u << width) - 1);
}

inline float sum_of_squares(const float* z, size_t n) {
  size_t i = 0;
  float lane[kSumLanes] = {};
#if TERSEGRAD_SIMD
  F sum[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  for (; i + kTile <= n; i += kTile) {
    for (size_t j = 0; j < 4; ++j) {
      F v = load(z + i + j * kLanes);
      sum[j] = sum[j] + v * v;
    }
  }
  for (size_t j = 0; j < 4; ++j) store(lane + j * kLanes, sum[j]);
#endif
  for (; i < n; ++i) lane[i % kSumLanes] = lane[i % kSumLanes] + z[i] * z[i];
  return sum_lanes(lane);
}

template <int width>
RotationSums quantize_rotated(const float* z, size_t n, uint8_t* codes) {
  constexpr RotationGrid grid = rotation_grid(width);
  constexpr int kLimits = rotation_levels(width) - 1;
  const float squares = sum_of_squares(z, n);
  const float deviation = sqrtf(squares / static_cast<float>(n));
  float limit[kMostLevels] = {};
  for (int t = 0; t < kLimits; ++t) limit[t] = grid.limit[t] * deviation;
  float products[kSumLanes] = {}, levels[kSumLanes] = {};
  size_t i = 0;
#if TERSEGRAD_SIMD
  const Table8 table = table8(grid.level);
  U limits[kMostLevels];
  for (int t = 0; t < kLimits; ++t) limits[t] = splat(bits_of(limit[t]));
  F product[4], square[4];
  for (size_t j = 0; j < 4; ++j) product[j] = square[j] = splat(0.0f);
  for (; i + kTile <= n; i += kTile) {
    uint64_t word = 0;
    for (size_t j = 0; j < 4; ++j) {
      F v = load(z + i + j * kLanes);
      U key = key_of(v), code = splat(0u);
      for (int t = 0; t < kLimits; ++t) code = count_above(code, key, limits[t]);
      F level = lookup(table, code);
      product[j] = product[j] + level * floats(key);
      square[j] = square[j] + level * level;
      if constexpr (width == 1) {
        word |= static_cast<uint64_t>(sign_mask(v)) << (j * kLanes);
      } else {
        code = code | shift_left<width - 1>(shift_right<31>(bits(v)));
        store_codes<width>(codes + (i + j * kLanes) * width / 8, narrow_bytes(code));
      }
    }
    if constexpr (width == 1) memcpy(codes + i / 8, &word, sizeof word);
  }
  for (size_t j = 0; j < 4; ++j) {
    store(products + j * kLanes, product[j]);
    store(levels + j * kLanes, square[j]);
  }
#endif
  if (i < n) memset(codes + i * width / 8, 0, ((n - i) * width + 7) / 8);
  for (; i < n; ++i) {
    const uint32_t code = rotation_code(z[i], limit, width);
    const float level = grid.level[code & ((1u << (width - 1)) - 1)];
    put_rotated<width>(codes, i, code);
    products[i % kSumLanes] = products[i % kSumLanes] + level * float_of(key_of(z[i]));
    levels[i % kSumLanes] = levels[i % kSumLanes] + level * level;
  }
  return {squares, sum_lanes(products), sum_lanes(levels)};
}

template <int width>
void dequantize_rotated(const uint8_t* codes, size_t n, float* out) {
  constexpr RotationGrid grid = rotation_grid(width);
  size_t i = 0;
#if TERSEGRAD_SIMD
  const Table8 table = table8(grid.level);
  const U magnitude = splat((1u << (width - 1)) - 1), top = splat(~kMagnitude);
  for (; i + kLanes <= n; i += kLanes) {
    U code = unpack_codes<width>(codes + i * width / 8);
    F level = lookup(table, code & magnitude);
    store(out + i, floats(bits(level) | (shift_left<32 - width>(code) & top)));
  }
#endif
  for (; i < n; ++i) out[i] = rotation_level(get_rotated<width>(codes, i), width, grid);
}

}  // namespace
}  // namespace tersegrad
