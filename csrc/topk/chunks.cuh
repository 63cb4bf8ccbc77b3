// On the device: ChunkTopK, a block of threads for each chunk.
#pragma once

#include "cuda.cuh"

namespace tersegrad::cuda {

struct ChunksCall {
  Input in;
  size_t k, chunk;
  uint32_t* survivor;
  float* survivor_value;
  Header* header;
};

// By one block.
__device__ inline void select_one_chunk(const ChunksCall& call, size_t number, uint32_t* histogram, uint32_t* shared) {
  const size_t begin = number * call.chunk, rest = call.in.n - begin;
  const size_t length = rest < call.chunk ? rest : call.chunk, kept = length < call.k ? length : call.k;
  float* residual = call.in.residual;
  uint32_t key = 0;
  for (size_t i = begin + threadIdx.x; i < begin + length; i += kThreads) {
    const float a = call.in.get(i);
    if (residual != nullptr) residual[i] = a;
    key = larger(key, key_of(a));
  }
  key = warp_largest(key);
  if (threadIdx.x % kWarp == 0 && !is_finite_key(key)) atomicOr(&call.header->late, 1);
  __syncthreads();
  auto value_at = [&](size_t i) {
    return residual != nullptr ? residual[begin + i] : load_aligned(call.in.x, call.in.dtype, begin + i);
  };
  uint32_t above;
  const uint32_t kth = select_key([&](size_t i) { return key_of(value_at(i)); }, length, static_cast<uint32_t>(kept),
                                  histogram, shared, &above);
  // Of one round there are at most 256 of each, so one sum carries the two counts.
  const uint32_t ties = static_cast<uint32_t>(kept) - above;
  uint32_t larger_before = 0, equal_before = 0;
  for (size_t at = 0; at < length; at += kThreads) {
    const size_t i = at + threadIdx.x;
    const float value = i < length ? value_at(i) : 0.0f;
    const bool is_above = i < length && key_of(value) > kth, is_equal = i < length && key_of(value) == kth;
    uint32_t all;
    const uint32_t before = block_sum_before((is_above ? 1u : 0u) | (is_equal ? 1u << 16 : 0u), shared, &all);
    const uint32_t equal = equal_before + (before >> 16);
    if (is_above || (is_equal && equal < ties)) {
      const size_t to = number * call.k + larger_before + (before & 0xffffu) + (equal < ties ? equal : ties);
      call.survivor[to] = static_cast<uint32_t>(begin + i);
      call.survivor_value[to] = value;
    }
    larger_before += all & 0xffffu;
    equal_before += all >> 16;
  }
}

static __global__ void __launch_bounds__(kThreads) select_chunk(ChunksCall call) {
  __shared__ uint32_t histogram[kBins], shared[34];
  if (verdict_before(*call.header) != kSent) return;
  // One chunk to a block, but where there are more chunks than a launch may have blocks.
  for (size_t number = blockIdx.x; number * call.chunk < call.in.n; number += gridDim.x) {
    select_one_chunk(call, number, histogram, shared);
  }
}

inline void select_chunks(const ChunksCall& call, Stream stream) {
  launch(select_chunk, chunk_grid(call.in.n, call.chunk), kThreads, stream, call);
}

}  // namespace tersegrad::cuda
