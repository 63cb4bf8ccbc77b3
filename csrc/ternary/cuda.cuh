// On the device: docs/format.md, codec 8. A warp codes a block: the mean magnitude sets the limit, the digits and the
// sum of what they stand for follow, and with these the scale.
#pragma once

#include "../cuda/blocks.cuh"
#include "spec.h"

namespace tersegrad::cuda {

// Entries that a warp packs at once: whole bytes of digits, and whole rows of the sum.
constexpr size_t kDigitStride = 320;

struct TernaryCall {
  Input in;
  DType dtype;
  size_t block_size;
  float threshold;
  uint8_t* scales;
  uint8_t* digits;
  Header* header;
};

// The digits of up to 320 entries, a byte each in shared memory, five to a byte; those behind the last are zero.
__device__ inline void pack_digits(const uint8_t (&digit)[kDigitStride], size_t n, uint8_t* out) {
  __syncwarp();
  for (size_t byte = threadIdx.x % kWarp; byte < digit_bytes(n); byte += kWarp) {
    uint32_t packed = 0, weight = 1;
    for (size_t j = 0; j < kDigitsPerByte; ++j, weight *= 3) packed += weight * digit[byte * kDigitsPerByte + j];
    out[byte] = static_cast<uint8_t>(packed);
  }
  __syncwarp();
}

static __global__ void __launch_bounds__(kThreads, 4) encode_ternary(TernaryCall call) {
  __shared__ uint8_t staged[kWarps][kDigitStride];
  if (verdict_before(*call.header) != kSent) return;
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const Block block(static_cast<size_t>(blockIdx.x) * kWarps + warp, call.block_size, call.in.n);
  if (block.length == 0) return;
  BlockEntries<InRows> entries(call.in, block, false);

  float sum[2] = {0.0f, 0.0f};
  uint32_t key = 0;
  for (size_t at = 0; at < block.length; at += kStride) {
    entries.read(at);
    TERSEGRAD_UNROLL
    for (int j = 0; j < kPerLane; ++j) {
      sum[j % 2] = sum[j % 2] + float_of(key_of(entries.value[j]));
      key = larger(key, key_of(entries.value[j]));
    }
  }
  if (!is_finite_key(key)) atomicOr(&call.header->late, 1);
  const uint32_t limit = ternary_limit(call.threshold, sign_scale(sum_of_lanes(sum), block.length));

  float kept[2] = {0.0f, 0.0f};
  uint32_t nonzero = 0;
  uint8_t* digits = call.digits + block.number * digit_bytes(call.block_size);
  for (size_t at = 0; at < block.length; at += kDigitStride) {
    TERSEGRAD_UNROLL
    for (unsigned row = 0; row < kDigitStride / kWarp; ++row) {
      const size_t i = at + row * kWarp + lane;
      const float value = i < block.length ? entries.entry(i) : 0.0f;
      const uint32_t mask = ternary_mask(value, limit);
      staged[warp][i - at] = static_cast<uint8_t>(ternary_digit(value, mask));
      kept[row % 2] = kept[row % 2] + float_of(key_of(value) & mask);
      nonzero += mask & 1;
    }
    const size_t here = block.length - at < kDigitStride ? block.length - at : kDigitStride;
    pack_digits(staged[warp], here, digits + at / kDigitsPerByte);
  }
  nonzero = warp_sum(nonzero);
  const float total = sum_of_lanes(kept), scale = nonzero > 0 ? sign_scale(total, nonzero) : 0.0f;
  if (lane == 0) put_scale(call.scales, block.number, scale);
  if (call.in.residual == nullptr) return;

  const float decoded = round_to(call.dtype, scale);
  for (size_t at = 0; at < block.length; at += kStride) {
    entries.read_again(at);
    TERSEGRAD_UNROLL
    for (int j = 0; j < kPerLane; ++j) {
      const uint32_t digit = ternary_digit(entries.value[j], ternary_mask(entries.value[j], limit));
      if (at + entries.place(j) < block.length) entries.settle(at, j, ternary_entry(digit, decoded));
    }
  }
}

inline void launch_ternary(const TernaryCall& call, Stream stream) {
  const size_t blocks = (call.in.n + call.block_size - 1) / call.block_size;
  launch(encode_ternary, (blocks + kWarps - 1) / kWarps, kThreads, stream, call);
}

}  // namespace tersegrad::cuda
