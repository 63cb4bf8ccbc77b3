// CUDA on the host, for tests: the kernels' own sources compile as C++ against this, and the threads of a block run as
// fibers that take turns at barriers and warp operations. Turns come in an order that a test chooses, so what depends
// on the order of threads, as with a missing barrier, shows. Memory is the host's, so sanitizers see every access.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace tersegrad::emulation {

struct Index {
  unsigned x;
};

enum class Order { ascending, descending, shuffled };

// The order of threads and blocks from now on. `dropped` is the number of a barrier that every thread passes without
// waiting, counted from 0 in each kernel, or -1: tests show with it that they would miss that barrier.
void configure(Order order, int dropped);

void run(unsigned grid, unsigned threads, const std::function<void()>& body);

// How many kernels have run, for tests that count them.
unsigned launches();
// How many candidates the last top-k that used this workspace collected: with k of them or more, and no more than fit,
// one pass over the entries was enough.
uint32_t candidates(const void* workspace);
// sum_of_parts_before of cuda/chain.cuh, by a block of its own. Blocks run one after the other here, so that each would
// find that the one before it is done; a test gives it links as blocks at work leave them.
uint32_t sum_of_parts_before(uint64_t* links, size_t part, uint32_t own);

Index thread_index();
Index block_index();
Index block_size();
Index grid_size();
void sync_threads();
void sync_warp();
// Hands in a value and waits for those of the whole warp: 32 of them, by lane.
const uint32_t* exchange(uint32_t value);

}  // namespace tersegrad::emulation

#define threadIdx (tersegrad::emulation::thread_index())
#define blockIdx (tersegrad::emulation::block_index())
#define blockDim (tersegrad::emulation::block_size())
#define gridDim (tersegrad::emulation::grid_size())

inline void __syncthreads() { tersegrad::emulation::sync_threads(); }
inline void __syncwarp() { tersegrad::emulation::sync_warp(); }
inline void __threadfence() {}
inline int __popc(uint32_t bits) { return __builtin_popcount(bits); }

inline uint32_t __ballot_sync(uint32_t, bool predicate) {
  const uint32_t* all = tersegrad::emulation::exchange(predicate);
  uint32_t mask = 0;
  for (unsigned lane = 0; lane < 32; ++lane) mask |= all[lane] << lane;
  return mask;
}
// Lanes without a partner get their own value.
inline uint32_t __shfl_sync(uint32_t, uint32_t value, unsigned from) {
  return tersegrad::emulation::exchange(value)[from % 32];
}
inline uint32_t __shfl_xor_sync(uint32_t, uint32_t value, unsigned distance) {
  return tersegrad::emulation::exchange(value)[threadIdx.x % 32 ^ distance];
}
inline uint32_t __shfl_up_sync(uint32_t, uint32_t value, unsigned distance) {
  unsigned lane = threadIdx.x % 32;
  return tersegrad::emulation::exchange(value)[lane >= distance ? lane - distance : lane];
}
inline uint32_t __shfl_down_sync(uint32_t, uint32_t value, unsigned distance) {
  unsigned lane = threadIdx.x % 32;
  return tersegrad::emulation::exchange(value)[lane + distance < 32 ? lane + distance : lane];
}

inline uint32_t atomicAdd(uint32_t* at, uint32_t value) {
  uint32_t before = *at;
  *at = before + value;
  return before;
}
inline uint32_t atomicOr(uint32_t* at, uint32_t value) {
  uint32_t before = *at;
  *at = before | value;
  return before;
}
inline uint32_t atomicMax(uint32_t* at, uint32_t value) {
  uint32_t before = *at;
  if (value > before) *at = value;
  return before;
}
