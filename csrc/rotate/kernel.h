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
    for (uint32_t j = 0; j < 16; ++j) put_sign_words(noise.seed, noise.step, counter, j, words);
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

// The six stages of a tile.
struct Tile {
  F a, b, c, d;
};
TG_INLINE F transform_lanes(F v) { return butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(v)))); }
TG_INLINE Tile transform_tile(F a, F b, F c, F d) {
  a = transform_lanes(a);
  b = transform_lanes(b);
  c = transform_lanes(c);
  d = transform_lanes(d);
  F ab = a + b, cd = c + d;
  b = a - b;
  d = c - d;
  return {ab + cd, b + d, ab - cd, b - d};
}
inline void store(float* p, const Tile& tile) {
  store(p, tile.a);
  store(p + kLanes, tile.b);
  store(p + 2 * kLanes, tile.c);
  store(p + 3 * kLanes, tile.d);
}

// While a block is transformed, what is used after it comes from memory.
inline void prefetch_tile(const void* next, size_t i) {
  for (size_t line = 0; line < kTile * sizeof(float); line += 64) {
    __builtin_prefetch(static_cast<const char*>(next) + i * sizeof(float) + line);
  }
}

// The end of unrotate, by tiles.
template <bool saturating>
inline void scale_block(float* values, size_t n, const uint32_t* words, size_t first, float norm, float scale) {
  const U top = splat(~kMagnitude);
  for (size_t i = 0; i < n; i += kTile) {
    U signs = tile_signs(words, first + i);
    for (size_t j = 0; j < 4; ++j) {
      float* p = values + i + j * kLanes;
      F v = floats(bits(load(p) * splat(norm)) ^ (signs & top)) * splat(scale);
      store(p, saturating ? saturate(v) : v);
      signs = shift_left<1>(signs);
    }
  }
}

// Two stages on registers that lie h apart, and three.
TG_INLINE void two_stages(float* p, size_t h) {
  R a = load_register(p), b = load_register(p + h), c = load_register(p + 2 * h), d = load_register(p + 3 * h);
  R ab = a + b, cd = c + d;
  b = a - b;
  d = c - d;
  store(p, ab + cd);
  store(p + h, b + d);
  store(p + 2 * h, ab - cd);
  store(p + 3 * h, b - d);
}
TG_INLINE void three_stages(float* p, size_t h) {
  float* q = p + 4 * h;
  R a = load_register(p), b = load_register(p + h), c = load_register(p + 2 * h), d = load_register(p + 3 * h);
  R e = load_register(q), f = load_register(q + h), g = load_register(q + 2 * h), i = load_register(q + 3 * h);
  R ab = a + b, cd = c + d, ef = e + f, gi = g + i;
  b = a - b;
  d = c - d;
  f = e - f;
  i = g - i;
  a = ab + cd;
  c = ab - cd;
  e = ef + gi;
  g = ef - gi;
  R bd = b + d, fi = f + i;
  d = b - d;
  i = f - i;
  store(p, a + e);
  store(p + h, bd + fi);
  store(p + 2 * h, c + g);
  store(p + 3 * h, d + i);
  store(q, a - e);
  store(q + h, bd - fi);
  store(q + 2 * h, c - g);
  store(q + 3 * h, d - i);
}
#endif

