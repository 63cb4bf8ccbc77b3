// Values of a body as numbers: one function for all value codecs, so that decoding into a tensor, adding, scattering
// and settling a residual are one kernel each.
#pragma once

#include "../cast/cuda.cuh"
#include "../index/cuda.cuh"
#include "../integers/cuda.cuh"
#include "../levels/cuda.cuh"
#include "../levels/pack.h"
#include "../quantize/cuda.cuh"
#include "../sign/cuda.cuh"
#include "../smallfloat/cuda.cuh"
#include "../ternary/cuda.cuh"

namespace tersegrad::cuda {

enum class ValueKind : uint8_t { cast, quantize, sign, ternary, levels, small, nf4, integers };

struct Values {
  ValueKind kind;
  DType dtype;  // of the payload
  DType wire;   // cast
  uint8_t bits;
  uint32_t block_size;
  const uint8_t* words;  // four bytes for each block: its scale or bounds
  const uint8_t* codes;  // or the values of cast
  SmallFormat format;    // small
  float unit;            // integers
};

// A payload holds fewer than 2^32 entries, and a division of 64 bits costs several of 32.
__device__ inline uint32_t block_of(const Values& values, size_t i) {
  return static_cast<uint32_t>(i) / values.block_size;
}

__device__ inline uint32_t word_of(const Values& values, size_t block) {
  if (is_aligned(values.words, 4)) return reinterpret_cast<const uint32_t*>(values.words)[block];
  return bits_of(get_scale(values.words, block));
}

// Entries from i on, of one block, as many as `value` takes; those from n on are zero.
template <unsigned count>
__device__ inline void decode_run(const Values& values, size_t i, size_t n, float (&value)[count]) {
  const uint8_t* codes = values.codes;
  const int bits = values.bits;
  auto each = [&](auto decode) {
    TERSEGRAD_UNROLL
    for (unsigned j = 0; j < count; ++j) value[j] = i + j < n ? decode(i + j) : 0.0f;
  };
  if (values.kind == ValueKind::cast) {
    each([&](size_t at) { return load_anywhere(codes, values.wire, at); });
    if (values.dtype == values.wire) return;
  } else if (values.kind == ValueKind::integers) {
    each([&](size_t at) { return integer_entry(load_integer(codes, bits, at), values.unit); });
  } else if (values.kind == ValueKind::levels) {
    const LevelGrid grid = level_grid(word_of(values, block_of(values, i)), bits);
    each([&](size_t at) { return level_entry(packed_code(codes, bits, at), grid); });
  } else {
    const size_t block = block_of(values, i);
    const float scale = float_of(word_of(values, block));
    switch (values.kind) {
      case ValueKind::sign: {
        const float entry = round_to(values.dtype, scale);
        return each([&](size_t at) { return sign_entry(codes[at / 8] >> (at % 8) & 1u, entry); });
      }
      case ValueKind::ternary: {
        const float entry = round_to(values.dtype, scale);
        const uint8_t* digits = codes + block * digit_bytes(values.block_size);
        return each([&](size_t at) {
          const size_t within = at - block * values.block_size;
          return ternary_entry(digit_of(digits[within / kDigitsPerByte], within % kDigitsPerByte), entry);
        });
      }
      case ValueKind::quantize:
        each([&](size_t at) { return dequantize_entry(get_code(codes, bits, at), scale); });
        break;
      case ValueKind::small:
        each([&](size_t at) { return small_entry(codes[at], scale, values.format); });
        break;
      default:
        each([&](size_t at) { return normal_entry(packed_code(codes, 4, at), scale); });
    }
  }
  TERSEGRAD_UNROLL
  for (unsigned j = 0; j < count; ++j) value[j] = round_to(values.dtype, value[j]);
}

__device__ inline float decoded(const Values& values, size_t i) {
  float value[1];
  decode_run(values, i, i + 1, value);
  return value[0];
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

// What entries i to i + 4 are added to.
__device__ inline void load_base(const Target& to, size_t i, float (&sum)[4]) {
  for (float& s : sum) s = to.start != nullptr ? *to.start : 0.0f;
  if (to.accumulate && to.start == nullptr) load_four(to.out, to.dtype, i, to.n, sum);
}

__device__ inline void add_scaled(const Target& to, const float (&decoded)[4], float (&sum)[4]) {
  for (int j = 0; j < 4; ++j) sum[j] = to.accumulate ? sum[j] + to.scale * decoded[j] : to.scale * decoded[j];
}

// Entries i to i + 4, or to n, are these decoded values.
__device__ inline void emit_four(const Target& to, size_t i, const float (&decoded)[4]) {
  float sum[4];
  load_base(to, i, sum);
  add_scaled(to, decoded, sum);
  store_four(to.out, to.dtype, i, to.n, sum);
}

static __global__ void decode_entries(Bodies bodies, Target to) {
  for (size_t i = 4 * thread_number(); i < to.n; i += 4 * thread_total()) {
    float sum[4], value[4];
    load_base(to, i, sum);
    for (unsigned body = 0; body < bodies.count; ++body) {
      decode_run(bodies.values[body], i, to.n, value);
      add_scaled(to, value, sum);
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
