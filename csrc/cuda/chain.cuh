// A running sum over the parts of one kernel, a block of threads each, without another launch: a part tells its own
// sum, looks back at the parts before it until one knows the sum of all, and then tells that (Merrill and Garland 2016,
// "Single-pass parallel prefix scan with decoupled look-back"). Parts are numbered in the order in which their blocks
// begin, so a block waits only for blocks that run already.
//
//   a link:   63      34 33   32 31             0
//            | unused | state   | sum            |   state 0 nothing, 1 of this part, 2 of all up to it
//
// State and sum travel in one word, so that no fence is needed between them.
#pragma once

#include "block.cuh"

namespace tersegrad::cuda {

constexpr uint64_t kPartSum = uint64_t{1} << 32, kSumSoFar = uint64_t{2} << 32;

// The first word of a chain counts the parts that have begun; links follow, all of them zero when the kernel begins.
TG_SPEC size_t chain_words(size_t links) { return 1 + links; }

// The number of this block's part. All threads call it; `shared` is one word.
__device__ inline size_t begin_part(uint64_t* chain, uint32_t* shared) {
  if (threadIdx.x == 0) *shared = atomicAdd(reinterpret_cast<uint32_t*>(chain), 1);
  __syncthreads();
  const size_t part = *shared;
  __syncthreads();
  return part;
}

// The sum of the parts before this one, whose own is given. All threads call it; `shared` is one word.
__device__ inline uint32_t sum_of_parts_before(uint64_t* links, size_t part, uint32_t own, uint32_t* shared) {
  if (threadIdx.x < kWarp) {
    const unsigned lane = threadIdx.x;
    if (lane == 0) store_fresh(links + part, (part == 0 ? kSumSoFar : kPartSum) | own);
    uint32_t before = 0;
    for (size_t end = part; end > 0;) {  // a lane looks at one of the 32 links before `end`; lane 0 at the last
      uint64_t link = kSumSoFar;         // beyond the first part
      do {
        if (lane < end) link = load_fresh(links + end - 1 - lane);
      } while (__ballot_sync(kWholeWarp, link >> 32 == 0) != 0);
      const uint32_t complete = __ballot_sync(kWholeWarp, link >= kSumSoFar);
      const unsigned nearest = complete == 0 ? kWarp - 1 : lowest_one(complete);
      before += warp_sum(lane <= nearest ? static_cast<uint32_t>(link) : 0);
      end = complete == 0 ? end - kWarp : 0;
    }
    if (lane == 0) {
      if (part > 0) store_fresh(links + part, kSumSoFar | (before + own));
      *shared = before;
    }
  }
  __syncthreads();
  const uint32_t before = *shared;
  __syncthreads();
  return before;
}

}  // namespace tersegrad::cuda
