// What the kernels share: sums over warps and blocks, and memory at any alignment.
#pragma once

#include "../sign/spec.h"
#include "platform.h"

namespace tersegrad::cuda {

// Four entries, or their four bytes each, in one access.
struct alignas(16) Four {
  float value[4];
};
struct alignas(8) FourShort {
  uint16_t bits[4];
};
struct alignas(16) Cell {
  uint32_t word[4];
};

__device__ inline bool is_aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

__device__ inline uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

__device__ inline uint32_t warp_largest(uint32_t value) {
  for (unsigned half = kWarp / 2; half > 0; half /= 2) value = larger(value, __shfl_xor_sync(kWholeWarp, value, half));
  return value;
}

__device__ inline uint32_t warp_sum(uint32_t value) {
  for (unsigned half = kWarp / 2; half > 0; half /= 2) value += __shfl_xor_sync(kWholeWarp, value, half);
  return value;
}

__device__ inline uint32_t warp_running_sum(uint32_t value) {
  const unsigned lane = threadIdx.x % kWarp;
  for (unsigned distance = 1; distance < kWarp; distance *= 2) {
    uint32_t before = __shfl_up_sync(kWholeWarp, value, distance);
    if (lane >= distance) value += before;
  }
  return value;
}

__device__ inline float shuffle_down(float value, unsigned distance) {
  return float_of(__shfl_down_sync(kWholeWarp, bits_of(value), distance));
}

// The sum of 64 lanes in the order of sign/spec.h, two of which each thread of a warp holds: lane l and lane l + 32.
__device__ inline float sum_of_lanes(const float (&sum)[2]) {
  float total = sum[0] + sum[1];  // the first step of the tree
  for (unsigned half = kWarp / 2; half > 0; half /= 2) total = total + shuffle_down(total, half);
  return float_of(__shfl_sync(kWholeWarp, bits_of(total), 0));
}

// The sum of term(j) for j below n, by a warp, in that order.
template <class Term>
__device__ inline float lane_sum(size_t n, Term term) {
  float sum[2] = {0.0f, 0.0f};
  for (size_t row = 0; row < n; row += kSumLanes) {
    TERSEGRAD_UNROLL
    for (unsigned half = 0; half < 2; ++half) {
      const size_t j = row + half * kWarp + threadIdx.x % kWarp;
      if (j < n) sum[half] = sum[half] + term(j);
    }
  }
  return sum_of_lanes(sum);
}

// The sum of what the threads before this one hand in, and of all of them. `totals` is shared, of 32 words.
__device__ inline uint32_t block_sum_before(uint32_t value, uint32_t* totals, uint32_t* all) {
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, count = blockDim.x / kWarp;
  const uint32_t up_to_here = warp_running_sum(value);
  if (lane == kWarp - 1) totals[warp] = up_to_here;
  __syncthreads();
  if (warp == 0) {
    uint32_t sum = warp_running_sum(lane < count ? totals[lane] : 0);
    totals[lane] = sum;
  }
  __syncthreads();
  const uint32_t before = (warp == 0 ? 0 : totals[warp - 1]) + up_to_here - value;
  *all = totals[count - 1];
  __syncthreads();  // before the next call writes
  return before;
}

// One block: counts become the sums of all before, in place. `totals` as above.
__device__ inline void sum_before_in_place(uint32_t* count, size_t n, uint32_t* totals) {
  const size_t each = (n + blockDim.x - 1) / blockDim.x, begin = threadIdx.x * each;
  const size_t end = begin + each < n ? begin + each : n;
  uint32_t own = 0, all;
  for (size_t i = begin; i < end; ++i) own += count[i];
  uint32_t before = block_sum_before(own, totals, &all);
  for (size_t i = begin; i < end; ++i) {
    const uint32_t here = count[i];
    count[i] = before;
    before += here;
  }
}

// The number of the lowest bit that is set.
__device__ inline unsigned lowest_one(uint32_t word) { return static_cast<unsigned>(__popc((word & (0 - word)) - 1)); }

// Of kernels with kThreads threads in a block.
__device__ inline size_t thread_number() { return static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; }
__device__ inline size_t thread_total() { return static_cast<size_t>(gridDim.x) * kThreads; }

__device__ inline uint32_t lanes_before() { return (1u << (threadIdx.x % kWarp)) - 1; }

// What other blocks of this kernel have written, by atomics or by store_fresh; not from this processor's cache.
template <class T>
__device__ inline T load_fresh(const T* at) {
  return *static_cast<const volatile T*>(at);
}
template <class T>
__device__ inline void store_fresh(T* at, T value) {
  *static_cast<volatile T*>(at) = value;
}

// --- Bodies, whose parts begin at any byte. ---

__device__ inline void put_bytes(uint8_t* at, uint32_t word, size_t count) {
  if (count >= 4 && is_aligned(at, 4)) {
    *reinterpret_cast<uint32_t*>(at) = word;
    return;
  }
  for (size_t i = 0; i < count && i < 4; ++i) at[i] = static_cast<uint8_t>(word >> (8 * i));
}

// Bytes `first` to `first + 8` of a section; those from `end` on count as zero.
__device__ inline uint64_t get_bytes(const uint8_t* section, uint64_t first, uint64_t end) {
  uint64_t word = 0;
  for (unsigned i = 0; i < 8 && first + i < end; ++i) word |= static_cast<uint64_t>(section[first + i]) << (8 * i);
  return word;
}

__device__ inline uint32_t get_word(const uint8_t* section, uint64_t first, uint64_t end) {
  if (first + 4 <= end && is_aligned(section + first, 4)) return *reinterpret_cast<const uint32_t*>(section + first);
  return static_cast<uint32_t>(get_bytes(section, first, end));
}

// --- Entries. A tensor is aligned to its entries; a body is not. ---

__device__ inline float load_aligned(const void* x, DType dtype, size_t i) {
  if (dtype == DType::float32) return static_cast<const float*>(x)[i];
  uint16_t bits = static_cast<const uint16_t*>(x)[i];
  return dtype == DType::float16 ? from_half(bits) : from_brain(bits);
}

__device__ inline void store_aligned(void* out, DType dtype, size_t i, float value) {
  if (dtype == DType::float32) {
    static_cast<float*>(out)[i] = value;
  } else {
    static_cast<uint16_t*>(out)[i] = dtype == DType::float16 ? to_half(value) : to_brain(value);
  }
}

__device__ inline float load_anywhere(const void* x, DType dtype, size_t i) {
  return is_aligned(x, item_bytes(dtype)) ? load_aligned(x, dtype, i) : load_entry(x, dtype, i);
}

// Entries i to i + 4, or to n; those from n on are zero.
__device__ inline void load_four(const void* x, DType dtype, size_t i, size_t n, float (&value)[4]) {
  const char* at = static_cast<const char*>(x) + i * item_bytes(dtype);
  if (i + 4 <= n && is_aligned(at, 4 * item_bytes(dtype))) {
    if (dtype == DType::float32) {
      Four four = *reinterpret_cast<const Four*>(at);
      for (int j = 0; j < 4; ++j) value[j] = four.value[j];
    } else {
      FourShort four = *reinterpret_cast<const FourShort*>(at);
      for (int j = 0; j < 4; ++j) {
        value[j] = dtype == DType::float16 ? from_half(four.bits[j]) : from_brain(four.bits[j]);
      }
    }
    return;
  }
  for (unsigned j = 0; j < 4; ++j) value[j] = i + j < n ? load_anywhere(x, dtype, i + j) : 0.0f;
}

__device__ inline void store_four(void* out, DType dtype, size_t i, size_t n, const float (&value)[4]) {
  char* at = static_cast<char*>(out) + i * item_bytes(dtype);
  if (i + 4 <= n && is_aligned(at, 4 * item_bytes(dtype))) {
    if (dtype == DType::float32) {
      *reinterpret_cast<Four*>(at) = {{value[0], value[1], value[2], value[3]}};
    } else {
      FourShort four;
      for (int j = 0; j < 4; ++j) {
        four.bits[j] = dtype == DType::float16 ? to_half(value[j]) : to_brain(value[j]);
      }
      *reinterpret_cast<FourShort*>(at) = four;
    }
    return;
  }
  const bool aligned = is_aligned(at, item_bytes(dtype));
  for (unsigned j = 0; j < 4 && i + j < n; ++j) {
    aligned ? store_aligned(out, dtype, i + j, value[j]) : store_entry(out, dtype, i + j, value[j]);
  }
}

}  // namespace tersegrad::cuda
