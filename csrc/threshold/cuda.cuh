// On the device: how many entries reach a threshold, which is what the size of a body waits for. Top-k of this number
// then sends these very entries.
#pragma once

#include "../cast/cuda.cuh"

namespace tersegrad::cuda {

static __global__ void __launch_bounds__(kThreads) count_keys_from(Input in, uint32_t threshold, Header* header) {
  if (header->absent) return;
  uint32_t count = 0;
  look_at_all(in, header, [&](uint32_t key) { count += key >= threshold ? 1u : 0u; });
  count = warp_sum(count);
  if (threadIdx.x % kWarp == 0 && count > 0) atomicAdd(&header->candidates, count);
}

static __global__ void tell_count(const Header* header, uint32_t* status, uint32_t* count) {
  *status = verdict_before(*header);
  *count = *status == kSent ? header->candidates : 0;
}

}  // namespace tersegrad::cuda
