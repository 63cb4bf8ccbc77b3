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

// The values of bodies of one codec, which are added up in this order.
struct Bodies {
  Values values[kBodies];
  unsigned count;
};

struct Target {
  void* out;  // of float32, if there are several bodies
  DType dtype;
  size_t n;
  bool accumulate;  // onto what `out` holds, or onto the number at `start` if that is not null
  float scale;
  const float* start;
};

static __global__ void decode_entries(Bodies bodies, Target to) {
  for (size_t i = 4 * thread_number(); i < to.n; i += 4 * thread_total()) {
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (to.start != nullptr) {
      for (int j = 0; j < 4; ++j) sum[j] = *to.start;
    } else if (to.accumulate) {
      load_four(to.out, to.dtype, i, to.n, sum);
    }
    for (unsigned body = 0; body < bodies.count; ++body) {
      for (unsigned j = 0; j < 4; ++j) {
        const float value = i + j < to.n ? to.scale * decoded(bodies.values[body], i + j) : 0.0f;
        sum[j] = to.accumulate ? sum[j] + value : value;
      }
    }
    store_four(to.out, to.dtype, i, to.n, sum);
  }
}

__device__ inline void scatter_value(const Target& to, size_t i, float value) {
  if (to.accumulate) value = load_aligned(to.out, to.dtype, i) + value;
  store_aligned(to.out, to.dtype, i, value);
}

// One body onto what is there.
static __global__ void scatter_values(Values values, const uint32_t* index, size_t k, Target to) {
  for (size_t j = thread_number(); j < k; j += thread_total()) {
    const size_t i = index[j];
    if (i < to.n) scatter_value(to, i, to.scale * decoded(values, j));  // beyond, in a forged stream
  }
}

// A block for each tile of the target: what it starts from, then the survivors of each body in turn, found by
// bisection. `index` has k for each body, or with `same_indices` k for all.
static __global__ void __launch_bounds__(kThreads)
    scatter_bodies(Bodies bodies, const uint32_t* index, size_t k, bool same_indices, Target to) {
  __shared__ size_t bounds[2 * kBodies];
  const size_t begin = blockIdx.x * kTargetTile, rest = to.n - begin;
  const size_t end = begin + (rest < kTargetTile ? rest : kTargetTile);
  if (threadIdx.x < 2 * bodies.count) {
    const uint32_t* of_body = index + (same_indices ? 0 : threadIdx.x / 2 * k);
    bounds[threadIdx.x] = first_at_least([of_body](size_t j) { return static_cast<uint64_t>(of_body[j]); }, k,
                                         threadIdx.x % 2 == 0 ? begin : end);
  }
  if (!to.accumulate || to.start != nullptr) {
    const float start = to.accumulate ? *to.start : 0.0f, four[4] = {start, start, start, start};
    for (size_t i = begin + 4 * threadIdx.x; i < end; i += 4 * kThreads) store_four(to.out, to.dtype, i, end, four);
  }
  __syncthreads();
  for (unsigned body = 0; body < bodies.count; ++body) {
    const uint32_t* of_body = index + (same_indices ? 0 : body * k);
    for (size_t j = bounds[2 * body] + threadIdx.x; j < bounds[2 * body + 1]; j += kThreads) {
      const size_t i = of_body[j];
      if (i >= begin && i < end) scatter_value(to, i, to.scale * decoded(bodies.values[body], j));  // or it is forged
    }
    __syncthreads();
  }
}

static __global__ void settle_residual(Values values, const uint32_t* index, const float* value, size_t k,
                                       float* residual, const Header* header) {
  if (verdict_after(*header) != kSent) return;
  for (size_t j = thread_number(); j < k; j += thread_total()) residual[index[j]] = value[j] - decoded(values, j);
}

}  // namespace tersegrad::cuda
