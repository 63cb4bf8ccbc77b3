// Heads of the messages that ranks send each other, written and judged in one small launch each: python/tersegrad/ddp/
// message.py has their bytes. Verdicts and counts stay on the device.
#pragma once

#include "call.cuh"
#include "codec.h"

namespace tersegrad::cuda {

constexpr unsigned kHeadBytes = 16, kStepAt = 8, kFailedAt = 12;
constexpr uint32_t kQuietNaN = 0x7fc00000u;

// A byte of what every rank's message of a step begins with.
__device__ inline uint8_t head_byte(const uint8_t* head, uint32_t step, unsigned i) {
  return i >= kStepAt && i < kStepAt + 4 ? static_cast<uint8_t>(step >> (8 * (i - kStepAt))) : head[i];
}

// One block. A parameter in pieces fares as the worst of them.
static __global__ void __launch_bounds__(kThreads)
    write_head_kernel(HeadCall call, const uint32_t* status, const uint32_t* first_piece, bool failed,
                      uint8_t* message) {
  if (threadIdx.x < kHeadBytes) {
    message[threadIdx.x] = threadIdx.x == kFailedAt ? failed : head_byte(call.head, call.step, threadIdx.x);
  }
  for (size_t slot = threadIdx.x; slot < call.slots; slot += kThreads) {
    const size_t begin = first_piece != nullptr ? first_piece[slot] : slot;
    const size_t end = first_piece != nullptr ? first_piece[slot + 1] : slot + 1;
    uint32_t worst = kSent;
    for (size_t piece = begin; piece < end; ++piece) worst = larger(worst, status[piece]);
    message[kHeadBytes + slot] = static_cast<uint8_t>(worst);
  }
}

// One block.
static __global__ void __launch_bounds__(kThreads)
    judge_kernel(HeadCall call, const uint8_t* messages, size_t stride, size_t ranks, const uint32_t* before,
                 uint32_t* verdict) {
  __shared__ uint32_t wrong;
  if (threadIdx.x == 0) wrong = before != nullptr && before[0] != 0;
  __syncthreads();
  for (size_t i = threadIdx.x; i < ranks * kHeadBytes; i += kThreads) {
    const auto at = static_cast<unsigned>(i % kHeadBytes);
    if (messages[i / kHeadBytes * stride + at] != head_byte(call.head, call.step, at)) atomicOr(&wrong, 1);
  }
  __syncthreads();
  uint32_t *all_lost = verdict + 1, *all_absent = all_lost + call.slots, *start = all_absent + call.slots;
  if (threadIdx.x == 0) verdict[0] = wrong;
  for (size_t slot = threadIdx.x; slot < call.slots; slot += kThreads) {
    bool lost = wrong != 0 || (before != nullptr && before[1 + slot] != 0), absent = true;
    for (size_t rank = 0; rank < ranks; ++rank) {
      const uint8_t mark = messages[rank * stride + kHeadBytes + slot];
      lost |= mark >= kNotFinite;
      absent &= mark == kAbsent;
    }
    all_lost[slot] = lost;
    all_absent[slot] = absent;
    start[slot] = lost ? kQuietNaN : 0;
  }
}

// One block: what a verdict says is added to the counts of Ledger.
static __global__ void __launch_bounds__(kThreads)
    note_kernel(const uint32_t* verdict, size_t slots, uint32_t* counts) {
  __shared__ uint32_t shared[32];
  uint32_t own = 0, lost;
  for (size_t slot = threadIdx.x; slot < slots; slot += kThreads) own += verdict[1 + slot];
  block_sum_before(own, shared, &lost);
  if (threadIdx.x != 0) return;
  counts[0] += lost;
  counts[1] += lost;
  counts[2] += verdict[0];
}

// One thread: a step is over, which is undone if one of its parameters was lost.
static __global__ void close_step_kernel(uint32_t* counts, bool counted) {
  if (!counted) counts[3] += counts[0] != 0;
  counts[0] = 0;
}

}  // namespace tersegrad::cuda
