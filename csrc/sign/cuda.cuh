// On the device: docs/format.md, codec 4. A warp codes a block; a lane holds two of the 64 lanes of the sum.
#pragma once

#include "../cuda/call.cuh"
#include "spec.h"

namespace tersegrad::cuda {

struct SignCall {
  Input in;
  DType dtype;
  size_t block_size;
  uint8_t* scales;
  uint8_t* bits;
  Header* header;
};

static __global__ void __launch_bounds__(kThreads) encode_sign(SignCall call) {
  if (verdict_before(*call.header) != kSent) return;
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const size_t block = static_cast<size_t>(blockIdx.x) * kWarps + warp, first = block * call.block_size;
  if (first >= call.in.n) return;
  const size_t rest = call.in.n - first, length = rest < call.block_size ? rest : call.block_size;
  float* residual = call.in.residual;

  float sum[2] = {0.0f, 0.0f};
  uint32_t key = 0;
  for (size_t row = 0; row < length; row += kSumLanes) {
    for (unsigned half = 0; half < 2; ++half) {
      const size_t i = row + half * kWarp + lane;
      const float a = i < length ? call.in.get(first + i) : 0.0f;
      if (residual != nullptr && i < length) residual[first + i] = a;
      sum[half] = sum[half] + float_of(key_of(a));
      key = larger(key, key_of(a));
      const uint32_t signs = __ballot_sync(kWholeWarp, sign_bit(a) != 0);
      const size_t begin = row + half * kWarp;
      if (lane == 0 && begin < length) put_bytes(call.bits + (first + begin) / 8, signs, (length - begin + 7) / 8);
    }
  }
  key = warp_largest(key);
  const float scale = sign_scale(warp_sum_lanes(sum), length);
  if (lane == 0) {
    put_scale(call.scales, block, scale);
    if (!is_finite_key(key)) atomicOr(&call.header->late, 1);
  }
  if (residual == nullptr) return;
  const float decoded = round_to(call.dtype, scale);
  for (size_t i = lane; i < length; i += kWarp) {
    const float a = residual[first + i];
    residual[first + i] = a - sign_entry(sign_bit(a), decoded);
  }
}

inline void launch_sign(const SignCall& call, Stream stream) {
  const size_t blocks = (call.in.n + call.block_size - 1) / call.block_size;
  launch(encode_sign, (blocks + kWarps - 1) / kWarps, kThreads, stream, call);
}

}  // namespace tersegrad::cuda
