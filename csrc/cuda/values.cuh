// Values of a body as numbers: one function for all value codecs, so that decoding into a tensor, adding, scattering
// and settling a residual are one kernel each.
#pragma once

#include "../cast/cuda.cuh"
#include "../index/cuda.cuh"
#include "../quantize/cuda.cuh"
#include "../sign/cuda.cuh"

namespace tersegrad::cuda {

enum class ValueKind : uint8_t { cast, quantize, sign };

struct Values {
  ValueKind kind;
  DType dtype;  // of the payload
  DType wire;   // cast
  uint8_t bits;
  uint32_t block_size;
  const uint8_t* scales;  // or the values of cast
  const uint8_t* codes;
};

__device__ inline float scale_at(const Values& values, size_t i) {
  const size_t block = i / values.block_size;
  return is_aligned(values.scales, 4) ? reinterpret_cast<const float*>(values.scales)[block]
                                      : get_scale(values.scales, block);
}

__device__ inline float decoded(const Values& values, size_t i) {
  if (values.kind == ValueKind::cast) {
    const float value = load_anywhere(values.scales, values.wire, i);
    return values.dtype != values.wire ? round_to(values.dtype, value) : value;
  }
  const float scale = scale_at(values, i);
  if (values.kind == ValueKind::sign) {
    return sign_entry(values.codes[i / 8] >> (i % 8) & 1u, round_to(values.dtype, scale));
  }
  return round_to(values.dtype, dequantize_entry(get_code(values.codes, values.bits, i), scale));
}

struct Target {
  void* out;
  DType dtype;
  size_t n;
  bool accumulate;
  float scale;
};

// Entries i to i + 4, or to n, are these decoded values.
__device__ inline void emit_four(const Target& to, size_t i, const float (&decoded)[4]) {
  float value[4], before[4];
  for (int j = 0; j < 4; ++j) value[j] = to.scale * decoded[j];
  if (to.accumulate) {
    load_four(to.out, to.dtype, i, to.n, before);
    for (int j = 0; j < 4; ++j) value[j] = before[j] + value[j];
  }
  store_four(to.out, to.dtype, i, to.n, value);
}

static __global__ void decode_entries(Values values, Target to) {
  for (size_t i = 4 * thread_number(); i < to.n; i += 4 * thread_total()) {
    float value[4];
    for (unsigned j = 0; j < 4; ++j) value[j] = i + j < to.n ? decoded(values, i + j) : 0.0f;
    emit_four(to, i, value);
  }
}

static __global__ void scatter_values(Values values, const uint32_t* index, size_t k, Target to) {
  for (size_t j = thread_number(); j < k; j += thread_total()) {
    const size_t i = index[j];
    if (i >= to.n) continue;  // a forged stream
    float value = to.scale * decoded(values, j);
    if (to.accumulate) value = load_aligned(to.out, to.dtype, i) + value;
    store_aligned(to.out, to.dtype, i, value);
  }
}

static __global__ void settle_residual(Values values, const uint32_t* index, const float* value, size_t k,
                                       float* residual, const Header* header) {
  if (verdict_after(*header) != kSent) return;
  for (size_t j = thread_number(); j < k; j += thread_total()) residual[index[j]] = value[j] - decoded(values, j);
}

}  // namespace tersegrad::cuda
