// Entries in and out of float32, and the arithmetic of residuals. Defined by the conversions in bits.h.
#pragma once

#include "../simd.h"

namespace tersegrad {
namespace {

inline uint32_t larger_key(uint32_t key, float value) {
  uint32_t other = key_of(value);
  return other > key ? other : key;
}

template <DType dtype>
uint32_t max_key(const void* x, size_t n) {
  size_t i = 0;
  uint32_t key = 0;
#if TERSEGRAD_SIMD
  U k0 = splat(0u), k1 = k0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    prefetch(static_cast<const char*>(x) + i * item_bytes(dtype));
    k0 = larger(k0, key_of(load_entries<dtype>(x, i)));
    k1 = larger(k1, key_of(load_entries<dtype>(x, i + kLanes)));
  }
  key = largest_lane(larger(k0, k1));
#endif
  for (; i < n; ++i) key = larger_key(key, load_entry(x, dtype, i));
  return key;
}

template <DType dtype>
uint32_t widen(const void* x, float* out, size_t n) {
  size_t i = 0;
  uint32_t key = 0;
#if TERSEGRAD_SIMD
  U keys = splat(0u);
  for (; i + kLanes <= n; i += kLanes) {
    prefetch(static_cast<const char*>(x) + i * item_bytes(dtype));
    F v = load_entries<dtype>(x, i);
    store(out + i, v);
    keys = larger(keys, key_of(v));
  }
  key = largest_lane(keys);
#endif
  for (; i < n; ++i) {
    out[i] = load_entry(x, dtype, i);
    key = larger_key(key, out[i]);
  }
  return key;
}

template <DType dtype>
uint32_t accumulate(const void* x, float* residual, size_t n) {
  size_t i = 0;
  uint32_t key = 0;
#if TERSEGRAD_SIMD
  U keys = splat(0u);
  for (; i + kLanes <= n; i += kLanes) {
    prefetch(static_cast<const char*>(x) + i * item_bytes(dtype));
    prefetch(residual + i);
    F v = load_entries<dtype>(x, i) + load(residual + i);
    store(residual + i, v);
    keys = larger(keys, key_of(v));
  }
  key = largest_lane(keys);
#endif
  for (; i < n; ++i) {
    residual[i] = load_entry(x, dtype, i) + residual[i];
    key = larger_key(key, residual[i]);
  }
  return key;
}

template <DType dtype>
void narrow(const float* values, void* out, size_t n) {
  size_t i = 0;
#if TERSEGRAD_SIMD
  for (; i + kLanes <= n; i += kLanes) {
    F v = load(values + i);
    if constexpr (dtype == DType::float32) {
      store(static_cast<float*>(out) + i, saturate(v));
    } else if constexpr (dtype == DType::float16) {
      store_half(static_cast<uint16_t*>(out) + i, clamp_to_half(v));
    } else {
      store_u16(static_cast<uint16_t*>(out) + i, to_brain(v));
    }
  }
#endif
  for (; i < n; ++i) store_entry(out, dtype, i, dtype == DType::float32 ? saturate(values[i]) : values[i]);
}

template <DType dtype>
void round_values(float* values, size_t n) {
  size_t i = 0;
#if TERSEGRAD_SIMD
  for (; i + kLanes <= n; i += kLanes) {
    F v = load(values + i);
    if constexpr (dtype == DType::float32) {
      store(values + i, saturate(v));
    } else if constexpr (dtype == DType::float16) {
      uint16_t half[kLanes];
      store_half(half, clamp_to_half(v));
      store(values + i, load_half(half));
    } else {
      store(values + i, floats(shift_left<16>(to_brain(v))));
    }
  }
#endif
  for (; i < n; ++i) values[i] = round_to(dtype, values[i]);
}

void multiply(float* values, float scale, size_t n) {
  size_t i = 0;
#if TERSEGRAD_SIMD
  for (; i + kLanes <= n; i += kLanes) store(values + i, splat(scale) * load(values + i));
#endif
  for (; i < n; ++i) values[i] = scale * values[i];
}

void add_scaled(float* out, const float* values, float scale, size_t n) {
  size_t i = 0;
#if TERSEGRAD_SIMD
  for (; i + kLanes <= n; i += kLanes) {
    prefetch(out + i);
    store(out + i, load(out + i) + splat(scale) * load(values + i));
  }
#endif
  for (; i < n; ++i) out[i] = out[i] + scale * values[i];
}

void stream(const float* values, float* out, size_t n) {
  size_t i = 0;
#if TERSEGRAD_SIMD
  for (; i < n && reinterpret_cast<uintptr_t>(out + i) % 64 != 0; ++i) out[i] = values[i];
  for (; i + kLanes <= n; i += kLanes) stream_store(out + i, load(values + i));
#endif
  for (; i < n; ++i) out[i] = values[i];
}

void end_stream() {
#if TERSEGRAD_SIMD
  stream_end();
#endif
}

void subtract(float* residual, const float* decoded, size_t n) {
  size_t i = 0;
#if TERSEGRAD_SIMD
  for (; i + kLanes <= n; i += kLanes) store(residual + i, load(residual + i) - load(decoded + i));
#endif
  for (; i < n; ++i) residual[i] = residual[i] - decoded[i];
}

}  // namespace
}  // namespace tersegrad