// The stages from h on. Several at a time where vectors allow: whatever is grouped, every sum has the same two terms.
inline void transform_from(size_t h, float* z, size_t n) {
#if TERSEGRAD_SIMD
  if (h >= kLanes) {
    for (; 8 * h <= n; h *= 8) {
      for (float* begin = z; begin < z + n; begin += 8 * h) {
        for (float* p = begin; p < begin + h; p += kRegister) three_stages(p, h);
      }
    }
    if (4 * h <= n) {
      for (float* p = z; p < z + h; p += kRegister) two_stages(p, h);
    } else if (2 * h <= n) {
      for (float* p = z; p < z + h; p += kRegister) {
        R a = load_register(p), b = load_register(p + h);
        store(p, a + b);
        store(p + h, a - b);
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

void rotate_block(const float* a, size_t n, const uint32_t* words, size_t first, float factor, float* out,
                  [[maybe_unused]] const void* next) {
#if TERSEGRAD_SIMD
  if (n >= kTile) {
    const U top = splat(~kMagnitude);
    const F factors = splat(factor);
    for (size_t i = 0; i < n; i += kTile) {
      const U signs = tile_signs(words, first + i);
      const float* p = a + i;
      prefetch_tile(next, i);
      store(out + i, transform_tile(floats(bits(load(p) * factors) ^ (signs & top)),
                                    floats(bits(load(p + kLanes) * factors) ^ (shift_left<1>(signs) & top)),
                                    floats(bits(load(p + 2 * kLanes) * factors) ^ (shift_left<2>(signs) & top)),
                                    floats(bits(load(p + 3 * kLanes) * factors) ^ (shift_left<3>(signs) & top))));
    }
    return transform_from(kTile, out, n);
  }
#endif
  for (size_t i = 0; i < n; ++i) out[i] = rotated_entry(a[i], sign_at(words, first + i), factor);
  transform_from(1, out, n);
}

void unrotate_block(float* values, size_t n, const uint32_t* words, size_t first, float norm, float scale,
                    [[maybe_unused]] const void* next) {
#if TERSEGRAD_SIMD
  if (n >= kTile) {
    for (size_t i = 0; i < n; i += kTile) {
      const float* p = values + i;
      prefetch_tile(next, i);
      store(values + i, transform_tile(load(p), load(p + kLanes), load(p + 2 * kLanes), load(p + 3 * kLanes)));
    }
    transform_from(kTile, values, n);
    return scale < kNeverSaturates ? scale_block<false>(values, n, words, first, norm, scale)
                                   : scale_block<true>(values, n, words, first, norm, scale);
  }
#endif
  transform_from(1, values, n);
  for (size_t i = 0; i < n; ++i) values[i] = unrotated_entry(values[i], sign_at(words, first + i), norm, scale);
}

// Packs codes at a bit offset of any kind, into bytes that are zero.
template <int width>
inline void put_rotated(uint8_t* codes, size_t i, uint32_t code) {
  const size_t bit = i * width, byte = bit / 8, shift = bit % 8;
  const uint32_t shifted = code << shift;
  codes[byte] = static_cast<uint8_t>(codes[byte] | shifted);
  if (shift + width > 8) codes[byte + 1] = static_cast<uint8_t>(codes[byte + 1] | shifted >> 8);
}

float sum_of_squares(const float* z, size_t n) {
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

#if TERSEGRAD_SIMD
template <int width>
inline Table8 repeated_levels(const RotationGrid& grid) {
  float level[kMostLevels];
  for (size_t i = 0; i < kMostLevels; ++i) level[i] = grid.level[i % static_cast<size_t>(rotation_levels(width))];
  return table8(level);
}
#endif

template <int width>
RotationSums quantize_rotated(const float* z, size_t n, uint8_t* codes) {
  constexpr RotationGrid grid = rotation_grid(width);
  constexpr int kLimits = rotation_levels(width) - 1;
  const float squares = sum_of_squares(z, n);
  const float deviation = sqrtf(squares / static_cast<float>(n));
  float limit[kMostLevels] = {};
  for (int t = 0; t < kLimits; ++t) limit[t] = grid.limit[t] * deviation;
  float products[kSumLanes] = {};
  size_t i = 0;
#if TERSEGRAD_SIMD
  // An index of three bits may hold the sign above the level, so narrow grids repeat.
  const Table8 table = repeated_levels<width>(grid);
  uint32_t keys[kMostLevels] = {};
  for (int t = 0; t < kLimits; ++t) keys[t] = bits_of(limit[t]);
  const auto limits = load_limits<width>(keys);
  const U sign = splat(1u << (width - 1));
  F product[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  auto code_of = [&](const float* p, F& sum) {
    F v = load(p);
    U key = key_of(v);
    U code = add_limits_below<width>(shift_right<32 - width>(bits(v)) & sign, key, limits);
    sum = sum + lookup(table, code) * floats(key);
    return code;
  };
  for (; i + kTile <= n; i += kTile) {
    const float* p = z + i;
    uint8_t* out = codes + i * width / 8;
    if constexpr (width == 1) {
      uint64_t word = 0;
      for (size_t j = 0; j < 4; ++j) {
        code_of(p + j * kLanes, product[j]);
        word |= static_cast<uint64_t>(sign_mask(load(p + j * kLanes))) << (j * kLanes);
      }
      memcpy(out, &word, sizeof word);
    } else {
      U a = code_of(p, product[0]), b = code_of(p + kLanes, product[1]);
      store_codes<width>(out, a, b);
      U c = code_of(p + 2 * kLanes, product[2]), d = code_of(p + 3 * kLanes, product[3]);
      store_codes<width>(out + 4 * width, c, d);
    }
  }
  for (size_t j = 0; j < 4; ++j) store(products + j * kLanes, product[j]);
#endif
  if (i < n) memset(codes + i * width / 8, 0, ((n - i) * width + 7) / 8);
  for (; i < n; ++i) {
    const uint32_t code = rotation_code(z[i], limit, width);
    const float level = grid.level[code & ((1u << (width - 1)) - 1)];
    put_rotated<width>(codes, i, code);
    products[i % kSumLanes] = products[i % kSumLanes] + level * float_of(key_of(z[i]));
  }
  return {squares, sum_lanes(products)};
}

template <int width>
void dequantize_rotated(const uint8_t* codes, size_t n, float* out) {
  constexpr RotationGrid grid = rotation_grid(width);
  size_t i = 0;
#if TERSEGRAD_SIMD
  const Table8 table = repeated_levels<width>(grid);
  const U top = splat(~kMagnitude);
  for (; i + kLanes <= n; i += kLanes) {
    U code = unpack_codes<width>(codes + i * width / 8);
    F level = lookup(table, code);
    store(out + i, floats(bits(level) | (shift_left<32 - width>(code) & top)));
  }
#endif
  for (; i < n; ++i) out[i] = rotation_level(get_rotated<width>(codes, i), width, grid);
}

}  // namespace
}  // namespace tersegrad
